"""What a plugin asks of Kong about a request: each once, and what it takes Kong's answers for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kong_claude.decision import Pass
from kong_claude.request import MAX_HEADERS, Request, RequestLine
from tests.core.test_pipeline import Kong


def of(headers: Mapping[str, Any] | None = None, *, line: RequestLine | None = None, **answers: Any) -> Request:
    variables = {name.removeprefix("var_"): answers.pop(name) for name in [*answers] if name.startswith("var_")}
    named = {name.replace("__", "."): value for name, value in answers.items()}
    return Request(Kong(headers or {"host": "h"}, **{"nginx.get_var": variables.get, **named}), static_line=line)


@pytest.mark.parametrize(
    ("sent", "method", "path", "query"),
    [
        ("POST /claude/invoke HTTP/1.1", "POST", "/claude/invoke", ""),
        ("GET /a?b=c HTTP/2.0", "GET", "/a", "b=c"),
        ("GET /a?b=c?d HTTP/1.1", "GET", "/a", "b=c?d"),
        ("GET /a b HTTP/1.1", "GET", "/a b", ""),
        ("GET /a", "GET", "/a", ""),
        (None, "", "", ""),
    ],
)
def test_the_request_line(sent: str | None, method: str, path: str, query: str) -> None:
    request = of(var_request=sent)
    assert request.line == (method, path, query)
    assert (request.line, request.raw_query) == ((method, path, query), query)
    assert request.kong.methods == ["nginx.get_var"], "asked once, and the query comes with it"


def test_where_the_line_is_configured_the_query_is_asked_for() -> None:
    request = of(line=RequestLine("POST", "/a", ""), request__get_raw_query="b=c")
    assert (request.line.path, request.raw_query, request.kong.methods) == ("/a", "b=c", ["request.get_raw_query"])
    assert of(line=RequestLine("POST", "/a", "")).raw_query == ""


@pytest.mark.parametrize(
    ("path", "upstream", "found"),
    [
        ("/claude/invoke", "/other", "/claude/invoke"),
        ("/claude/invoke/", "/other", "/claude/invoke/"),
        ("/claude//invoke", "/claude/invoke", "/claude/invoke"),
        ("/claude//invoke", "/claude/invoke?a=b", "/claude/invoke"),
        ("/claude/%69nvoke", "/claude/invoke", "/claude/invoke"),
        ("/claude/./invoke", "/claude/invoke", "/claude/invoke"),
        ("/claude//invoke", None, "/claude//invoke"),
    ],
)
def test_the_path_as_the_service_gets_it(path: str, upstream: str | None, found: str) -> None:
    assert of(var_request=f"POST {path}?x=1 HTTP/1.1", var_upstream_uri=upstream).upstream_path == found


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"x-request-id": "one", "kong-request-id": "two"}, "one"),
        ({"kong-request-id": "two"}, "two"),
        ({"x-request-id": "a b", "kong-request-id": "two"}, "two"),
        ({"x-request-id": "x" * 129}, "kongs"),
        ({"x-request-id": "x" * 128}, "x" * 128),
        ({"x-request-id": ""}, "kongs"),
        ({"host": "h"}, "kongs"),
    ],
)
def test_the_id(headers: dict[str, str], found: str) -> None:
    assert of(headers, var_kong_request_id="kongs").id == found
    assert of(headers).id == ("" if found == "kongs" else found)


@pytest.mark.parametrize(
    ("length", "body", "found"),
    [
        (None, b"abcd", b"abcd"),
        ("4", b"abcd", b"abcd"),
        ("5", b"abcd", None),
        ("4x", b"abcd", None),
        ("-1", b"abcd", None),
        (None, b"abcde", None),
        (None, "é", "é".encode()),
        (None, "\udcff", b"\xff"),
        (None, None, None),
        ("0", b"", b""),
    ],
)
def test_a_body_of_four_bytes_at_most(length: str | None, body: Any, found: bytes | None) -> None:
    headers = {"content-length": length} if length else {"host": "h"}
    request = of(headers, request__get_raw_body=body)
    assert (request.body(4), request.body(4)) == (found, found)
    assert request.body_seen == (body if body == b"abcde" else found), "what was read is known"
    if found is not None:
        assert request.kong.methods.count("request.get_raw_body") == 1
        assert request.kong.args("request.get_raw_body") == (4,)


@pytest.mark.parametrize(("extra", "many"), [(0, False), (1, True)])
def test_as_many_headers_as_kong_tells_of_may_hide_more(extra: int, many: bool) -> None:
    assert of({"a": ["1"] * (MAX_HEADERS - 2 + extra), "b": "2"}).too_many_headers is many


def test_a_header_is_what_any_reader_may_take_for_it() -> None:
    request = of({"X-Claude_Subject": "a", "x-claude-subject": ["b", "c"], "X_Claude_Subject": "d", "x-other": b"\xff"})
    assert request.header("x-claude-subject") == "b" and request.header("x-none") is None
    assert request.headers["x-other"] == ["\udcff"]
    spellings = ["x-claude-subject", "x-claude_subject", "x_claude_subject"]
    assert request.spellings("x-claude-subject") == spellings
    assert request.sent("x-claude-subject") == ["b", "c", "a", "d"]
    assert request.spellings_of(frozenset({"x-claude-subject", "x-none"})) == spellings
    assert of({"x_claude_subject": "d"}).spellings("x-claude-subject") == ["x_claude_subject"]
    plain = of({"x-claude-subject": "b"})
    assert (plain.spellings("x-claude-subject"), plain.sent("x-claude-subject")) == (["x-claude-subject"], ["b"])
    assert plain.spellings_of(frozenset({"x-claude-subject"})) == ["x-claude-subject"]
    assert (plain.spellings_of(frozenset({"x-none"})), plain.sent("x-none")) == ([], [])


def test_the_next_stage_sees_what_this_one_has_done() -> None:
    request = of({"x-gone": "1", "x_gone": "2", "x-kept": "3", "content-length": "9"}, request__get_raw_query="a")
    assert request.sent("x-gone") == ["1", "2"]
    done = {"X-Gone": None, "x_gone": None, "X-New": "4", "X-Never": None}
    request.follow(Pass(upstream_headers=done, body=b"abc", raw_query="b", consumer=({"id": "c"}, None)))
    assert request.headers == {"x-kept": ["3"], "x-new": ["4"], "content-length": ["3"]}
    assert (request.sent("x-gone"), request.body(3), request.body(2)) == ([], b"abc", None)
    assert (request.raw_query, request.consumer) == ("b", {"id": "c"})
    assert request.kong.methods == ["request.get_headers"]


@pytest.mark.parametrize(
    ("captures", "found"),
    [
        ({"named": {"repo": "a", b"b": b"\xff"}}, {"repo": "a", "b": "\udcff"}),
        ({"named": []}, {}),
        ({"named": ["a"]}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_named_captures(captures: Any, found: dict[str, str]) -> None:
    assert of(request__get_uri_captures=captures).captures == found


def test_who_is_asked_for_is_asked_for_once() -> None:
    request = of(client__get_consumer={"id": "c"}, client__get_forwarded_ip="192.0.2.1")
    for _ in range(2):
        assert (request.consumer, request.client_ip) == ({"id": "c"}, "192.0.2.1")
    assert sorted(request.kong.methods) == ["client.get_consumer", "client.get_forwarded_ip"]
    assert (of(client__get_consumer={}).consumer, of().client_ip) == (None, "")
