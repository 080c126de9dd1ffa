"""The ledger's values: what is asked of a store, and what it answers. No I/O.

Money is whole micro-USD, times are milliseconds, and names say so.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from enum import Enum
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from msgspec import Struct

from claude_contract import versions
from claude_contract.ledger.limits import NO_SLOT, NO_WINDOWS, Budget, Slot, Window, Windows

VERSION = 1
"""Of the values in Redis. Leases and windows say it; a value that does not is version 0, what release 0.1.0 wrote."""

NAMESPACE = "claude"
MAX_SUBJECT_KEY = 96  # characters
MAX_POOL_KEY = 48  # of a claim's value in the key of a pool, or of the tag
MAX_POOLS = 4  # of one request
DEPLOYMENT = "*"
"""The hash tag of the whole deployment: nothing that is escaped looks like it."""
SETTLED_MS = 24 * 3600 * 1000  # for how long a repeated settlement is recognised
REST_MS = 90 * 1000
"""For how long what a run has drawn stays drawn when it has ended before its last requests were answered: longer than
the API is waited for, and what it has said is booked."""

Busy = Literal["reject", "queue", "later"]
"""Where all places are taken: refuse, or go on without a lease. `later`: take none now in any case."""


class LedgerUnavailable(Exception):
    """The store did not answer, or not as it should. The text is for logs and holds no secret."""


class UnreadableLedger(LedgerUnavailable):
    """The store answers, but what it holds of this subject cannot be read: another version's, or damaged."""


_MESSAGE = "m."
_MEMBER = re.compile(r"(?:v([0-9]+)\.)?[^ ]*:([0-9]+)")


class Shared(Struct, frozen=True):
    """What a request counts for besides its subject: pools, which have one hash tag with all subjects that share them,
    so that one script may take of all. Without a `tag` a subject is by itself, and its key is the tag."""

    tag: str = ""
    pools: tuple[str, ...] = ()  # their keys, at most MAX_POOLS

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Of each pool its name, and who shares it: the claim's value, behind that of the organisation where there is
        one; "" for everybody."""
        organisation = organisation_name(self.tag) if self.pools else ""
        named = [pool_name(key) for key in self.pools]
        return tuple([(name, ", ".join(filter(None, (organisation, of)))) for name, of in named])


ALONE = Shared()


def heads(namespace: str, subject_key: str, shared: Shared = ALONE) -> tuple[str, ...]:
    """What the keys of each account begin with: the subject's, then those of its pools."""
    if not shared.tag:
        return (f"{namespace}:{{{subject_key}}}:",)
    tagged = f"{namespace}:{{{shared.tag}}}:"
    return tuple([f"{tagged}{key}:" for key in (subject_key, *shared.pools)])


class Lease(Struct, frozen=True):
    """A place for one run and the money reserved for it. Its text form says all that is needed to end it."""

    namespace: str
    subject_key: str
    member: str  # "v1.<id>:<micro-USD>", as it stands in Redis; without "v1." where release 0.1.0 made it
    shared: Shared = ALONE

    @classmethod
    def new(
        cls, namespace: str, subject_key: str, micro_usd: int = 0, shared: Shared = ALONE, *, message: bool = False
    ) -> Lease:
        name = f"{_MESSAGE if message else ''}{secrets.token_urlsafe(12)}"
        return cls(namespace, subject_key, f"v{VERSION}.{name}:{micro_usd}", shared)

    @classmethod
    def parse(cls, text: str) -> Lease:
        """From an attestation's `lease`. Raises ValueError (UnknownVersion, where it is of another release)."""
        parts = text.split(" ") if isinstance(text, str) else []
        found = _MEMBER.fullmatch(parts[2]) if 3 <= len(parts) <= 4 + MAX_POOLS and all(parts) else None
        if found is None:
            raise ValueError("not a lease")
        versions.check("the lease", found[1], VERSION)
        namespace, subject_key, member, *rest = parts
        return cls(namespace, subject_key, member, Shared(rest[0], tuple(rest[1:])) if rest else ALONE)

    def __str__(self) -> str:
        tag = [self.shared.tag] if self.shared.tag else []
        return " ".join([self.namespace, self.subject_key, self.member, *tag, *self.shared.pools])

    @property
    def micro_usd(self) -> int:
        """What is reserved."""
        return reserved_by(self.member)

    def again(self) -> Lease:
        """Another one for the same."""
        return Lease.new(self.namespace, self.subject_key, self.micro_usd, self.shared, message=self.is_message)

    @property
    def rest(self) -> Lease:
        """What is left of it where its run has ended before its last requests were answered: they are like messages."""
        name = self.member.rpartition(":")[0].removeprefix(f"v{VERSION}.").removeprefix(_MESSAGE)
        return Lease(self.namespace, self.subject_key, f"v{VERSION}.{_MESSAGE}{name}:0", self.shared)

    @property
    def is_message(self) -> bool:
        """Whether it is a message's, which takes a place of those for messages."""
        return is_message(self.member)


