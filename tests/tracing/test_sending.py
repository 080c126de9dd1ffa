"""What waits for the collector, and what the collector may answer: a hostile one costs no run anything, and no memory."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from claude_invoker.settings import Settings
from claude_invoker.tracing import sending
from claude_invoker.tracing.export import Tracing
from tests.invoker.conftest import StandInProcess
from tests.invoker.ordinary import folder_of_its, started
from tests.support.otlp import Receiver, receiving
from tests.support.waiting import HANG_S, wait_for
from tests.tracing.test_spans import called, run_of_alice

MB = 1 << 20


@contextmanager
def tracing(otlp: Receiver, **settings: object) -> Iterator[Tracing]:
    found = Tracing(Settings(otlp_endpoint=otlp.url, **settings))  # type: ignore[arg-type]
    yield found
    found.close()


FORKED = """
import os, subprocess
from claude_invoker.settings import Settings
from claude_invoker.tracing.export import Tracing
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor
def said():
    os.write(1, b"%d " % len(os.listdir("/proc/self/task")))
kept = Tracing(Settings(otlp_endpoint="http://127.0.0.1:1"))
for _ in range(20):
    subprocess.Popen(["true"], preexec_fn=said).wait()
queue = BatchSpanProcessor(OTLPSpanExporter(endpoint="http://127.0.0.1:1"))
subprocess.Popen(["true"], preexec_fn=said).wait()
"""


def test_a_process_that_is_forked_has_one_thread() -> None:
    """The control: by the library's own queue it has two, before it becomes a run's."""
    answer = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1"] * 20 + ["2"]


@pytest.mark.slow
def test_runs_of_an_ordinary_users_invoker_have_networks_of_their_own_where_they_are_traced(
    stand_in: StandInProcess,
) -> None:
    def lacks(**settings: Any) -> str | None:
        with folder_of_its() as folder, started(stand_in, folder, **settings) as invoker, invoker.client() as api:
            found: str | None = api.get("/readyz").json()["checks"]["egress_lacks"]
            return found

    if obstacle := lacks():
        pytest.skip(obstacle)
    with receiving() as otlp:
        assert lacks(otlp_endpoint=otlp.url) is None


def endless(taken: list[int], most: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """An answer of `most` bytes; notes how many were taken of each."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-length", str(most))
        request.end_headers()
        sent = 0
        try:
            while sent < most:
                sent += request.wfile.write(b"x" * MB)
        except OSError:
            request.close_connection = True
        taken.append(sent)

    return answer


def test_of_an_answer_without_end_only_the_beginning_is_read() -> None:
    with receiving() as otlp:
        taken = list[int]()
        otlp.answer = endless(taken, 64 * MB)
        with tracing(otlp) as found:
            found.record(run_of_alice())
            wait_for(lambda: len(taken) == 1, what="the end of an answer")
            found.record(run_of_alice())
            wait_for(lambda: len(taken) == 2, what="the end of the next")
        assert max(taken) < 32 * MB, "what the kernel keeps of it, at most"
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{otlp.url}/v1/traces")))
        provider.get_tracer("control").start_span("control").end()
        provider.shutdown()
        wait_for(lambda: len(taken) == 3, what="the end of an answer")
        assert taken[2] == 64 * MB, "the control: the library by itself reads all"


def test_a_collector_that_sends_elsewhere_is_not_followed_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with receiving() as otlp, receiving() as elsewhere:

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(307)
            request.send_header("location", f"{elsewhere.url}/v1/traces")
            request.send_header("content-length", "0")
            request.end_headers()

        otlp.answer = answer
        with tracing(otlp) as found:
            found.record(run_of_alice())
            wait_for(lambda: "it is at another address" in caplog.text, what="a word about it")
        assert otlp.raw and not elsewhere.raw


@pytest.mark.slow  # the seconds that an end may take
def test_an_answer_that_comes_a_byte_at_a_time_keeps_nobody_from_his_end() -> None:
    left = threading.Event()
    with receiving() as otlp:

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            otlp.held.set()
            try:
                while not left.wait(0.01):
                    request.wfile.write(b"x")
            except OSError:
                left.set()

        otlp.answer = answer
        with tracing(otlp) as found:
            found.record(run_of_alice())
            assert otlp.held.wait(HANG_S)
        left.set()


def test_contents_are_sent_in_pieces_that_a_collector_takes() -> None:
    """Many small runs with one that has said much: else all would be refused for it."""
    with receiving() as otlp, tracing(otlp, otlp_content=True) as found:
        large = run_of_alice()
        for number in range(240):
            called(large, f"c{number}", {"command": "\U0001f600" * 20_000}, "\U0001f600" * 20_000)
        found.record(large)
        last = run_of_alice()
        last.id = "run_last"
        found.record(last)
        wait_for(lambda: otlp.spans and otlp.spans[-1].attributes["claude.run.id"] == "run_last", what="all spans")
        assert max(map(len, otlp.raw)) < 20 * MB < sum(map(len, otlp.raw))


def test_what_waits_for_a_collector_that_hangs_is_bounded_in_size() -> None:
    with receiving() as otlp:
        otlp.answering.clear()
        with tracing(otlp, otlp_content=True) as found:
            large = run_of_alice()
            for number in range(240):
                called(large, f"c{number}", {"command": "x" * 20_000}, "x" * 20_000)
            for _ in range(8):
                found.record(large)
            assert otlp.held.wait(HANG_S)
            otlp.answering.set()
        kept = sum(len(str(value)) for span in otlp.spans for value in span.attributes.values())
        assert kept < 1.5 * sending.MOST_CHARACTERS < 8 * 240 * 32_768 / 4, "with what was on its way"


def test_a_queue_of_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("0", "-1", "many", "\u0663"):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", given)
        with pytest.raises(ValueError, match="OTEL_BSP_MAX_QUEUE_SIZE"):
            Tracing(Settings(otlp_endpoint="http://127.0.0.1:1"))
