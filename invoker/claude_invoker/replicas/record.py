"""What is known of a run outside of the process that runs it, and what that means to who asks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import orjson

from claude_contract.versions import check
from claude_invoker.model import OVER, Artifact, LeftOut, RunResult, RunView, State
from claude_invoker.problem import Problem
from claude_invoker.runs.events import Event, EventLog

VERSION = 2
"""Of records whose answer lies in the store; the others are of version 1."""
MAX_EVENTS = 1 << 20
"""Bytes that a run's events may take in its record, compressed; beyond it only the last one is kept."""
MAX_EVENTS_IN_STORE = 32 << 20
INLINE = 64 << 10
"""Bytes of answer and events that are kept in the record itself, though there is a store."""
LOST = Problem(503, "worker-lost", "the invoker that ran it is gone; the run may have had effects")


class RunRecord(msgspec.Struct, frozen=True):
    """A run's record. `view` (a RunView as JSON), `events` (see `pack`) and `last_event` are those of its end."""

    id: str
    subject: str
    owner: str
    """The replica that runs it."""
    state: State
    created_at: float
    view: bytes = b""
    events: bytes = b""
    last_event: int = 0
    v: int = 1
    body: str = ""
    """The name in the store of what has `view` and `events`, where they are not here."""

    @property
    def is_over(self) -> bool:
        return self.state in OVER


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(RunRecord).decode


class _Version(msgspec.Struct):
    v: int = 0


def encode(record: RunRecord) -> bytes:
    return _ENCODE(record)


def decode(stored: bytes) -> RunRecord:
    """Raises UnknownVersion for the record of another release."""
    check("a run's record", msgspec.msgpack.decode(stored, type=_Version).v, VERSION)
    return _DECODE(stored)


def pack(events: Iterable[Event], most: int | None = None) -> bytes:
    """Numbers, names and data, compressed. Empty where that is more than `most`; None: MAX_EVENTS."""
    packed = zlib.compress(msgspec.msgpack.encode([(event.id, event.name, event.data) for event in events]), 1)
    return packed if len(packed) <= (MAX_EVENTS if most is None else most) else b""


class Body(msgspec.Struct, frozen=True):
    """What is in the store of a record. `run` is its id, again: one body is never taken for another's."""

    run: str
    view: bytes
    events: bytes


_BODY = msgspec.msgpack.Decoder(Body)


def apart(known: RunRecord, name: str) -> tuple[RunRecord, bytes]:
    """The record with its body left out, and the body, which is to be kept by that name."""
    body = _ENCODE(Body(known.id, known.view, known.events))
    return msgspec.structs.replace(known, view=b"", events=b"", body=name, v=VERSION), body


def together(known: RunRecord, body: bytes) -> RunRecord:
    """The inverse. Raises ValueError for the body of another."""
    found = _BODY.decode(body)
    if found.run != known.id:
        raise ValueError("the body of another run")
    return msgspec.structs.replace(known, view=found.view, events=found.events, body="")


def small(known: RunRecord) -> RunRecord:
    """One that has to do without a store."""
    return known if len(known.events) <= MAX_EVENTS else msgspec.structs.replace(known, events=b"")


def unpack(packed: bytes) -> list[Event]:
    """The inverse; of nothing nothing."""
    if not packed:
        return []
    raw = msgspec.msgpack.decode(zlib.decompress(packed), type=list[tuple[int, str, bytes]])
    return [Event(*event) for event in raw]


@dataclass
class PastRun:
    """A run that is over, from its record: as far as its answer, its events and its artifacts go like a `Run`."""

    id: str
    subject: str
    owner: str
    shown: RunView
    events: EventLog
    watchers: int = field(default=0, init=False)
    grace_s: float = field(default=0.0, init=False)

    @property
    def is_over(self) -> bool:
        return True

    @property
    def created_at(self) -> float:
        return self.shown.created_at

    @property
    def result(self) -> RunResult | None:
        return self.shown.result

    @property
    def problem(self) -> Problem | None:
        return None if self.shown.error is None else Problem.of(self.shown.error)

    @property
    def model(self) -> str:
        return "" if self.result is None else self.result.model

    @property
    def cost_usd(self) -> float:
        return self.shown.cost_usd

    async def wait(self) -> RunResult:
        """As a `Run` does. Raises Problem."""
        if self.result is None:
            raise self.problem or Problem(500, "internal")
        return self.result

    @property
    def artifacts(self) -> list[Artifact]:
        return self.shown.artifacts

    @property
    def left_out(self) -> list[LeftOut]:
        return self.shown.left_out

    def view(self) -> RunView:
        return self.shown

    def cancel(self, reason: str) -> None:
        """Does nothing, as to any run that is over."""

    def cancel_for(self, by: str) -> None:
        """The same."""


def past(record: RunRecord) -> PastRun:
    """The run of a record that says how it ended."""
    shown = RunView.model_validate_json(record.view)
    known = unpack(record.events) or [_last_of(shown, record.last_event)]
    return PastRun(record.id, record.subject, record.owner, shown, EventLog.of(known))


def lost(record: RunRecord, tags: Iterable[str] = ()) -> RunRecord:
    """What becomes of the record of a run whose replica is gone. `tags`: the record has none before its end."""
    error = LOST.document()
    view = RunView(id=record.id, state="failed", created_at=record.created_at, error=error, tags=list(tags))
    return msgspec.structs.replace(
        record,
        state="failed",
        view=view.model_dump_json().encode(),
        # Nobody knows how many there were; who comes back has seen fewer.
        last_event=1 << 40,
    )


def _last_of(shown: RunView, number: int) -> Event:
    if shown.result is not None:
        return Event(number, "run.finished", orjson.dumps(shown.result.model_dump(mode="json")))
    document = (shown.error or {}) | {"run": shown.id, "cost_usd": shown.cost_usd}
    return Event(number, "error", orjson.dumps(document))
