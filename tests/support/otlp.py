"""A receiver of OTLP traces over HTTP, by OpenTelemetry's own messages."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.waiting import HANG_S, wait_for


@dataclass(frozen=True)
class Span:
    """As it came, with what names things in plain."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """Spans of other traces."""
    error: str
    resource: dict[str, Any]


def accepted(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("content-length", "0")
    request.end_headers()


@dataclass
class Receiver:
    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    """Bodies as they came."""
    spans: list[Span] = field(default_factory=list)
    answering: threading.Event = field(default_factory=threading.Event)
    """Cleared: what comes is taken, and never answered."""
    held: threading.Event = field(default_factory=threading.Event)
    """Set when something has come meanwhile."""
    answer: Callable[[http.server.BaseHTTPRequestHandler], None] = accepted

    def of(self, trace: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace == trace]

    def whole(self, trace: str, *names: str) -> dict[str, Span]:
        """The trace's spans by name, once there are those of these names."""
        wait_for(lambda: set(names) <= {span.name for span in self.of(trace)}, what=f"spans {names}")
        return {span.name: span for span in self.of(trace)}


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _read(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    tuple(link.span_id.hex() for link in span.links),
                    span.status.message,
                    _values(resource.resource.attributes),
                )


@contextmanager
def receiving() -> Iterator[Receiver]:
    received = Receiver()
    received.answering.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if not received.answering.is_set():
                received.held.set()
                received.answering.wait(HANG_S)
                return
            received.raw.append(body)
            if self.path == "/v1/traces":
                received.spans += _read(body)
            received.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield received
    received.answering.set()
    server.shutdown()
    server.server_close()
