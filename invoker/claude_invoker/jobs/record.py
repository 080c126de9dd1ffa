"""A job as it is stored and as it is shown. Pure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from claude_contract import versions
from claude_contract.ledger import Slot
from claude_invoker.caller import Caller
from claude_invoker.model import InvokeRequest, Permission, PermissionDecision, RunResult, TextBlock
from claude_invoker.place import Place
from claude_invoker.runs.deferral import Deferral
from claude_invoker.settings import Settings

JOB = "job_"
"""How the ids of jobs begin, and no run's that is none."""

VERSION = 1
"""Of records. One that does not say its version is of version 0: release 0.1.0 stored it."""

State = Literal["queued", "running", "waiting_for_approval", "done", "failed", "cancelled"]
Again = Literal["", "kept", "large", "attached", "deleted"]
"""What has become of a request whose job has failed or was cancelled: it is kept, or it is not, since it was too large,
had images or documents, or an operator has deleted it. "": nobody has said."""
_CALLER = TypeAdapter(Caller)
OVER = ("done", "failed", "cancelled")
ASKING = ("running", "waiting_for_approval")
"""In which calls of tools may wait to be allowed."""
TITLE = 160  # characters
# Of a record, what lists show: not the prompt and the answer, which may have megabytes.
SUMMARY = (
    "id", "subject", "tier", "title", "state", "created_at", "attempt", "started_at", "finished_at", "expires_at",
    "cost_usd", "model", "progress", "error", "repository", "tags", "retry_of", "retried_as", "v",
)  # fmt: skip


def new_id() -> str:
    return JOB + secrets.token_hex(12)


class JobRequest(InvokeRequest):
    """An invocation that may take its time."""

    callback_url: str | None = Field(
        default=None, max_length=2048, pattern=r"^https?://", description="Where a webhook reports the end"
    )


class Delivery(BaseModel):
    """One try to deliver a webhook."""

    at: float
    status: int | None = None
    error: str | None = None


class Progress(BaseModel):
    """How far a running job has come."""

    events: int = 0
    characters: int = 0
    last: str = ""
    tail: str = Field(default="", description="The end of the answer so far")


class Asks(BaseModel):
    """What a job's run has asked about."""

    waiting: list[Permission] = []
    decided: list[PermissionDecision] = []

    def fields(self) -> dict[str, str]:
        """Of a record. `asking` is how many wait: all that is asked may have megabytes."""
        return {"asks": self.model_dump_json(), "asking": str(len(self.waiting))}


class WaitsFor(BaseModel):
    """Why a job waits although it is its turn, or why the job of its caller does that comes before it."""

    limit: str = Field(description="The limit that is in the way, as refusals name it")
    pool: str | None = Field(default=None, description="The pool whose limit it is; null: the caller's own")
    until: float | None = Field(default=None, description="When the budget's period turns; null: when a run ends")


@dataclass(frozen=True)
class Turn:
    """When a job that is queued may start. `position`: after how many others at most."""

    position: int
    waits_for: WaitsFor | None


class JobView(BaseModel):
    """A job as `GET /jobs/{id}` shows it. Times are seconds since the epoch."""

    id: str
    subject: str | None = Field(default=None, description="Whose it is; null but for the role `admin`")
    state: State
    tier: str | None = None
    title: str = Field(default="", description="The beginning of the prompt")
    position: int | None = Field(default=None, description="Jobs that may start earlier, while it is queued")
    waits_for: WaitsFor | None = None
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    attempt: int = 0
    model: str = ""
    progress: Progress = Progress()
    waiting_for_approval: list[Permission] = Field(default=[], description="Calls of tools that wait to be allowed")
    decisions: list[PermissionDecision] = []
    cost_usd: float = 0.0
    result: RunResult | None = None
    error: dict[str, Any] | None = None
    deliveries: list[Delivery] = []
    tags: list[str] = []
    retry_of: str | None = Field(default=None, description="The job whose request it tries again")
    retried_as: str | None = Field(default=None, description="The last job that tries its request again")
    links: dict[str, str] = {}


