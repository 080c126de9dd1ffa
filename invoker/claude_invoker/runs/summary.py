"""A run in short, as lists have it. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from claude_contract.ledger import Lease
from claude_contract.versions import UnknownVersion, check
from claude_invoker.metering.models import permits
from claude_invoker.model import OVER, ListedState
from claude_invoker.place import Place
from claude_invoker.runs.run import Run

VERSION = 1


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """Of a run that goes on, what was known when it began."""

    id: str
    state: ListedState
    created_at: float
    owner: str = ""
    """The replica that runs it."""
    finished_at: float | None = None
    model: str = ""
    session: str | None = None
    repository: str | None = None
    cost_usd: float = 0.0
    subject: str = ""
    tier: str = ""
    first_token_s: float | None = None
    tags: tuple[str, ...] = ()
    pools: tuple[tuple[str, str], ...] = ()
    """Of each that it counted for the name, and whose it is."""

    @property
    def place(self) -> Place:
        return Place(self.created_at, self.id)

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def summary_of(run: Run, owner: str = "") -> Summary:
    wanted, is_over = run.plan, run.state in OVER
    session = run.session or (None if wanted.session == "new" else wanted.session)
    return Summary(
        run.id,
        run.state if run.state in OVER else "running",
        run.created_at,
        owner,
        run.finished_at,
        run.model or wanted.model,
        session,
        None if wanted.repository is None else wanted.repository.name,
        run.cost_usd if is_over else 0.0,
        run.subject,
        run.tier,
        run.first_token_s,
        wanted.tags,
        () if run.lease is None else Lease.parse(run.lease).shared.names,
    )


@dataclass(frozen=True)
class Filter:
    """Which of a subject's runs are asked for; None: whichever. `since` and `until`, which is the first second that is
    not asked for any more, are those of their beginning. `model` is a name, or an alias such as `haiku`."""

    state: ListedState | None = None
    since: float | None = None
    until: float | None = None
    session: str | None = None
    repository: str | None = None
    model: str | None = None
    tag: str | None = None

    def takes(self, run: Summary) -> bool:
        return (
            self.state in (None, run.state)
            and (self.since is None or run.created_at >= self.since)
            and (self.until is None or run.created_at < self.until)
            and self.session in (None, run.session)
            and self.repository in (None, run.repository)
            and (self.model is None or permits((self.model,), run.model))
            and (self.tag is None or self.tag in run.tags)
        )


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_SUMMARY = msgspec.msgpack.Decoder(Summary).decode


def encode(summary: Summary) -> bytes:
    return _ENCODE((VERSION, summary))


def known(stored: Iterable[bytes]) -> list[Summary]:
    """Without those of another release."""
    found = []
    for each in stored:
        with contextlib.suppress(msgspec.MsgspecError, UnknownVersion):
            version, inside = _DECODE(each)
            check("a run's summary", version, VERSION)
            found.append(_SUMMARY(inside))
    return found


def given_up(stored: bytes | None) -> bytes:
    """What becomes of the summary of a run whose replica is gone; empty where there is none."""
    return b"".join(encode(msgspec.structs.replace(each, state="failed")) for each in known([stored] if stored else []))
