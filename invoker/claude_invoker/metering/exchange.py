"""What a run may ask for, and one request of it on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from msgspec.structs import replace

from claude_invoker.metering.account import Account
from claude_invoker.metering.bill import Bill, Ending, Reservation, bill, heard
from claude_invoker.metering.purse import Purse
from claude_invoker.metering.request import Asked
from claude_invoker.metering.usage import Meter, Used
from claude_invoker.metering.wire import Metered

UNREAD_TOKENS = 256
"""What an API that streams puts out in the second in which a busy proxy reads nothing."""
NOTED_TOKENS = UNREAD_TOKENS // 4
"""Of text, by which an answer has grown before it is written down anew: the line before holds more than that."""
_LONGEST = 200
"""Of a name that is told of, in characters."""

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Notes(Protocol):
    """Where it is written down what a run's requests cost (`journal.Journal`)."""

    def send(self, run: str, bound_usd: Decimal) -> int: ...
    def note(self, run: str, number: int, usd: Decimal) -> None: ...


@dataclass
class Grant:
    """What a token is worth while its run lasts."""

    run: str
    permits: Callable[[str], bool]
    """Whether the run may use a model."""
    requests_left: int
    account: Account
    notes: Notes
    features: frozenset[str] = frozenset()
    """What the run may use beside tokens of its models, see `claude_contract.features`."""
    purse: Purse | None = None
    """What it draws on in the ledger; None: nobody is billed."""
    changed: Callable[[str, Used], None] = lambda model, used: None
    """Told whenever anything of it or of its account has changed, with what has just been used of which model."""
    metered: Callable[[Metered], None] = lambda metered: None
    """Told of each request that is over."""
    settled: Callable[[], None] = lambda: None
    """Told when less of it is under way."""
    revoked: bool = False
    held: int = 0
    """Bytes of the bodies that were read and are not answered yet."""
    refused: str | None = None
    """Why a request of the run was not forwarded."""
    held_back: str | None = None
    """The same, for a reason that is not the run's."""
    api_status: int | None = None
    """The status of the API's last answer; None before the first, and where the API could not be reached."""
    unreachable: bool = False
    retry_after: str | None = None

    def note(self, sent: Sent, usd: Decimal) -> None:
        """What a request has cost so far."""
        if sent.number:
            self.notes.note(self.run, sent.number, usd)


@dataclass(frozen=True)
class Exchange:
    """One request of a run's, and how to answer it."""

    scope: dict[str, Any]
    asked: Asked
    grant: Grant
    send: Send
    gone: asyncio.Future[None]
    """Done when the run has left."""


@dataclass
class Sent:
    """A request that is under way, and what its answer has said so far."""

    reservation: Reservation
    stream: bool
    meter: Meter
    number: int = 0
    """By which its line is known; 0 before it is written, and the API has the request."""
    status: int | None = None
    ending: Ending = "left"
    is_unwritable: bool = False
    """Whether that line could not be written: the API does not get the whole of it."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    request_id: str = ""
    began: float = field(default_factory=time.time)
    first_s: float | None = None
    """When the model was first heard of."""
    _clock: float = field(default_factory=time.monotonic)
    _noted: tuple[int, int] = (0, 0)

    def is_news(self) -> bool:
        """Whether what its answer has said since this was last so is to be written down."""
        others, put_out = self._noted
        now = self.meter.others, self.meter.put_out
        if now[0] == others and now[1] - put_out < NOTED_TOKENS:
            return False
        self._noted = now
        return True

    def listen(self, chunk: bytes) -> None:
        self.meter.feed(chunk)
        if self.first_s is None and self.meter.put_out:
            self.first_s = time.monotonic() - self._clock

    def metered(self, run: str, bill: Bill) -> Metered:
        """What is told of it now that it is over."""
        return Metered(
            run,
            self.reservation.asked.model[:_LONGEST],
            self.began,
            time.monotonic() - self._clock,
            self.first_s,
            self.meter.model[:_LONGEST],
            self.status,
            self.ending if self.ending in ("complete", "left") else "broken",
            bill.used,
            bill.usd,
            self.request_id[:_LONGEST],
        )

    @property
    def bill(self) -> Bill:
        ending = self.ending if self.number else "not sent"
        return bill(self.reservation, self.meter, ending, self.status, stream=self.stream)

    @property
    def cut_off_usd(self) -> Decimal:
        """What is billed where this process ends before it reads on: with what may lie unread before it."""
        used = self.meter.used
        if not self.meter.is_counted:
            output = max(used.output, min(used.output + UNREAD_TOKENS, self.reservation.bound.output))
            used = replace(used, output=output)
        return heard(self.reservation, self.meter, used)
