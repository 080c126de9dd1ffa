"""What Prometheus sees of the invoker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from claude_contract.ledger import BudgetWarning, Standing
from claude_contract.ledger.figures import PERIOD_LABELS, POOL_LABELS, pool_gauges
from claude_invoker.cli.outcome import usage
from claude_invoker.isolation.strength import Strength
from claude_invoker.metering.figures import Figures
from claude_invoker.passthrough.message import Message
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.runs.watch import Kind

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)

_BOUNDS: tuple[tuple[str, Kind, str], ...] = (
    ("memory_bytes", "memory", "Memory"),
    ("processes", "processes", "Processes and threads"),
    ("tree_bytes", "tree", "Bytes on the disk"),
    ("tree_entries", "tree_entries", "Files"),
)


class Metrics:
    """A registry of its own, so that several applications in one process do not meet."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._runs = Counter("claude_invoker_runs_total", "Runs by outcome", ["outcome"], registry=self._registry)
        self._messages = Counter(
            "claude_invoker_messages_total",
            "Requests to models themselves by outcome",
            ["outcome", "tier"],
            registry=self._registry,
        )
        self._cost = Counter("claude_invoker_cost_usd_total", "Money spent", ["model", "tier"], registry=self._registry)
        self._cli_cost = Counter(
            "claude_invoker_cli_cost_usd_total", "What the CLIs said it was", ["model", "tier"], registry=self._registry
        )
        self._tokens = Counter(
            "claude_invoker_tokens_total", "Tokens used", ["model", "tier", "kind"], registry=self._registry
        )
        self._queue = Gauge(
            "claude_invoker_queue_depth", "Jobs that wait, by queue (tier)", ["queue"], registry=self._registry
        )
        self._age = Gauge(
            "claude_invoker_queue_age_seconds", "How long the oldest waiting job has waited", registry=self._registry
        )
        self._held = Gauge(
            "claude_invoker_held_bytes", "What runs (memory) and jobs (redis) hold", ["where"], registry=self._registry
        )
        allowed = Gauge("claude_invoker_held_allowed_bytes", "What they may hold", ["where"], registry=self._registry)
        self._held.labels("memory").set_function(lambda: engine.held_bytes)
        idle = Gauge("claude_invoker_sessions_kept", "Processes that wait for a turn", registry=self._registry)
        idle.set_function(lambda: engine.idle.count)
        waiting = Gauge(
            "claude_invoker_store_waiting_runs", "Runs whose files the store does not have yet", registry=self._registry
        )
        waiting.set_function(lambda: 0 if engine.keeping.outbox is None else len(engine.keeping.outbox.runs))
        kept = Gauge("claude_invoker_disk_bytes", "What is on this disk", ["kind"], registry=self._registry)
        may = Gauge("claude_invoker_disk_allowed_bytes", "What may be, 0: any", ["kind"], registry=self._registry)
        kept.labels("trees").set_function(lambda: engine.watch.trees)
        for each in engine.disk.used:
            kept.labels(each).set_function(partial(engine.disk.used.__getitem__, each))
        for of_kind, bounds in engine.settings.on_disk.items():
            may.labels(of_kind).set(bounds.in_all)
        for where in ("memory", "redis"):
            allowed.labels(where).set(engine.settings.held_in_all)
        self._warnings = Counter(
            "claude_invoker_budget_warnings_total",
            "Budgets of which so many percent were used, seen here first, each once in its period",
            ["pool", "budget", "percent"],
            registry=self._registry,
        )
        self._pool_usd = Gauge(
            "claude_invoker_pool_usd",
            "Money of the pools of runs that were here lately, in US dollars",
            POOL_LABELS,
            registry=self._registry,
        )
        self._pool_period = Gauge(
            "claude_invoker_pool_period_timestamp_seconds",
            "Edges of their budgets' periods",
            PERIOD_LABELS,
            registry=self._registry,
        )
        self._mcp = Counter(
            "claude_invoker_mcp_calls_total",
            "Calls of MCP servers that the invoker stands in front of",
            ["server", "outcome"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "claude_invoker_run_seconds", "Duration of runs", buckets=_SECONDS, registry=self._registry
        )

        self._first_token = Histogram(
            "claude_invoker_first_token_seconds",
            "From a run's beginning to its model's first words",
            ["model"],
            buckets=_SHORT_S,
            registry=self._registry,
        )
        self._api_first_token = Histogram(
            "claude_invoker_api_first_token_seconds",
            "From a request to the API to the model's first words, of answers that are streams",
            ["model"],
            buckets=_SHORT_S,
            registry=self._registry,
        )
        self._workspace = Histogram(
            "claude_invoker_workspace_ready_seconds",
            "How long runs have waited for their repository",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._approvals = Gauge(
            "claude_invoker_approvals_waiting",
            "Calls of tools that somebody has to allow: of runs that are here, and of all jobs",
            ["of"],
            registry=self._registry,
        )
        self._approvals.labels("runs").set_function(
            lambda: sum(len(run.permissions.waiting) for run in engine.runs.values() if not run.is_job)
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"claude_invoker_{name}", text, registry=self._registry)

        gauge("running", "Runs in progress").set_function(lambda: engine.running)
        gauge("waiting", "Runs waiting for a place").set_function(lambda: engine.waiting)
        gauge("leases", "Leases of the gateway's ledger held by runs").set_function(
            lambda: sum(run.leased and not run.done.is_set() for run in engine.runs.values())
        )
        gauge("metering_up", "Whether the metering proxy is there: 1, or no request of a run is sent").set_function(
            lambda: engine.metering.obstacle is None
        )
        gauge("metering_starts", "How often the metering proxy was started").set_function(
            lambda: engine.metering.starts
        )
        gauge(
            "metering_held", "1: the ledger is away for too long, no request of a run that is billed is sent"
        ).set_function(lambda: engine.metering.held is not None)
        gauge("api_requests", "Requests of runs to the API that are under way").set_function(
            lambda: sum(engine.metering.under_way.values())
        )
        strengths = ", ".join(f"{strength:d} {strength.label}" for strength in Strength)
        gauge("isolation", f"Strength of the boundary around a run: {strengths}").set_function(
            lambda: engine.boundary.strength
        )
        for name, kind, text in _BOUNDS:
            gauge(f"run_{name}", f"{text} of the run that has the most").set_function(partial(engine.watch.most, kind))
            gauge(f"run_{name}_allowed", f"{text} that a run may have, 0: any").set(engine.watch.bounds.of(kind))
        gauge("egress_led", "Connections of runs that were led to a host").set_function(
            lambda: engine.filters.traffic.led
        )
        gauge("egress_refused", "Connections of runs that were not").set_function(
            lambda: engine.filters.traffic.refused
        )
        gauge("egress_bytes", "Bytes that runs have moved to and from hosts").set_function(
            lambda: engine.filters.traffic.bytes
        )
        gauge("warm", "Warm processes").set_function(lambda: engine.pool.warm)
        gauge("pool_hits", "Runs that found a warm process").set_function(lambda: engine.pool.hits)
        gauge("pool_misses", "Runs that started one").set_function(lambda: engine.pool.misses)

    def observe(self, run: Run) -> None:
        end = run.problem.kind if run.problem is not None else "ok" if run.deferral is None else "deferred"
        self._runs.labels(end).inc()
        model, tier = run.model or "none", run.tier or "none"
        self._cost.labels(model, tier).inc(run.cost_usd)
        self._cli_cost.labels(model, tier).inc(run.cli_cost_usd)
        self._asked(run.account, tier)
        if run.first_token_s is not None:
            self._first_token.labels(model).observe(run.first_token_s)
        if run.workspace_s is not None:
            self._workspace.observe(run.workspace_s)
        if run.relay is not None:
            for (server, outcome), calls in run.relay.calls.items():
                self._mcp.labels(server, outcome).inc(calls)
        self._duration.observe((run.finished_at or run.created_at) - run.created_at)

    def answered(self, message: Message) -> None:
        """A request to a model itself is over, and its cost is known."""
        tier = message.caller.tier or "none"
        self._messages.labels(message.outcome, tier).inc()
        self._asked(message.figures, tier)
        self._cost.labels(next(iter(message.figures.used), "") or "none", tier).inc(message.cost_usd)

    def _asked(self, figures: Figures, tier: str) -> None:
        """What was asked of the API, by the models that have answered."""
        for model, used in figures.used.items():
            for field, tokens in usage(used).model_dump().items():
                self._tokens.labels(model or "none", tier, field.removesuffix("_tokens")).inc(tokens)
        for request in figures.requests:
            if request.first_s is not None:
                self._api_first_token.labels(request.answered_by or "none").observe(request.first_s)

    def queue(self, waiting: Mapping[str, int], oldest_s: float | None, held: int, approvals: int) -> None:
        """Jobs that wait, by queue, as Redis counts them now, how long the oldest has waited, what all jobs hold, and
        how many of their calls wait to be allowed."""
        self._approvals.labels("jobs").set(approvals)
        self._held.labels("redis").set(held)
        self._age.set(oldest_s or 0.0)
        self._queue.clear()
        for queue, jobs in waiting.items():
            self._queue.labels(queue).set(jobs)

    def warned(self, warning: BudgetWarning) -> None:
        """A budget is nearly used up, and this process is the first to tell."""
        self._warnings.labels(warning.pool, warning.figures.budget.name, str(warning.percent)).inc()

    def pools(self, pools: Iterable[tuple[str, str, Standing]]) -> None:
        """Tag, key and state of each pool, as the ledger has it now."""
        self._pool_usd.clear()
        self._pool_period.clear()
        for tag, key, standing in pools:
            for family, gauges in zip(
                (self._pool_usd, self._pool_period), pool_gauges(tag, key, standing), strict=True
            ):
                for gauge in gauges:
                    family.labels(*gauge.labels).set(gauge.value)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that the client asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