def is_message(member: str) -> bool:
    """By a lease's member. No other has a second dot in front of its id."""
    return member.partition(".")[2].startswith(_MESSAGE)


def reserved_by(member: str) -> int:
    """The micro-USD that a lease reserves, by its member."""
    return int(member.rpartition(":")[2])


class Admit(Struct, frozen=True):
    """One request: count it in the windows, and take the lease with what `slot` says. All of it, or nothing.

    `pool_windows` and the slot's `pools` are as many as the pools of `shared`, or, where they set no limits, none.
    """

    namespace: str
    subject_key: str
    windows: Windows = NO_WINDOWS
    lease: Lease | None = None
    slot: Slot = NO_SLOT
    busy: Busy = "reject"
    shared: Shared = ALONE
    pool_windows: tuple[Windows, ...] = ()
    tier: str = ""  # whose limits an admin may have changed
    confirm_ms: int | None = None
    """How long the lease is held unless its holder confirms it (`acquire`); None: as long as the slot says."""
    message: bool = False
    """It is a request to a model itself: `windows` and `slot.concurrent` are those of messages, which are counted by
    themselves."""

    @property
    def ttl_ms(self) -> int:
        """How long the lease lives, unless it is renewed."""
        return self.slot.ttl_ms if self.confirm_ms is None else min(self.confirm_ms, self.slot.ttl_ms)


class Peek(Struct, frozen=True):
    """What a subject and its pools use, of which windows and budgets."""

    namespace: str
    subject_key: str
    windows: Windows = NO_WINDOWS
    slot: Slot = NO_SLOT
    shared: Shared = ALONE
    pool_windows: tuple[Windows, ...] = ()
    tier: str = ""
    message: bool = False
    """As in `Admit`."""


class Draw(Struct, frozen=True):
    """What a run has cost so far, and what its requests to the API may cost that are under way; with one more that is
    about to be sent `most`, and where that does not fit `least` at least. All in micro-USD, of the whole run: so it may
    be said twice, and what is said last holds."""

    cost_micro_usd: int
    under_way_micro_usd: int = 0
    least_micro_usd: int = 0
    most_micro_usd: int = 0
    tier: str = ""  # whose limits an admin may have changed


class Verdict(Enum):
    REFUSED = 0
    DRAWN = 1
    SETTLED = 2


class Drawn(NamedTuple):
    """The answer to `draw`: what the run's requests may cost now, and the budget of which the least is left."""

    verdict: Verdict
    micro_usd: int
    budget: str = ""  # its name, or `blocked`
    at: int = 0  # of whom, as in `Admission`
    reset_ms: int = 0  # until its period ends (rolling: until some of it leaves)
    fleeting: bool = False  # refused only for what others have drawn, some of which comes back when they are answered
    of_tier: bool = False  # `blocked`, as in `Admission`


class Quota(Struct, frozen=True):
    """One window's state: `reset_ms` until a place comes back; `over`: requests beyond its limit, which was lowered
    after they had been admitted."""

    window: Window
    remaining: int
    reset_ms: int
    over: int = 0


class Spent(NamedTuple):
    """One budget's state: what is booked, and `reset_ms` until its period ends (rolling: until some of it leaves)."""

    budget: Budget
    micro_usd: int
    reset_ms: int
    start_ms: int = 0  # of its period (Unix time)
    end_ms: int = 0  # 0: it is rolling, and ends now


class Standing(Struct, frozen=True):
    """One account's state. Without a lease asked for, only the windows'."""

    running: int = 0
    reserved_micro_usd: int = 0
    spent: tuple[Spent, ...] = ()
    quotas: tuple[Quota, ...] = ()


class Changed(NamedTuple):
    """A limit that an admin has changed for now (`live`)."""

    at: int  # of whom: 0 of the subject's own, else of the so many-th pool
    limit: str  # a window's or a budget's name, or `concurrent`
    value: int  # requests, runs, or micro-USD


