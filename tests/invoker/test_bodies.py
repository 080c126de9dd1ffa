"""What clients really send in a body, and what they can do with an answer: asked of a real invoker with the real CLI."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from claude_contract.claims import NOTHING_ADDED, UNCLAMPED, Clamp
from claude_invoker.api.negotiation import takes_json
from claude_invoker.caller import Caller
from claude_invoker.cli.messages import Result
from claude_invoker.cli.outcome import stop_reason, unmet_schema
from claude_invoker.idempotency import fingerprint_of
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.jobs.record import JobRequest
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.models import permits
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from tests.invoker.conftest import StandInProcess, tool

# One pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
PDF = base64.b64encode(
    b"%PDF-1.1\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
).decode()


def image(data: str = PNG) -> dict[str, object]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def document(data: str = PDF) -> dict[str, object]:
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}


def test_what_an_earlier_message_shows_is_shown_and_not_spelt_out(api: httpx.Client, stand_in: StandInProcess) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look-47"}, image(), document()]},
        {"role": "assistant", "content": "a dot"},
        {"role": "user", "content": [{"type": "text", "text": "and this"}, image()]},
        {"role": "assistant", "content": "the same"},
        {"role": "user", "content": "what colour, after all-47?"},
    ]
    answer = api.post("/invoke", json={"messages": messages, "max_budget_usd": 5})
    assert answer.status_code == 200, answer.text
    sent = next(line for line in reversed(stand_in.lines()) if "after all-47" in json.dumps(line["messages"]))
    blocks = [
        block for message in sent["messages"] if isinstance(message["content"], list) for block in message["content"]
    ]
    attached = [block["type"] for block in blocks if block["type"] != "text"]
    assert attached == ["image", "document", "image"]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    assert not any(PNG in text or PDF in text for text in texts)
    (history,) = [text for text in texts if "look-47" in text]
    said = json.loads(history.removeprefix("<conversation_so_far>\n").removesuffix("\n</conversation_so_far>"))
    assert [part.get("attachment") for part in said[0]["content"]] == [None, 1, 2]
    assert said[2]["content"][1] == {"type": "image", "attachment": 3}
    assert texts.index("what colour, after all-47?") > texts.index("Attachment 3 of the conversation so far:")


# One thing wrong, and where.
WRONG: list[tuple[dict[str, object], str, str]] = [
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0]", "text, image or document"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages[0].content[0].x", "not known"),
    ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]", "must be an object"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "must be a string or a list"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "must be 'user' or 'assistant'"),
    ({"messages": [{"role": "user", "content": [document("?")]}]}, "messages[0].content[0].source.data", "must match"),
    ({"prompt": "a", "context": {"a": {"b": 1}}}, "context.a", "must be text, a number"),
    ({"prompt": "a", "tools": ["a b"]}, "tools[0]", "must match"),
    ({"prompt": "a", "tools": "Read"}, "tools", "must be a valid list"),
    ({"prompt": "a", "max_turns": 0}, "max_turns", "must be greater"),
    ({"prompt": "a", "temperature": 1}, "temperature", "is not known"),
    ({"prompt": 5}, "prompt", "must be a valid string"),
    ({}, "", "exactly one of prompt and messages"),
    ({"prompt": " \n\t"}, "", "nothing but blanks"),
    ({"messages": [{"role": "user", "content": " "}]}, "", "nothing but blanks"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "", "nothing but blanks"),
]  # fmt: skip


def test_what_is_wrong_is_said_by_the_callers_own_names_before_any_money(
    api: httpx.Client, stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    for body, at, said in WRONG:
        answer = api.post("/invoke", json=body)
        problem = answer.json()
        assert answer.status_code == 422, body
        assert [error["at"] for error in problem["errors"]] == [at], body
        assert said in problem["errors"][0]["error"], body
        assert problem["detail"] == f"{at} {problem['errors'][0]['error']}".strip()
        assert not any(word in answer.text for word in ("Input", "tagged", "union", "[str", "Value error"))
    assert len(stand_in.lines()) == before


def test_several_things_wrong_are_all_listed(api: httpx.Client) -> None:
    answer = api.post("/invoke", json={"prompt": "a", "max_turns": 0, "x" * 5000: 1, "timeout_s": -1}).json()
    assert len(answer["errors"]) == 3 and "(and 2 more, see errors)" in answer["detail"]
    assert all(len(error["at"]) <= 300 for error in answer["errors"])


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_an_answer_without_the_structure_is_no_success(api: httpx.Client) -> None:
    met = api.post("/invoke", json={"prompt": tool("StructuredOutput", a=7), "output_schema": SCHEMA})
    assert (met.status_code, met.json()["structured"], met.json()["stop_reason"]) == (200, {"a": 7}, "end_turn")
    unmet = api.post("/invoke", json={"prompt": "[[say just text]]", "output_schema": SCHEMA})
    problem = unmet.json()
    assert (unmet.status_code, problem["type"]) == (422, "urn:kong-claude:problem:unmet-schema")
    assert problem["stop_reason"] == "output_schema"
    assert float(unmet.headers["x-claude-cost-usd"]) > 0 and unmet.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("result", "exhausted", "expected"),
    [
        ({"subtype": "success", "stop_reason": "end_turn"}, False, True),
        ({"subtype": "success", "stop_reason": "tool_use", "structured_output": {"a": 1}}, False, False),
        ({"subtype": "success", "stop_reason": "tool_use", "structured_output": False}, False, False),
        ({"subtype": "error_max_structured_output_retries", "is_error": True}, False, True),
        ({"subtype": "error_max_turns", "is_error": True}, False, False),
        ({"subtype": "success", "stop_reason": "refusal"}, False, False),
        ({"subtype": "success", "is_error": True}, True, False),
    ],
)
def test_when_a_schema_is_not_met(result: dict[str, object], exhausted: bool, expected: bool) -> None:
    value, account = Result.model_validate(result), Figures(exhausted=exhausted)
    assert (unmet_schema(value, account) is not None) is expected
    if value.structured_output is not None:
        assert stop_reason(value, account) == "end_turn"


# Accept as clients send it → what they get where the run has left no such file.
ACCEPTS = {
    "text/plain, application/json, application/*+json, */*": True,  # Spring's RestTemplate
    "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2": True,  # Java's HttpURLConnection
    "application/hal+json, application/json": True,
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": True,
    "image/*;q=1, application/problem+json;q=0.1": True,
    "application/pdf": False,
    "application/pdf, application/json;q=0": False,
    "image/png, text/csv": False,
    "application/json;q=0, */*": False,  # the more specific holds
    "application/json;q=0, application/problem+json": False,
    "application/*;q=0, */*": False,
    "application/json, */*;q=0": True,
}


def test_json_is_taken_where_no_file_fits(api: httpx.Client) -> None:
    assert {accept: takes_json(accept) for accept in ACCEPTS} == ACCEPTS
    assert takes_json(None)
    for accept in ("text/html, image/gif, *; q=.2, */*; q=.2", "application/hal+json, application/json"):
        answer = api.post("/invoke", json={"prompt": "hi"}, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), accept
    written = tool("Write", file_path="a.html", content="<p>x</p>")
    page = api.post("/invoke", json={"prompt": written, "tools": ["Write"]}, headers={"Accept": "text/html, */*;q=0.1"})
    assert page.text == "<p>x</p>", "a file that fits wins"
    none = api.post("/invoke", json={"prompt": "hi"}, headers={"Accept": "application/pdf"})
    assert (none.status_code, none.headers["x-should-retry"]) == (406, "false")


@pytest.mark.parametrize(
    ("accept", "body", "says"),
    [
        ("application/msgpack", {}, "a run leaves no file of such a type"),
        ("application/json;q=0", {}, "a run leaves no file of such a type"),
        ("nonsense", {}, "a run leaves no file of such a type"),
        ("application/x-thrift, application/vnd.api+json", {}, "a run leaves no file of such a type"),
        ("application/pdf", {"tools": ["Read"]}, "a run with these tools leaves no files"),
        ("image/*, application/x-thrift", {"tools": []}, "a run with these tools leaves no files"),
    ],
)
def test_what_no_run_gives_is_refused_before_one(
    api: httpx.Client, stand_in: StandInProcess, accept: str, body: dict[str, Any], says: str
) -> None:
    before = len(stand_in.lines())
    answer = api.post("/invoke", json={"prompt": "hi", **body}, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (406, "false"), answer.text
    assert says in answer.json()["detail"] and len(stand_in.lines()) == before


def test_a_run_that_has_begun_is_not_asked_for_again(api: httpx.Client) -> None:
    late = api.post("/invoke", json={"prompt": "[[hang]]", "timeout_s": 1})
    assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
    busy = api.post("/invoke", json={"prompt": "x", "max_turns": 0})
    assert "x-should-retry" not in busy.headers, "nothing has begun"


def test_files_that_are_left_out_are_in_the_answer(api: httpx.Client) -> None:
    prompt = tool("Write", file_path="a\\\\b.txt", content="x") + tool("Write", file_path="good.txt", content="x")
    answer = api.post("/invoke", json={"prompt": prompt, "tools": ["Write"]}).json()
    assert [artifact["path"] for artifact in answer["artifacts"]] == ["good.txt"]
    (left_out,) = answer["left_out"]
    assert "b.txt" in left_out["path"] and "characters" in left_out["reason"]
    assert api.get(f"/runs/{answer['id']}").json()["left_out"] == [left_out]


WHOLE = Boundary(Strength.LANDLOCK)


@pytest.mark.parametrize(
    ("body", "clamp", "settings", "said"),
    [
        ({"model": "opus"}, Clamp(models=("haiku",)), {}, "not allowed by the tier at the gateway; allowed: haiku"),
        ({"model": "opus"}, UNCLAMPED, {"models": ("haiku",)}, "this invoker (INVOKER_MODELS); allowed: haiku"),
        ({"model": "opus"}, Clamp(models=("haiku",)), {"models": ("sonnet",)}, "the tier at the gateway and this invoker"),
        ({"tools": ["Bash"]}, Clamp(tools=("Read",)), {}, "by the tier at the gateway: Bash; allowed: Read"),
        ({"tools": ["Task"]}, UNCLAMPED, {"tools_allowed": ("Read",)}, "this invoker (INVOKER_TOOLS_ALLOWED): Task"),
        ({"tools": ["Bash"]}, Clamp(tools=()), {}, "by the tier at the gateway: Bash; nothing is"),
    ],
)  # fmt: skip
def test_who_refuses_is_said(body: dict[str, object], clamp: Clamp, settings: dict[str, object], said: str) -> None:
    with pytest.raises(Problem) as refused:
        plan(InvokeRequest.model_validate({"prompt": "x"} | body), clamp, Settings(**settings), WHOLE)  # type: ignore[arg-type]
    assert refused.value.status == 403 and said in refused.value.detail


@pytest.mark.parametrize("model", ["sonnet[1m]", "claude-sonnet-5-5[1m]"])
def test_a_large_window_is_allowed_by_name_alone(model: str) -> None:
    assert not permits(("sonnet", "claude-sonnet-5-5"), model)
    assert permits(("sonnet[1m]",), model)
    assert permits(("sonnet[1m]",), model.removesuffix("[1m]")), "what the API is asked for then"
    assert not permits(("opus[1m]",), model) and permits(None, model)


CALLER = Caller("alice", request_id="r-1", additions=NOTHING_ADDED)


def test_a_key_stands_for_what_is_asked_not_for_its_bytes() -> None:
    def of(path: str = "/jobs", caller: Caller = CALLER, **body: object) -> str:
        return fingerprint_of(path, JobRequest.model_validate({"prompt": "x"} | body), caller)

    same = of(context={"repo": "org/a"})
    assert of(context={"repo": "org/a"}, model=None) == same, "a default that is said"
    assert of(context={"repo": "org/b"}) != same, "the gateway's X-Repo is in it"
    assert of("/invoke", context={"repo": "org/a"}) != same
    assert of(context={"repo": "org/a"}, tools=[]) != same, "no tools are not the default ones"
    other = Caller("alice", request_id="r-2")
    assert of(context={"id": "r-1"}) == of(context={"id": "r-2"}, caller=other), "each try has an id of its own"
