"""Sends traces to the operator's collector (OTLP over HTTP), by OpenTelemetry's own library, which is loaded only then.

Spans of a run are made when it is over, and wait in a bounded queue (`sending`). Where the collector is away, or slow,
the oldest are dropped: no run waits for it. Headers, certificates, sampling and the queue are set by the library's own
variables (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_MAX_…`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from claude_invoker import __version__
from claude_invoker.passthrough.message import Message
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.tracing import spans
from claude_invoker.tracing.spans import Tells

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from claude_invoker.tracing.sending import Sending

_NAME = "claude-invoker"


class Tracing:
    """Without a collector in the settings nothing is traced, or loaded. Raises ValueError where the library is not
    installed, or one of its variables is no number."""

    def __init__(self, settings: Settings) -> None:
        self._tells = Tells(settings.otlp_subject, settings.otlp_content)
        self._sending: Sending | None = None
        if settings.otlp_endpoint is None:
            return
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider

            from claude_invoker.tracing.sending import Sending, exporter
        except ImportError as error:
            raise ValueError("INVOKER_OTLP_ENDPOINT needs: pip install 'claude-invoker[otlp]'") from error
        resource = Resource.create({"service.name": _NAME, "service.version": __version__})
        most, at_once = _number("OTEL_BSP_MAX_QUEUE_SIZE", 2048), _number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
        to = exporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
        self._sending = Sending(to, most, at_once)
        # Not kept: as long as it is there, each process that is forked looks for what its resource may be, by threads.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._sending)
        self._tracer = provider.get_tracer(_NAME, __version__)

    @property
    def is_on(self) -> bool:
        return self._sending is not None

    def record(self, run: Run) -> None:
        """A run that is over: within its request, where that waits for it; a job's is a trace of its own, with a link
        to the request that has queued it (OpenTelemetry's rule for messaging)."""
        if self._sending is None:
            return
        from opentelemetry.trace import Link, get_current_span

        asked = _context(run.traceparent)
        if not run.is_job:
            self._add([spans.of_run(run, self._tells)], asked)
            return
        caller = get_current_span(asked).get_span_context()
        self._add([spans.of_run(run, self._tells)], None, [Link(caller)] if caller.is_valid else [])

    def answered(self, message: Message) -> None:
        """A request to a model itself is over."""
        if self._sending is not None:
            self._add(spans.of_message(message, self._tells), _context(message.traceparent))

    def _add(self, found: Iterable[spans.Span], parent: Context | None, links: list[Any] | None = None) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        for each in found:
            span = self._tracer.start_span(
                _utf8(each.name),
                context=Context() if parent is None else parent,
                kind=SpanKind[each.kind.upper()],
                attributes={
                    name: _utf8(value) if isinstance(value, str) else value for name, value in each.attributes.items()
                },
                links=links or [],
                start_time=round(each.began * 1e9),
            )
            self._add(each.children, set_span_in_context(span))
            if each.error is not None:
                _failed(span, each.error)
            span.end(round(each.ended * 1e9))

    @contextlib.contextmanager
    def request(self, method: str, traceparent: str) -> Iterator[Request]:
        """The span of a request that is served in the block, as a part of its sender's trace."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(method, _context(traceparent), SpanKind.SERVER, {"http.request.method": method})
        try:
            yield Request(span)
        except BaseException as error:
            _failed(span, type(error).__name__)
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Sends what waits, for some seconds at most: what is not sent then is lost. Blocks."""
        if self._sending is not None:
            self._sending.shutdown()


class Request:
    """The span of a request that is under way."""

    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """By which what is done for it is a part of it."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier.get("traceparent", "")

    def routed(self, method: str, route: str) -> None:
        """`route`: the path with its parameters' names, not with what they were."""
        self._span.update_name(f"{method} {route}")
        self._span.set_attribute("http.route", route)

    def answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            _failed(self._span, str(status))


def _number(variable: str, default: int) -> int:
    """Raises ValueError."""
    given = os.environ.get(variable, "")
    if given and not (given.isascii() and given.isdigit() and int(given)):
        raise ValueError(f"{variable} must be a number from 1 on")
    return int(given or default)


def _context(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _utf8(text: str) -> str:
    """What cannot be written so would keep all from being sent that is sent with it, other runs' too."""
    return text.encode("utf-8", "replace").decode()


def _failed(span: Any, error: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, error))
    span.set_attribute("error.type", error)
