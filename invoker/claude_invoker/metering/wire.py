"""What the invoker and the metering proxy say to each other: values, as lines of JSON on a socket pair.

A line has `MAX_LINE` bytes at most. What has descriptors with it (`Handed`) comes by another pair, a packet each. Both
ends are of one release, since one starts the other; the version is checked all the same. Amounts are US dollars, exact.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import msgspec

from claude_invoker.metering.usage import Used

VERSION = 7
MAX_LINE = 1 << 20
MAX_PACKET = 1 << 17


End = Literal["complete", "left", "broken"]
"""Of an answer. `left`: the client has, before the answer was; `broken`: it was broken off, or there was none."""


class Upstream(msgspec.Struct, frozen=True):
    """An address of the API, and the proxy by which it is reached, whose own address may have a password in it."""

    base_url: str
    proxy: str | None = None


class Setup(msgspec.Struct, tag=True, frozen=True):
    """The first thing that the proxy is told."""

    upstreams: tuple[Upstream, ...]
    """In the order in which they are asked."""
    prices: dict[str, dict[str, Any]]
    """The operator's, by model (`OwnPrice`)."""
    unknown_price: Literal["refuse", "dearest"]
    certificates: str | None = None
    """A file of authorities that are trusted beside the usual ones."""
    version: int = VERSION


class Open(msgspec.Struct, tag=True, frozen=True):
    """From now on `token` is worth requests of this run. Opened again (the proxy before this one died) it goes on with
    what the journal says it has spent."""

    id: int
    run: str
    token: str
    lease: str | None
    """Of the gateway's ledger; None: nobody is billed."""
    cap_usd: Decimal
    models: tuple[str, ...] | None
    """None: any."""
    requests: int
    features: tuple[str, ...]
    is_new: bool
    """Whether nothing was ever asked or drawn by its lease."""


class Handed(msgspec.Struct, frozen=True):
    """One request whose answer the proxy writes itself, with the account for it. Two descriptors come with it: the
    client's connection, and what has the request's body. Answered by `Answered`, of the same id as `open`."""

    open: Open
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """As they go on to the API."""
    request_id: str = ""
    """The gateway's, for an answer that the API has not named."""


class Left(msgspec.Struct, tag=True, frozen=True):
    """The client of a request that was handed over has left."""

    run: str


class Close(msgspec.Struct, tag=True, frozen=True):
    """The token is worth nothing any more. Answered when no request of the run is under way, or after `within_s`."""

    id: int
    run: str
    within_s: float


class Booked(msgspec.Struct, tag=True, frozen=True):
    """The ledger has all that the run has cost."""

    run: str
    is_new: bool
    """Whether it did not have it before."""


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Requests of runs that are billed are refused for this reason; None: not any more."""

    reason: str | None


class Ask(msgspec.Struct, tag=True, frozen=True):
    """`owed`: what ended runs owe, also those of proxies that are no more. `spent`: by `run` and `lease`."""

    id: int
    what: Literal["owed", "spent"]
    run: str = ""
    """Its id, whichever attempt."""
    lease: str | None = None


class Drawn(msgspec.Struct, tag=True, frozen=True):
    """The answer to `Draw`: what the run's requests may cost now. Otherwise the request must not be sent: a budget is
    `refused`, or nothing can be said now (`held`). `fleeting`: it is refused for what requests of others may cost, of
    which some comes back when they are answered. `blocked`: it is for an admin's sake, and for no budget's."""

    id: int
    micro_usd: int
    refused: str | None = None
    held: str | None = None
    fleeting: bool = False
    blocked: bool = False


class Serve(msgspec.Struct, tag=True, frozen=True):
    """It knows all runs that go on: their requests are answered from now on. Until then they wait to be taken: one that
    it does not know yet would be told that it may not ask, which ends the run."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The proxy has its key, its prices and its journal."""

    version: int = VERSION


class Done(msgspec.Struct, tag=True, frozen=True):
    """The answer to `Open`, where `refused` says why not, and to `Close`, where `final` says whether all that the run
    has cost is known."""

    id: int
    final: bool = True
    refused: str | None = None


class Taken(msgspec.Struct, tag=True, frozen=True):
    """What was handed over of this run is here: what is said of the run from now on is about it."""

    run: str


class Answered(msgspec.Struct, tag=True, frozen=True):
    """The answer to `Handed`: how the one on the client's connection has ended. `refused`: why there is none."""

    id: int
    end: End = "broken"
    refused: str | None = None


class Debt(msgspec.Struct, frozen=True):
    run: str
    lease: str
    micro_usd: int


class Owed(msgspec.Struct, tag=True, frozen=True):
    id: int
    debts: tuple[Debt, ...]


class Spent(msgspec.Struct, tag=True, frozen=True):
    """`micro_usd`: None where no journal knows the run."""

    id: int
    micro_usd: int | None


class Draw(msgspec.Struct, tag=True, frozen=True):
    """What a run draws on its budgets in the gateway's ledger; amounts as in `claude_contract.ledger.Draw`."""

    id: int
    run: str
    cost_micro_usd: int
    under_way_micro_usd: int
    least_micro_usd: int
    most_micro_usd: int


class Told(msgspec.Struct, tag=True, frozen=True):
    """A run's account has changed: all of it but `used`, which is what has come to `model` now."""

    run: str
    spent_usd: Decimal
    under_way: int
    exhausted: bool = False
    budget: str = ""
    blocked: bool = False
    refused: str | None = None
    held: str | None = None
    api_status: int | None = None
    unreachable: bool = False
    retry_after: str | None = None
    model: str = ""
    used: Used = Used()


class Metered(msgspec.Struct, tag=True, frozen=True):
    """A request of a run to the API is over, and this is what it was. Nobody but the proxy says so."""

    run: str
    model: str
    """That was asked for."""
    began: float
    """When it was sent, in seconds since 1970."""
    seconds: float
    first_s: float | None = None
    """After which the model's first words, thoughts or calls came; None: it has said nothing, or not in a stream."""
    answered_by: str = ""
    status: int | None = None
    """Of the API; None: it could not be reached."""
    end: End = "complete"
    used: Used = Used()
    usd: Decimal = Decimal(0)
    """With what other models have cost for it, which are not in `used`."""
    request_id: str = ""
    """The API's."""


ToProxy = Setup | Open | Left | Close | Booked | Hold | Ask | Drawn | Serve
ToInvoker = Ready | Done | Taken | Answered | Owed | Spent | Told | Metered | Draw

_encoder = msgspec.json.Encoder(decimal_format="string")
to_proxy: msgspec.json.Decoder[ToProxy] = msgspec.json.Decoder(ToProxy)
to_invoker: msgspec.json.Decoder[ToInvoker] = msgspec.json.Decoder(ToInvoker)


def line(message: ToProxy | ToInvoker) -> bytes:
    """Raises ValueError for one that is too long."""
    encoded = _encoder.encode(message) + b"\n"
    if len(encoded) > MAX_LINE:
        raise ValueError(f"a message of {len(encoded)} bytes is too long for the metering proxy")
    return encoded
