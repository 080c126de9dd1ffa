"""What a collector has of runs: the real CLI and real git, in a real invoker, and an OTLP receiver."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from claude_contract.attestation import Signer
from claude_contract.claims import body_hash
from claude_invoker.caller import Caller
from claude_invoker.metering.prices import full_name
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.tracing.export import Tracing
from docsite.trace import bars, svg
from tests.invoker.conftest import Invoker, StandInProcess, program, tool
from tests.support.attest import signed
from tests.support.git_server import GitServer, serving
from tests.support.otlp import Receiver, Span, receiving
from tests.support.waiting import HANG_S, wait_for
from tests.tracing.test_spans import run_of_alice

pytestmark = pytest.mark.xdist_group("traces")  # its invoker is started once

SECRET = "s" * 32
SIGNER = Signer("1", SECRET.encode(), {})
PLANTED = "planted-4c1d7"
GATEWAY = "b7ad6b7169203331"
ISSUER = "https://id.example"
SERVER, INTERNAL, CLIENT = 2, 1, 3
RUN, BASH = "invoke_agent claude", "execute_tool Bash"
MODEL = full_name("sonnet")  # asked for by its full name the CLI would ask first whether there is such a model
CHAT = f"chat {MODEL}"


@dataclass
class Desk:
    invoker: Invoker
    client: httpx.Client
    otlp: Receiver
    number: int = 0

    def post(self, document: dict[str, Any], **headers: str) -> tuple[str, httpx.Response]:
        """The trace that the gateway began for it, and the answer."""
        self.number += 1
        trace = f"{self.number:032x}"
        body = json.dumps({"model": "sonnet"} | document).encode()
        identity = {"sub": "alice", "who": {"idp": ISSUER}, "tier": "pro", "repo": {"name": "org/app"}}
        claims: dict[str, Any] = {"chk": ["jwt-claims", "rate-tiers"], "bsh": body_hash(body), **identity}
        attested = {
            "X-Claude-Attestation": signed(SIGNER, "POST", "/invoke", **claims),
            "Content-Type": "application/json",
            "traceparent": f"00-{trace}-{GATEWAY}-01",
        }
        return trace, self.client.post("/invoke", content=body, headers=attested | headers)


@pytest.fixture(scope="module")
def otlp() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving(tmp_path_factory.mktemp("traces") / "served") as found:
        found.create("org/app")
        yield found


@pytest.fixture(scope="module")
def commit(server: GitServer) -> str:
    return server.commit("org/app", {"a.txt": "one\n"})


@pytest.fixture(scope="module")
def desk(
    start_invoker: Callable[..., Invoker],
    tmp_path_factory: pytest.TempPathFactory,
    server: GitServer,
    commit: str,
    otlp: Receiver,
) -> Iterator[Desk]:
    file = tmp_path_factory.mktemp("traces") / "repositories.yaml"
    file.write_text(f"org/*:\n  url: {server.url}/{{repository}}.git\n")
    invoker = start_invoker(
        trust="attested", attestation_key=SECRET, repositories=file, otlp_endpoint=otlp.url, pool_max=0
    )
    with invoker.client() as client:
        yield Desk(invoker, client, otlp)
    invoker.stop()


def under(spans: list[Span], parent: Span) -> list[Span]:
    return sorted((span for span in spans if span.parent == parent.id), key=lambda span: span.began)


def test_one_trace_leads_from_the_gateway_to_the_tools(desk: Desk, commit: str) -> None:
    prompt = tool("Bash", command="cat a.txt") + '[[usage {"cache_read_input_tokens": 900}]]'
    trace, answer = desk.post({"prompt": prompt, "tools": ["Bash"]})
    assert answer.status_code == 200, answer.text
    found = desk.otlp.whole(trace, RUN, "POST /invoke")
    spans = desk.otlp.of(trace)
    request, run = found["POST /invoke"], found[RUN]
    assert (request.parent, request.kind) == (GATEWAY, SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/invoke",
        "http.response.status_code": 200,
    }
    assert (run.parent, run.kind) == (request.id, INTERNAL)
    children = under(spans, run)
    names = [child.name for child in children]
    assert [name for name in names if name in (CHAT, BASH)] == [CHAT, BASH, CHAT]
    assert {"fetch repository", "start process", "check out"} <= set(names)
    assert len(spans) == 2 + len(children), "nothing else is in it"
    for child in children:
        assert run.began <= child.began <= child.ended <= run.ended, child.name

    # The site's picture of one has all of them, each below what it is a part of.
    drawn = bars(spans)
    assert [(bar.name, bar.depth) for bar in drawn[:2]] == [("POST /invoke", 0), (RUN, 1)]
    assert sorted((bar.name, bar.depth) for bar in drawn[2:]) == sorted((name, 2) for name in names)
    assert all(bar.took > 0 for bar in drawn) and svg(drawn).count(CHAT) == 4, "twice in its title, twice beside a bar"

    document = answer.json()
    stamp = {
        "user.hash": Caller("alice", issuer=ISSUER).owner,
        "claude.tier": "pro",
        "claude.run.id": document["id"],
        "vcs.repository.name": "org/app",
    }
    assert [span.name for span in (run, *children) if not span.attributes.items() >= stamp.items()] == []
    assert run.attributes["vcs.ref.head.revision"] == commit
    assert run.attributes["claude.isolation"] == document["isolation"]
    assert run.attributes["claude.end"] == "succeeded"
    assert run.resource["service.name"] == "claude-invoker"

    chats = [child.attributes for child in children if child.name == CHAT]
    assert sum(round(chat["claude.cost_usd"] * 1e6) for chat in chats) == round(document["cost_usd"] * 1e6) > 0
    usage = document["usage"]
    for ours, theirs in (
        ("gen_ai.usage.output_tokens", "output_tokens"),
        ("gen_ai.usage.cache_read.input_tokens", "cache_read_input_tokens"),
    ):
        assert sum(chat[ours] for chat in chats) == run.attributes[ours] == usage[theirs] > 0
    assert all(chat["claude.api.request_id"].startswith("req_standin_") for chat in chats)
    assert all(chat["gen_ai.response.time_to_first_chunk"] > 0 for chat in chats)


def test_a_request_that_is_refused_is_a_span_without_a_run(desk: Desk) -> None:
    trace, answer = desk.post({"prompt": PLANTED, "model": 7})
    assert answer.status_code == 422
    found = desk.otlp.whole(trace, "POST /invoke")
    assert list(found) == ["POST /invoke"]
    assert found["POST /invoke"].attributes["http.response.status_code"] == 422


def test_an_error_of_the_api_is_one_in_the_trace(desk: Desk) -> None:
    trace, answer = desk.post({"prompt": "[[status 529]]"})
    assert answer.status_code == 503, answer.text
    desk.otlp.whole(trace, RUN, CHAT, "POST /invoke")
    chats = [span for span in desk.otlp.of(trace) if span.name == CHAT]
    assert {(chat.error, chat.attributes["http.response.status_code"]) for chat in chats} == {("529", 529)}
    run = desk.otlp.whole(trace, RUN)[RUN]
    assert run.error == run.attributes["error.type"] == answer.json()["type"].rpartition(":")[2]


def test_what_its_sender_has_not_sampled_is_not_traced(desk: Desk) -> None:
    unsampled, _ = desk.post({"prompt": "hi"}, traceparent=f"00-{'f' * 32}-{GATEWAY}-00")
    trace, _ = desk.post({"prompt": "hi"})
    desk.otlp.whole(trace, RUN, "POST /invoke")
    assert {"f" * 32, unsampled}.isdisjoint(span.trace for span in desk.otlp.spans)


def test_what_was_said_is_nowhere_in_what_is_sent(desk: Desk, stand_in: StandInProcess) -> None:
    command = tool("Bash", command=f"echo {PLANTED}-in; printf %s-out {PLANTED}")
    document = {"prompt": f"{PLANTED}-prompt {command}", "system": f"{PLANTED}-system", "tools": ["Bash"]}
    trace, answer = desk.post(document, tracestate=f"{PLANTED}=1", baggage=f"{PLANTED}=1")
    assert f"{PLANTED}-out" in answer.json()["result"]
    desk.otlp.whole(trace, RUN, "POST /invoke")
    asked = json.dumps([line for line in stand_in.lines() if PLANTED in json.dumps(line)])
    assert all(f"{PLANTED}-{part}" in asked for part in ("prompt", "system", "in", "out")), "it has been said"
    sent = b"".join(desk.otlp.raw)
    assert trace in {span.trace for span in desk.otlp.spans}
    assert [word for word in (PLANTED, "alice", ISSUER) if word.encode() in sent] == []


FORGED = """
import os, sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + '/v1/traces', data=b'', timeout=20)
    print('forged: sent')
