"""Of two members of one name one reader takes the first and another the last: no body has them."""

from __future__ import annotations

import json

import httpx
import orjson
import pytest

from claude_invoker.api.border import json_object
from claude_invoker.problem import Problem

TWICE = {
    "first level": '{"prompt":"hi","prompt":"ho"}',
    "the same value": '{"prompt":"hi","prompt":"hi"}',
    "spelt otherwise": '{"prompt":"hi","pr\\u006fmpt":"ho"}',
    "inside": '{"prompt":"hi","context":{"a":"1","a":"2"}}',
    "in a list": '{"tools":[{"a":[{"b":1,"b":2}]}]}',
    "in what is dropped": '{"a":{"b":1,"b":2},"a":1}',
}


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_what_is_there_twice_is_refused(body: str) -> None:
    with pytest.raises(Problem, match="duplicate") as refused:
        json_object(body.encode())
    assert refused.value.status == 400


def test_what_is_there_once_is_read() -> None:
    body = '{"a":{"x":1},"b":[{"x":1},{"x":"a\\":1,\\"a"}],"":0,"long":' + "1" * 300 + "}"
    assert json_object(body.encode()).keys() == {"a", "b", "", "long"}


@pytest.mark.parametrize("number", ["1" * 5000, "-" + "1" * 5000, "1." + "1" * 5000, "1e400", "-0"])
def test_a_number_is_no_error_of_this(number: str) -> None:
    body = b'{"a":' + number.encode() + b"}"
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        with pytest.raises(Problem):
            json_object(body)
    else:
        assert json_object(body).keys() == {"a"}


@pytest.mark.parametrize("levels", [500, 1000])
def test_a_dropped_member_that_is_deep_is_refused(levels: int) -> None:
    with pytest.raises(Problem):
        json_object(b'{"a":' + b"[" * levels + b"]" * levels + b',"a":1}')


@pytest.mark.parametrize("path", ["/invoke", "/jobs", "/v1/messages", "/v1/chat/completions"])
def test_each_route_says_so_in_its_own_form(api: httpx.Client, path: str) -> None:
    messages = '[{"role":"user","content":"hi"}]'
    run = f'"model":"claude-code","max_tokens":9,"max_tokens":8,"messages":{messages}'
    body = "{" + (run if "v1" in path else '"prompt":"hi","prompt":"ho"') + "}"
    answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, "duplicate keys" in answer.text) == (400, True), answer.text
    if "v1" in path:
        assert json.loads(answer.text)["error"]["type"] == "invalid_request_error"
