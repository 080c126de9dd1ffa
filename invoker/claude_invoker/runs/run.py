"""The state of one execution, as everybody but the engine sees it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from claude_contract.ledger import Slot
from claude_invoker.cli.launcher import Ready
from claude_invoker.cli.messages import ToolCall, ToolResult
from claude_invoker.cli.process import NO_SERVERS, Servers
from claude_invoker.cli.tree import Checkout
from claude_invoker.egress.wire import Moved, Visit
from claude_invoker.mcp.relay import Relay
from claude_invoker.metering.figures import Figures
from claude_invoker.model import Artifact, Change, Check, LeftOut, Pushed, RepositoryAt, RunResult, RunView, State
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem
from claude_invoker.runs.agents import Agents
from claude_invoker.runs.deferral import Deferral
from claude_invoker.runs.events import EventLog
from claude_invoker.runs.permissions import Permissions
from claude_invoker.runs.steering import Steering

_log = logging.getLogger(__name__)
MOST_HOSTS = 100
MOST_CALLS = 250


BY_CALLER = "cancelled by its caller"
BY_ADMIN = "cancelled by an administrator"
BY_SOMEBODY = "cancelled"
"""By a subject that an invoker of the release before has not said."""
WANTED = (BY_CALLER, BY_ADMIN, BY_SOMEBODY)
"""Reasons that somebody has given, and no process."""


def who_cancelled(subject: str, by: str) -> str:
    """The reason that is told of a run, or a job, of that subject. Nobody but an admin cancels another's."""
    return BY_SOMEBODY if not by else BY_CALLER if by == subject else BY_ADMIN


def new_id() -> str:
    return "run_" + secrets.token_hex(12)


def digest_of(given: Mapping[str, Any]) -> str:
    """Of a tool's input: the SHA-256 of it as JSON with sorted members and no blanks."""
    return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass
class Called:
    """A call of a tool, as the CLI tells it: its name, and the digest of its input. Times are ours, in seconds since
    1970."""

    tool: str
    input: str
    id: str = ""
    began: float = 0.0
    ended: float | None = None
    is_error: bool = False


@dataclass(frozen=True)
class Step:
    """What a run has waited for until its model was asked, and from when to when, in seconds since 1970."""

    name: Literal["wait for a place", "fetch repository", "check out", "start process"]
    began: float
    ended: float


