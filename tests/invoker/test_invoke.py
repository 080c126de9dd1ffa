"""`POST /invoke` with the real CLI: answers, streams, faults of the API, hostile prompts."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise

import httpx
import pytest

from claude_contract.nesting import too_deep
from tests.invoker.conftest import KEY, Invoker, StandInProcess, tool
from tests.support.event_stream import blocks
from tests.support.waiting import HANG_S


def events_of(answer: httpx.Response) -> list[tuple[int, str, dict[str, object]]]:
    found = []
    for block in blocks("".join(answer.iter_text())):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_an_answer_and_its_headers(api: httpx.Client, stand_in: StandInProcess) -> None:
    answer = api.post(
        "/invoke",
        json={
            "prompt": "hello",
            "system": "Be brief.",
            "model": "haiku",
            "context": {"repository": "org/app", "files": ["a", "b"], "</context>": "x\ny: z <b>"},
        },
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert "hello" in body["result"]
    assert body["usage"]["output_tokens"] > 0
    assert body["stop_reason"] == "end_turn"
    assert "haiku" in body["model"]
    assert answer.headers["x-claude-model"] == body["model"]
    assert answer.headers["x-claude-run"] == body["id"]
    assert float(answer.headers["x-claude-cost-usd"]) == pytest.approx(body["cost_usd"], abs=1e-6)
    assert float(answer.headers["x-response-time"]) > 0
    reached = next(line for line in reversed(stand_in.lines()) if "hello" in json.dumps(line["messages"]))
    assert reached["model"] == body["model"]
    assert reached["key_sha256"] == hashlib.sha256(KEY.encode()).hexdigest()
    assert [block["text"] for block in reached["system"]][-1] == "Be brief."
    texts = [block["text"] for block in reached["messages"][0]["content"]]
    facts = next(text for text in texts if text.startswith("<context>"))
    assert facts.split("\n")[1:3] == ["repository: org/app", "files: a, b"]
    assert facts.count("</context>") == 1 and facts.count("\n") == 4 and facts.count("<") == 2


def test_a_conversation_is_handed_over(api: httpx.Client, stand_in: StandInProcess) -> None:
    messages = [
        {"role": "user", "content": "my name is Ada-7"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "who am I-7"}]},
    ]
    answer = api.post("/invoke", json={"messages": messages})
    assert answer.status_code == 200
    reached = next(line for line in reversed(stand_in.lines()) if "who am I-7" in json.dumps(line["messages"]))
    assert "Ada-7" in json.dumps(reached["messages"])


@pytest.mark.parametrize(
    "prompt",
    [
        "-p",
        "--help",
        "/cost",
        "/clear",
        "@/etc/passwd",
        "#memory",
        "!ls",
        "nul \0 and \x1b[31m",
        "\u2028 é 💥",
        "x" * 1_000_000,
    ],
    ids=lambda prompt: repr(prompt[:12]),
)
def test_a_prompt_is_only_text(api: httpx.Client, stand_in: StandInProcess, prompt: str) -> None:
    answer = api.post("/invoke", json={"prompt": prompt, "tools": []})
    assert answer.status_code == 200, answer.text
    last = stand_in.lines()[-1]
    sent = [block["text"] for message in last["messages"] for block in message["content"] if isinstance(block, dict)]
    assert prompt in sent, [text[:200] for text in sent]
    assert "root:x:0" not in json.dumps(last)
    assert answer.json()["usage"]["output_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"{", 400),
        (b"[" * 100_000, 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"prompt": ""}', 422),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "x", "system": "\\udfff"}', 400),
        ('{"prompt": "x"}'.encode("utf-16"), 400),
        (b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}', 422),
        (b'{"messages": [{"role": "assistant", "content": "y"}]}', 422),
        (b'{"prompt": "x", "max_turns": 0}', 422),
        (b'{"prompt": "x", "max_budget_usd": NaN}', 400),
        (b'{"prompt": "x", "tools": ["Read,Bash"]}', 422),
        (b'{"prompt": "x", "tools": ["Task"]}', 403),
        (b'{"prompt": "x", "model": "-x"}', 422),
        (b'{"prompt": "x", "session": "../../etc"}', 422),
        (b'{"prompt": "x", "unknown": 1}', 422),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_bodies(api: httpx.Client, body: bytes, status: int) -> None:
    answer = api.post("/invoke", content=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_a_body_over_the_limit(api: httpx.Client) -> None:
    assert api.post("/invoke", content=b"x" * 10_000_001).status_code == 413
    chunks = (b"x" * 1_000_000 for _ in range(11))
    assert api.post("/invoke", content=chunks).status_code == 413


@pytest.fixture(scope="module")
def impatient(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(api_timeout_s=2, idle_s=5, pool_size=0)


@pytest.mark.parametrize(
    ("fault", "status", "kind", "api_status"),
    [
        ("[[status 400]]", 422, "prompt-rejected", 400),
        ("[[status 401]]", 502, "api-auth", 401),
        ("[[status 403]]", 502, "api-auth", 403),
        ("[[status 429]]", 503, "api-overloaded", 429),
        ("[[status 500]]", 502, "api-error", 500),
        ("[[status 529]]", 503, "api-overloaded", 529),
        ("[[hang]]", 504, "api-unreachable", None),
        ("[[stall 2]] a b c d", 504, "timeout", None),
        ("[[reset 0]]", 504, "api-unreachable", None),
        ("[[reset 2]] a b c d", 504, "api-unreachable", None),
    ],
)
@pytest.mark.xdist_group("impatient")
def test_faults_of_the_api(impatient: Invoker, fault: str, status: int, kind: str, api_status: int | None) -> None:
    began = time.monotonic()
    with impatient.client() as api:
        answer = api.post("/invoke", json={"prompt": fault})
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:kong-claude:problem:{kind}"
    assert answer.json().get("api_status") == api_status
    assert "127.0.0.1" not in answer.text and KEY not in answer.text
    assert (status == 503) == ("retry-after" in answer.headers)
    assert time.monotonic() - began < HANG_S  # unbounded, the CLI would try for three minutes


@pytest.mark.parametrize(
    ("body", "stop_reason"),
    [
        ({"prompt": "[[stop refusal]] [[say no]]"}, "refusal"),
        ({"prompt": tool("Read", file_path="a") * 3, "max_turns": 1}, "max_turns"),
        ({"prompt": tool("Read", file_path="a") * 3, "max_budget_usd": 0.00001}, "max_budget"),
    ],
)
def test_runs_that_stop_early_are_answers(api: httpx.Client, body: dict[str, object], stop_reason: str) -> None:
    answer = api.post("/invoke", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stop_reason"] == stop_reason


def test_an_output_schema(api: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = api.post("/invoke", json={"prompt": tool("StructuredOutput", a=7), "output_schema": schema})
    assert answer.status_code == 200, answer.text
    assert answer.json()["structured"] == {"a": 7}
    for wrong in ({"type": 5}, {"$ref": "http://127.0.0.1:1/x"}):
        refused = api.post("/invoke", json={"prompt": "x", "output_schema": wrong})
        assert refused.status_code == 422, refused.text


def test_an_output_schema_as_deep_as_a_body_may_be(api: httpx.Client) -> None:
    schema: dict[str, object] = {"type": "integer"}
    while not too_deep({"output_schema": {"properties": {"a": schema}}}):
        schema = {"properties": {"a": schema}}
    answer = api.post("/invoke", json={"prompt": tool("StructuredOutput", b=7), "output_schema": schema})
    assert answer.status_code == 200, answer.text
    assert answer.json()["structured"] == {"b": 7}
    deeper = {"prompt": "x", "output_schema": {"properties": {"a": {"properties": {"a": schema}}}}}
    refused = api.post("/invoke", json=deeper)
    assert (refused.status_code, refused.json()["detail"]) == (422, "the body is nested more than 64 levels deep")


def test_events_come_one_by_one_and_can_be_read_again(api: httpx.Client) -> None:
    arrivals = []
    body = {
        "prompt": "[[delay 40]] [[say a stream of many words for all to see]] "
        + tool("Write", file_path="a.md", content="# A")
    }
    with api.stream("POST", "/claude/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        location = answer.headers["location"]
        text = ""
        for chunk in answer.iter_text():
            arrivals.append(time.monotonic())
            text += chunk
    assert location.startswith("/claude/runs/run_")
    gaps = [b - a for a, b in pairwise(arrivals)]
    assert len([gap for gap in gaps if gap > 0.02]) > 5, "the stream came in one piece"

    with api.stream("GET", f"{location}/events") as again:
        events = events_of(again)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    names = [name for _, name, _ in events]
    assert names[0] == "run.started" and names[-1] == "run.finished"
    assert {"message_start", "content_block_delta", "message_stop", "tool", "artifact"} <= set(names)
    assert all(data.get("type", name) == name for _, name, data in events if name.startswith(("message", "content")))
    with api.stream("GET", f"{location}/events", headers={"Last-Event-ID": "5"}) as rest:
        assert events_of(rest) == events[5:]
    finished = events[-1][2]
    view = api.get(location).json()
    assert view["state"] == "succeeded"
    assert view["result"]["result"] == finished["result"]
    assert view["artifacts"][0]["href"].startswith("/claude/runs/")


def test_who_has_seen_all_is_told_not_to_come_back(api: httpx.Client) -> None:
    """An EventSource comes back for ever after a stream's end, unless the answer is 204."""
    run = api.post("/invoke", json={"prompt": "hi"}).json()["id"]
    with api.stream("GET", f"/runs/{run}/events") as all_of_it:
        text = all_of_it.read().decode()
    assert text.startswith("retry: 1000\n")
    last = int(re.findall(r"^id: (\d+)$", text, re.M)[-1])
    for seen, status in ((last, 204), (last + 7, 204), (last - 1, 200), (0, 200), ("x", 200)):
        assert api.get(f"/runs/{run}/events", headers={"Last-Event-ID": str(seen)}).status_code == status, seen