except OSError as error:
    print('forged: refused')
print('context:', [name for name in os.environ if name.startswith(('OTEL', 'TRACE', 'CLAUDE_CODE_ENABLE'))])
"""


def test_a_run_reaches_no_collector_and_knows_no_trace(desk: Desk) -> None:
    """And the same bytes by somebody outside of a run do: the collector asks nobody who he is."""
    outside = subprocess.run([sys.executable, "-c", FORGED, desk.otlp.url], capture_output=True, text=True, check=True)
    assert "forged: sent" in outside.stdout
    before = len(desk.otlp.raw)
    command = program(FORGED, desk.otlp.url)
    trace, answer = desk.post({"prompt": tool("Bash", command=command), "tools": ["Bash"]})
    if answer.json()["isolation"] in ("none", "user"):
        pytest.skip("runs have the machine's network here")
    said = answer.json()["result"]
    assert "forged: refused" in said and "context: []" in said
    desk.otlp.whole(trace, RUN, "POST /invoke")
    assert trace not in said
    assert b"" not in desk.otlp.raw[before:]


def test_a_collector_that_hangs_costs_a_run_nothing(desk: Desk) -> None:
    desk.otlp.answering.clear()
    try:
        desk.otlp.held.clear()
        desk.post({"prompt": "[[say one]]"})
        wait_for(desk.otlp.held.is_set, what="a collector that has something and does not answer")
        for number in range(3):
            assert desk.post({"prompt": f"[[say {number}]]"})[1].json()["result"] == str(number)
        assert not desk.otlp.answering.is_set()
    finally:
        desk.otlp.answering.set()
    trace, _ = desk.post({"prompt": "[[say after]]"})
    desk.otlp.whole(trace, RUN, "POST /invoke")


def test_more_than_the_queue_holds_is_dropped_without_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    with receiving() as otlp:
        otlp.answering.clear()
        tracing = Tracing(Settings(otlp_endpoint=otlp.url))
        for number in range(100):
            tracing.record(run_called(f"run_{number}"))
        assert otlp.held.wait(HANG_S)
        otlp.answering.set()
        tracing.close()
        kept = {span.attributes["claude.run.id"] for span in otlp.spans}
    assert "run_99" in kept and len(kept) < 50, "the last ones, as many as there is room for"
    assert "alice" not in caplog.text


def test_a_name_that_cannot_be_written_keeps_nobodys_spans_from_being_sent() -> None:
    with receiving() as otlp:
        tracing = Tracing(Settings(otlp_endpoint=otlp.url, otlp_subject="plain"))
        odd, other = run_called("run_odd"), run_called("run_other")
        odd.subject = odd.tier = odd.model = "half \ud83d"
        tracing.record(odd)
        tracing.record(other)
        tracing.close()
        assert {span.attributes["claude.run.id"] for span in otlp.spans} == {"run_odd", "run_other"}
        assert "half ?" in {span.attributes["user.id"] for span in otlp.spans}


def test_a_collector_that_hangs_does_not_keep_an_invoker_from_its_end() -> None:
    with receiving() as otlp:
        otlp.answering.clear()
        tracing = Tracing(Settings(otlp_endpoint=otlp.url))
        tracing.record(run_of_alice())
        assert otlp.held.wait(HANG_S)
        tracing.record(run_of_alice())
        tracing.close()
        assert not otlp.spans


def run_called(name: str) -> Run:
    found = run_of_alice()
    found.id = name
    return found


def test_metrics_tell_what_traces_do_in_the_large(desk: Desk) -> None:
    desk.post({"prompt": '[[usage {"cache_read_input_tokens": 900}]]'})
    shown = desk.client.get("/metrics").text

    def value(name: str, **labels: str) -> float:
        written = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        pattern = re.escape(name + (f"{{{written}}}" if written else "")) + r" (\S+)$"
        (found,) = re.findall(pattern, shown, re.MULTILINE)
        return float(found)

    runs = value("claude_invoker_first_token_seconds_count", model=MODEL)
    assert value("claude_invoker_api_first_token_seconds_count", model=MODEL) >= runs >= 1
    assert value("claude_invoker_first_token_seconds_sum", model=MODEL) > 0
    assert value("claude_invoker_workspace_ready_seconds_count") >= 1
    assert value("claude_invoker_tokens_total", model=MODEL, tier="pro", kind="cache_read_input") >= 900
    assert value("claude_invoker_approvals_waiting", of="runs") == 0


WITHOUT = """
import sys
from claude_invoker.app import create_app
from claude_invoker.metering.prices import full_name
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
create_app(Settings(trust="open", isolation="none"))
print([name for name in sys.modules if name.startswith(("opentelemetry.exporter", "google.protobuf"))])
sys.modules["opentelemetry.exporter"] = None
try:
    create_app(Settings(trust="open", isolation="none", otlp_endpoint="http://127.0.0.1:1"))
except ValueError as error:
    print(error)
"""


def test_where_it_is_off_nothing_of_it_is_loaded_and_where_it_is_missing_it_says_what_to_install() -> None:
    answer = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[]", "INVOKER_OTLP_ENDPOINT needs: pip install 'claude-invoker[otlp]'"]
