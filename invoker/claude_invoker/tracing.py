"""Traces (OpenTelemetry, OTLP over HTTP): one span per run, off unless INVOKER_OTLP_ENDPOINT is set.

A run that a request waits for is a child of the request's span; a job's run is a trace of its own that links to the
request that queued it (W3C Trace Context; OpenTelemetry's rule for messaging). Names are those of the semantic
conventions for generative AI. Prompts and answers are never recorded.
"""

from __future__ import annotations

from typing import Any

from claude_invoker.runs.run import Run

STOP_S = 5.0


class Tracing:
    """`endpoint`: base URL of an OTLP receiver, such as http://collector:4318; None: nothing is traced."""

    def __init__(self, endpoint: str | None) -> None:
        self._provider: Any = None
        if endpoint is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "claude-invoker"}))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=STOP_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("claude-invoker")

    def record(self, run: Run) -> None:
        """The span of a run that is over."""
        if self._provider is None:
            return
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        asked = TraceContextTextMapPropagator().extract({"traceparent": run.traceparent})
        caller = get_current_span(asked).get_span_context()
        links = [Link(caller)] if run.is_job and caller.is_valid else []
        span = self._tracer.start_span(
            "invoke_agent claude",
            context=None if run.is_job else asked,
            kind=SpanKind.SERVER if not run.is_job else SpanKind.CONSUMER,
            links=links,
            start_time=round(run.created_at * 1e9),
            attributes=attributes(run),
        )
        if run.problem is not None and run.problem.kind != "cancelled":
            span.set_status(Status(StatusCode.ERROR, run.problem.kind))
        span.end(round((run.finished_at or run.created_at) * 1e9))

    def close(self) -> None:
        """Sends what waits, for some seconds at most. Blocks."""
        if self._provider is not None:
            self._provider.shutdown()


def attributes(run: Run) -> dict[str, str | int | float]:
    """Attributes of a run's span; `claude.*` where the conventions have no name."""
    found: dict[str, str | int | float] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.agent.name": "claude",
        "gen_ai.request.model": run.plan.model,
        "claude.run.id": run.id,
        "claude.tier": run.tier,
        "claude.cost_usd": run.cost_usd,
    }
    if run.model:
        found["gen_ai.response.model"] = run.model
    if run.session:
        found["gen_ai.conversation.id"] = run.session
    if run.result is not None:
        usage = run.result.usage
        cached = usage.cache_creation_input_tokens + usage.cache_read_input_tokens
        found["gen_ai.usage.input_tokens"] = usage.input_tokens + cached
        found["gen_ai.usage.output_tokens"] = usage.output_tokens
    if run.problem is not None:
        found["error.type"] = run.problem.kind
    return found