@dataclass
class Run:
    """`result`, `problem` or `deferral` is set once `done` is; `events` closes at the same moment."""

    id: str
    subject: str
    plan: Plan
    files: Path
    """Directory of the kept artifacts."""
    retention_s: float
    state: State = "waiting"
    created_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    owner: str = ""
    """Whose uploads it may name (`Caller.owner`)."""
    tier: str = ""
    team: str = ""
    route: str = ""
    """Kong's id of the route by which the request came."""
    request_id: str = ""
    isolation: str = ""
    """The boundary around it (`isolation.strength.Boundary.label`)."""
    traceparent: str = ""
    """The W3C trace context of the request that asked for the run."""
    egress: list[str] = field(default_factory=list)
    """Hosts that it was led to, each once, the first `MOST_HOSTS`."""
    is_job: bool = False
    retry_of: str = ""
    """The job that it tries again."""
    lease: str | None = None
    """In the gateway's ledger, held until done; None: nobody is billed."""
    slot: Slot | None = None
    """What the lease stands for."""
    account: Figures = field(default_factory=Figures)
    """What the metering proxy has told of it."""
    account_key: str = ""
    """Its name there, of this very attempt; empty before it has begun."""
    is_counted: bool = True
    """Whether all that it has cost is in `account`."""
    model: str = ""
    session: str | None = None
    cli_cost_usd: float = 0.0
    """What the CLI says it has cost, which is never billed: a tool of the run can make it say anything."""
    artifacts: list[Artifact] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    checkout: Checkout | None = None
    """What it works on, once that is known."""
    changes: list[Change] = field(default_factory=list)
    check: Check | None = None
    """The last that has ended."""
    repairs: int = 0
    """How often that has sent it back to the model."""
    patch: Path | None = None
    """Of all that it has changed, by a git of ours; None: nothing, or it cannot be told."""
    co_author: str = ""
    """Its caller, as commits name people."""
    pushed: Pushed | None = None
    result: RunResult | None = None
    problem: Problem | None = None
    events: EventLog = field(default_factory=EventLog)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    cancel_reason: str | None = None
    cancelled_by: str = ""
    """The subject who wanted it; "": nobody did."""
    used: set[str] = field(default_factory=set)
    """Names of the tools that it has called."""
    calls: list[Called] = field(default_factory=list)
    """The first `MOST_CALLS` of them, as the CLI tells it."""
    calls_in_all: int = 0
    steps: list[Step] = field(default_factory=list)
    """In the order in which they were over."""
    first_token_at: float | None = None
    """When its model's first words, thoughts or calls came, in seconds since 1970."""
    exceeded: Problem | None = None
    """Which of the machine's bounds it has gone over; it ends then."""
    work: Path | None = None
    """Where the run works, once it has a process."""
    servers: Servers = NO_SERVERS
    """Of MCP, that its process is told of."""
    relay: Relay | None = None
    """What stands between it and its MCP servers, where it has some."""
    permissions: Permissions = field(init=False)
    """Its calls of tools that somebody has to allow first."""
    earlier: Deferral | None = None
    """What it goes on with, where it was put away."""
    deferral: Deferral | None = None
    """What its next part goes on with, where it is put away: then it has neither a result nor a problem."""
    steering: Steering = field(init=False)
    """What its caller tells its model besides."""
    agents: Agents = field(default_factory=Agents)
    """Its subagents."""
    interrupting: Callable[[], None] | None = None
    """Ends what the model does now; None: it does nothing."""
    interrupted: bool = False
    stays: Ready | None = None
    """Its process, where that waits for the session's next turn."""
    watchers: int = 0
    """Clients that are attached to the run now (see `api.stream`)."""
    grace_s: float = 0.0
    """How long it goes on when its client is gone, and can come back by an Idempotency-Key."""

    def __post_init__(self) -> None:
        self.permissions = Permissions(
            self.plan.rules,
            self.plan.approval_timeout_s,
            self.subject,
            lambda name, said: self.events.append(name, said),
        )
        self.steering = Steering(lambda name, said: self.events.append(name, said))
        self.permissions.defers_after_s = self.plan.defers_after_s

    @property
    def is_over(self) -> bool:
        return self.done.is_set()

    @property
    def branch(self) -> str | None:
        """What is to be pushed."""
        return None if self.plan.push is None else self.plan.push.branch.replace("{run}", self.id)

    @property
    def leased(self) -> bool:
        return self.lease is not None

    @property
    def cost_usd(self) -> float:
        """By what the API has said so far, as it is booked."""
        return self.account.cost_usd

    async def wait(self) -> RunResult:
        """The result once there is one. Raises Problem where the run failed or was cancelled."""
        await self.done.wait()
        if self.problem is not None:
            raise self.problem
        assert self.result is not None
        return self.result

    @property
    def repository(self) -> RepositoryAt | None:
        found = self.checkout
        return None if found is None else RepositoryAt(name=found.name, ref=found.ref, commit=found.commit)

    def called(self, call: ToolCall) -> None:
        """Keeps what it does by which tool, but not the text of it."""
        self.used.add(call.name[:100])
        self.calls_in_all += 1
        if len(self.calls) < MOST_CALLS:
            self.calls.append(Called(call.name, digest_of(call.input), call.id, time.time()))

    def heard(self, result: ToolResult) -> None:
        """A call that is kept has its result."""
        call = next((each for each in reversed(self.calls) if each.id == result.id and each.ended is None), None)
        if call is not None:
            call.ended, call.is_error = time.time(), result.is_error

    @contextmanager
    def step(self, name: Literal["wait for a place", "fetch repository", "start process"]) -> Iterator[None]:
        """Keeps how long the block takes, where it does what it is for."""
        began = time.time()
        yield
        self.steps.append(Step(name, began, time.time()))

    @property
    def workspace_s(self) -> float | None:
        """How long it has waited for its repository; None: it works on none, or has not had it."""
        found = [step for step in self.steps if step.name in ("fetch repository", "check out")]
        return sum(step.ended - step.began for step in found) if found else None

    @property
    def first_token_s(self) -> float | None:
        """Until its model's first words, since it was asked for; None where there were none."""
        return None if self.first_token_at is None else max(0.0, self.first_token_at - self.created_at)

    def went_out(self, said: Visit | Moved) -> None:
        """Keeps and logs where the run goes."""
        if isinstance(said, Moved):
            return
        _log.info("egress run=%s subject=%r %s", self.id, self.subject, said.outcome)
        if said.address and said.destination not in self.egress and len(self.egress) < MOST_HOSTS:
            self.egress.append(said.destination)

    def cancel(self, reason: str) -> None:
        """Asks the run to end; `wait` tells when it has. Does nothing to a run that is over."""
        if not self.done.is_set() and self.task is not None and self.cancel_reason is None:
            self.cancel_reason = reason
            # Not before its first step: a task that is cancelled then takes none, and the run would never end.
            self.task.get_loop().call_soon(self.task.cancel)

    def cancel_for(self, by: str) -> None:
        """The same, for that subject ("": it is not known for whom)."""
        if self.cancel_reason is None:
            self.cancelled_by = by
        self.cancel(who_cancelled(self.subject, by))

    def interrupt(self) -> None:
        """Ends what the model does now, and with it the run, which has a result all the same. Raises Problem 409."""
        if self.interrupting is None:
            raise Problem(409, "conflict", "the model is not at work")
        if not self.interrupted:
            self.interrupted = True
            self.interrupting()

    def exceed(self, problem: Problem) -> None:
        """Ends the run with this problem. Does nothing to a run that is over."""
        if not self.done.is_set():
            self.exceeded = problem
            self.cancel(str(problem))

    def view(self) -> RunView:
        return RunView(
            id=self.id,
            state=self.state,
            created_at=self.created_at,
            finished_at=self.finished_at,
            cost_usd=self.cost_usd,
            result=self.result,
            error=None if self.problem is None else self.problem.document(),
            artifacts=self.artifacts,
            left_out=self.left_out,
            isolation=self.isolation,
            egress=self.egress,
            repository=self.repository,
            changes=self.changes,
            check=self.check,
            pushed=self.pushed,
            permissions=self.permissions.waiting,
            decisions=list(self.permissions.decided.values()),
            tags=list(self.plan.tags),
        )