class JobList(BaseModel):
    jobs: list[JobView]
    next: str | None = Field(default=None, description="Cursor of the next page; absent at the end")


@dataclass
class Job:
    """The stored record. `traceparent` links the run's trace to the request that queued it.

    `request` and `caller` are kept as JSON until somebody asks: lists of jobs are read without them.
    """

    id: str
    subject: str
    tier: str
    created_at: float
    request_json: str = ""
    caller_json: str = ""
    title: str = ""
    repository: str = ""  # its name
    tags: tuple[str, ...] = ()  # beside the request, of which releases that do not know them could read nothing
    retry_of: str = ""  # the job whose request it has
    retried_as: str = ""  # the last that has its request
    again: Again = ""  # once it is over
    callback: str = ""
    state: State = "queued"
    attempt: int = 0
    ticket: str = ""
    worker: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    cost_usd: float = 0.0
    model: str = ""
    cancel: bool = False
    work: str = ""  # where the run's files are while it runs, for whoever finds it orphaned
    progress: Progress = field(default_factory=Progress)
    waits_for: WaitsFor | None = None  # while it is queued
    result: RunResult | None = None
    error: dict[str, Any] | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    traceparent: str = ""
    asks: Asks = field(default_factory=Asks)
    deferral: Deferral | None = None  # what its next part goes on with, once it has been put away

    @classmethod
    def new(
        cls, request: JobRequest, caller: Caller, created_at: float, traceparent: str = "", retry_of: str = ""
    ) -> Job:
        return cls(
            id=new_id(),
            subject=caller.subject,
            tier=caller.tier or "",
            created_at=round(created_at, 6),
            request_json=request.model_dump_json(exclude_unset=True, exclude={"tags"}),
            caller_json=caller_json(caller),
            title=title_of(request),
            repository=caller.repository.name if caller.repository else "",
            tags=tuple(request.tags),
            retry_of=retry_of,
            callback=request.callback_url or "",
            traceparent=traceparent,
        )

    @cached_property
    def request(self) -> JobRequest:
        request = JobRequest.model_validate_json(self.request_json)
        return request.model_copy(update={"tags": list(self.tags)}) if self.tags else request

    @cached_property
    def caller(self) -> Caller:
        return caller_of(self.caller_json)

    def fields(self) -> dict[str, str]:
        """The record of a new job."""
        fields = {
            "v": str(VERSION),
            "id": self.id,
            "subject": self.subject,
            "tier": self.tier,
            "title": self.title,
            "state": self.state,
            "created_at": repr(self.created_at),
            "request": self.request_json,
            "caller": self.caller_json,
            "traceparent": self.traceparent,
        }
        some = {
            "callback": self.callback,
            "repository": self.repository,
            "tags": " ".join(self.tags),
            "retry_of": self.retry_of,
        }
        return fields | {name: value for name, value in some.items() if value}

    @classmethod
    def load(cls, stored: Mapping[str, str]) -> Job:
        """Raises UnknownVersion."""
        check_version(stored["id"], stored.get("v"))
        return cls(
            id=stored["id"],
            subject=stored["subject"],
            tier=stored["tier"],
            created_at=float(stored["created_at"]),
            request_json=stored.get("request", ""),
            caller_json=stored.get("caller", ""),
            title=stored.get("title", ""),
            repository=stored.get("repository", ""),
            tags=tuple(stored.get("tags", "").split()),
            retry_of=stored.get("retry_of", ""),
            retried_as=stored.get("retried_as", ""),
            again=stored.get("again", ""),  # type: ignore[arg-type]
            callback=stored.get("callback", ""),
            state=stored["state"],  # type: ignore[arg-type]
            attempt=int(stored.get("attempt", 0)),
            ticket=stored.get("ticket", ""),
            worker=stored.get("worker", ""),
            started_at=_number(stored.get("started_at")),
            finished_at=_number(stored.get("finished_at")),
            expires_at=_number(stored.get("expires_at")),
            cost_usd=float(stored.get("cost_usd", 0)),
            model=stored.get("model", ""),
            cancel=stored.get("cancel") == "1",
            work=stored.get("work", ""),
            progress=Progress.model_validate_json(stored.get("progress") or "{}"),
            waits_for=waits_in(stored.get("waits")),
            result=RunResult.model_validate_json(stored["result"]) if stored.get("result") else None,
            error=json.loads(stored["error"]) if stored.get("error") else None,
            deliveries=[Delivery(**d) for d in json.loads(stored.get("deliveries") or "[]")],
            traceparent=stored.get("traceparent", ""),
            asks=Asks.model_validate_json(stored.get("asks") or "{}"),
            deferral=Deferral.model_validate_json(stored["deferral"]) if stored.get("deferral") else None,
        )

    @property
    def place(self) -> Place:
        return Place(self.created_at, self.id)

    @property
    def waiting(self) -> list[Permission]:
        """Calls of tools that wait to be allowed."""
        return self.asks.waiting if self.state in ASKING else []

    @property
    def decisions(self) -> list[PermissionDecision]:
        return self.asks.decided if self.result is None else self.result.decisions

    def view(self, base: str, turn: Turn | None = None, *, names_caller: bool = False) -> JobView:
        """`base`: the prefix of links; `turn`: while it is queued; `names_caller`: to who sees others' jobs."""
        return JobView(
            id=self.id,
            subject=self.subject if names_caller else None,
            state=self.state,
            tier=self.tier or None,
            title=self.title,
            position=None if turn is None else turn.position,
            waits_for=None if turn is None else turn.waits_for,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            expires_at=self.expires_at,
            attempt=self.attempt,
            model=self.model,
            progress=self.progress,
            waiting_for_approval=self.waiting,
            decisions=self.decisions,
            cost_usd=self.cost_usd,
            result=self.result,
            error=self.error,
            deliveries=self.deliveries,
            tags=list(self.tags),
            retry_of=self.retry_of or None,
            retried_as=self.retried_as or None,
            links=self.links(base),
        )

    def links(self, base: str) -> dict[str, str]:
        here = f"{base}/jobs/{self.id}"
        return {"self": here, "events": f"{here}/events", "artifacts": f"{here}/artifacts"}