def test_asking_for_the_head_of_a_stream_ends_no_run(api: httpx.Client) -> None:
    body = {"prompt": "[[delay 100]] [[say a stream of many words that take their time for all to see]]"}
    with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
        pieces = answer.iter_text()
        next(pieces)
        head = api.head(f"{answer.headers['location']}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert "event: run.finished" in "".join(pieces)


def test_what_was_cut_in_a_tools_event_says_so(api: httpx.Client) -> None:
    prompt = tool("Bash", command="head -c 25000 /dev/zero | tr '\\0' x") + tool("Bash", command="echo short")
    body = {"prompt": prompt, "tools": ["Bash"]}
    with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
        ended = [data for _, name, data in events_of(answer) if name == "tool" and data["state"] == "finished"]
    long, short = ended
    assert long["truncated"] is True and long["content"] == "x" * 20_000
    assert long["characters"] == 25_000
    assert "truncated" not in short and "href" not in short
    href = str(long["href"])
    whole = api.get(href)
    assert whole.headers["content-type"] == "application/json"
    assert whole.json() == {name: long[name] for name in ("id", "is_error", "state")} | {"content": "x" * 25_000}
    events, _, number = href.rpartition("/")
    assert events == f"{answer.headers['location']}/events"
    assert api.head(href).headers["content-length"] == whole.headers["content-length"]
    for wrong, status in (("999", 404), ("0", 422), ("x", 422), (number + "0" * 20, 422)):
        assert api.get(f"{events}/{wrong}").status_code == status, wrong


def test_an_error_in_a_stream_is_an_event(api: httpx.Client) -> None:
    with api.stream(
        "POST", "/invoke", json={"prompt": "[[status 401]]"}, headers={"Accept": "text/event-stream"}
    ) as answer:
        events = events_of(answer)
    assert events[-1][1] == "error"
    assert events[-1][2]["api_status"] == 401


def test_a_silent_stream_has_heartbeats(api: httpx.Client) -> None:
    with api.stream(
        "POST", "/invoke", json={"prompt": "[[delay 1200]] [[say a b]]"}, headers={"Accept": "text/event-stream"}
    ) as answer:
        assert ": heartbeat" in "".join(answer.iter_text())


def test_json_is_compressed_and_streams_are_not(api: httpx.Client) -> None:
    body = {"prompt": "[[large 20000]]"}
    with api.stream("POST", "/invoke", json=body, headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert len(json.loads(gzip.decompress(b"".join(answer.iter_raw())))["result"]) == 20_000
    headers = {"Accept-Encoding": "gzip", "Accept": "text/event-stream"}
    with api.stream("POST", "/invoke", json=body, headers=headers) as answer:
        assert "content-encoding" not in answer.headers
        answer.read()


def test_artifacts(api: httpx.Client) -> None:
    body = {
        "prompt": tool("Write", file_path="docs/a b.md", content="# Hello")
        + tool(
            "Bash",
            command="printf '%%PDF-1.7 x' > r.pdf; ln -s /etc/passwd link; mkfifo f; echo 1 > n.txt; printf 'x%.0s' {1..20000} > long.txt",
        ),
        "tools": ["Write", "Bash"],
    }
    pdf = api.post("/invoke", json=body, headers={"Accept": "application/pdf"})
    assert pdf.status_code == 200, pdf.text
    assert pdf.headers["content-type"] == "application/pdf"
    assert pdf.content == b"%PDF-1.7 x"
    run = pdf.headers["x-claude-run"]
    listed = {artifact["path"]: artifact for artifact in api.get(f"/runs/{run}/artifacts").json()}
    assert {path: found["type"] for path, found in listed.items()} == {
        "docs/a b.md": "text/markdown",
        "long.txt": "text/plain",
        "n.txt": "text/plain",
        "r.pdf": "application/pdf",
    }
    one = listed["docs/a b.md"]
    got = api.get(one["href"])
    assert got.text == "# Hello"
    assert got.headers["etag"] == f'"{hashlib.sha256(b"# Hello").hexdigest()}"' == f'"{one["sha256"]}"'
    assert api.get(one["href"], headers={"If-None-Match": got.headers["etag"]}).status_code == 304
    part = api.get(one["href"], headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.text) == (206, "Hel")
    outside = api.get(one["href"], headers={"Range": "bytes=99-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */7")
    assert outside.json()["type"].endswith(":range-not-satisfiable")
    for ignored in ("lines=2-4", "bytes=4-2", "bytes=x", "bytes="):
        assert api.get(one["href"], headers={"Range": ignored}).status_code == 200, ignored
    head = api.head(one["href"])
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("etag", "content-type", "content-length")} == {
        name: got.headers[name] for name in ("etag", "content-type", "content-length")
    }
    assert api.head(f"/runs/{run}/artifacts", params={"format": "zip"}).headers["content-type"] == "application/zip"
    assert api.head("/runs/run_of_nobody").status_code == 404
    long = api.get(listed["long.txt"]["href"], headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in long.headers and len(long.content) == 20_000
    piece = api.get(listed["long.txt"]["href"], headers={"Accept-Encoding": "gzip", "Range": "bytes=0-4999"})
    assert (piece.status_code, len(piece.content)) == (206, 5000)
    assert api.get(f"/runs/{run}/artifacts/link").status_code == 404
    assert api.get(f"/runs/{run}/artifacts/..%2f..%2fsecret").status_code == 404
    archive = api.get(f"/runs/{run}/artifacts", params={"format": "zip"})
    assert archive.headers["content-type"] == "application/zip"
    assert archive.content[:2] == b"PK"

    none = api.post("/invoke", json={"prompt": "hi"}, headers={"Accept": "application/pdf"})
    assert none.status_code == 406
    assert none.json()["artifacts"] == []


def test_denied_tools_are_told(api: httpx.Client) -> None:
    answer = api.post("/invoke", json={"prompt": tool("Write", file_path=".claude/settings.json", content="{}")})
    assert answer.status_code == 200
    assert answer.json()["artifacts"] == []


def test_health_and_metrics(invoker: Invoker, api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    assert "Claude Code" in api.get("/readyz").json()["checks"]["cli"]
    assert api.post("/invoke", json={"prompt": "x"}).status_code == 200
    text = api.get("/metrics").text
    assert 'claude_invoker_runs_total{outcome="ok"}' in text
    assert "claude_invoker_warm" in text
    assert api.get("/nothing").status_code == 404
    assert api.get("/invoke").headers["content-type"] == "application/problem+json"


def test_no_redirect_names_the_invokers_own_address(api: httpx.Client) -> None:
    answer = api.post("/invoke/", json={"prompt": "x"}, headers={"Host": "invoker:8100"})
    assert answer.status_code == 404 and "location" not in answer.headers