class Blocked(NamedTuple):
    """An account that an admin has blocked for now (`live`)."""

    at: int  # of whom: 0 of the subject itself, else of the so many-th pool
    for_ms: int
    of_tier: bool = False  # and not the subject itself


class Admission(Struct, frozen=True):
    """The answer to `admit` and `acquire`. Quotas and budgets are what they are with what was `changed`."""

    admitted: bool
    queued: bool  # admitted, its lease is to be acquired when it starts
    exceeded: str  # the limit that refused: a window's or a budget's name, `concurrent` or `blocked`; "" for none
    at: int  # of whom: 0 of the subject's own, else of the so many-th pool
    wait_ms: int  # until it may pass; 0 where that depends on when a run ends
    own: Standing
    pools: tuple[Standing, ...] = ()
    changed: tuple[Changed, ...] = ()
    of_tier: bool = False  # it is the subject's tier that is `blocked`


class Usage(Struct, frozen=True):
    """The answer to `peek`. Of the subject's own money first the UTC day's and month's, then that of its budgets."""

    own: Standing
    pools: tuple[Standing, ...] = ()
    changed: tuple[Changed, ...] = ()
    blocked: tuple[Blocked, ...] = ()

    @property
    def running(self) -> int:
        return self.own.running

    @property
    def reserved_micro_usd(self) -> int:
        return self.own.reserved_micro_usd

    @property
    def spent_day_micro_usd(self) -> int:
        return self.own.spent[0].micro_usd

    @property
    def spent_month_micro_usd(self) -> int:
        return self.own.spent[1].micro_usd


class Renewal(Enum):
    """The answer to `renew`. Only a settled lease is not held afterwards."""

    SETTLED = 0
    EXTENDED = 1
    LAPSED = 2  # it had, and is held again


def micro_usd(usd: float) -> int:
    """Whole micro-dollars, rounded up: a cost is never booked as less than it is. Raises ValueError for no amount."""
    if not math.isfinite(usd) or usd < 0:
        raise ValueError(f"not an amount of money: {usd!r}")
    return math.ceil(round(usd * 1_000_000, 3))


def usd(micro_usd: int) -> float:
    return micro_usd / 1_000_000


def dollars(micro_usd: int) -> str:
    """`$1,234.50`, `$0.000275`: to the last micro-dollar, so that all reports say the same."""
    whole, rest = divmod(micro_usd, 1_000_000)
    return f"${whole:,}.{f'{rest:06}'.rstrip('0'):0<2}"


_SAFE_MARKS = "@|+="
# What `quote` would leave as it is.
_SAFE = re.compile(f"[A-Za-z0-9_.~{_SAFE_MARKS}-]+")


@lru_cache(maxsize=4096)  # who calls calls again
def subject_key(kind: str, value: str) -> str:
    """What is counted, as it stands in keys: the subject `alice`, or `<kind>:<value>` where something else is counted.

    Everything but unreserved characters is escaped, so that no subject can look like another kind's or break the
    braces of the hash tag; what is very long or empty becomes a digest, marked by `*`, which escaping never leaves.
    """
    safe = _escaped(value, MAX_SUBJECT_KEY)
    return safe if kind == "subject" else f"{kind}:{safe}"


def organisation_tag(kind: str, value: str) -> str:
    """The hash tag of an organisation; `kind` as for `pool_key`."""
    return f"{kind}:{_escaped(value, MAX_POOL_KEY)}"


def pool_key(name: str, kind: str = "", value: str = "") -> str:
    """The key of a pool: of those who share a claim's value (kind `claim`), or something else; without a kind of the
    whole deployment. No subject has it."""
    return f"pool.{name}:{kind}:{_escaped(value, MAX_POOL_KEY)}" if kind else f"pool.{name}:{DEPLOYMENT}"


def pool_name(key: str) -> tuple[str, str]:
    """A pool's name, and who shares it: the claim's value, "" for everybody. The inverse of `pool_key`, except for what
    is a digest."""
    name, _, value = key.removeprefix("pool.").partition(":")
    return name, unquote(value.partition(":")[2], errors="replace")


def organisation_name(tag: str) -> str:
    """Whose a hash tag is, "" for the whole deployment's or a subject's own. The inverse of `organisation_tag`."""
    return unquote(tag.partition(":")[2], errors="replace")


def _escaped(value: str, most: int) -> str:
    safe = value if _SAFE.fullmatch(value) else quote(value, safe=_SAFE_MARKS, errors="surrogateescape")
    if 0 < len(safe) <= most:
        return safe
    return "*" + hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