def waits_in(stored: str | None) -> WaitsFor | None:
    return WaitsFor.model_validate_json(stored) if stored else None


def retention(job: Job, settings: Settings) -> float:
    """Seconds for which a job that is over is kept."""
    return settings.tier_retention_s.get(job.tier, settings.retention_s)


def check_version(job_id: str, version: str | None) -> None:
    """Raises UnknownVersion."""
    versions.check(f"job {job_id}", version, VERSION)


def caller_json(caller: Caller) -> str:
    """What it leaves out are defaults: release 0.1.0 reads it, and `caller_of` what that release wrote."""
    stored = _CALLER.dump_python(caller, mode="json", exclude_defaults=True)
    if caller.slot is not None:
        stored["slot"] = caller.slot.claim()
    return json.dumps(stored)


def caller_of(stored: str) -> Caller:
    members = json.loads(stored)
    slot = members.pop("slot", None)
    caller = _CALLER.validate_python(members)
    return caller if slot is None else replace(caller, slot=Slot.from_claim(slot))


def title_of(request: InvokeRequest) -> str:
    """The beginning of the prompt, on one line."""
    text = request.prompt
    if request.messages:
        last = request.messages[-1].content
        text = last if isinstance(last, str) else " ".join(b.text for b in last if isinstance(b, TextBlock))
    return " ".join(text[:1000].split())[:TITLE]


def _number(text: str | None) -> float | None:
    return float(text) if text else None
