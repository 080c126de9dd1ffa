"""The ledger's values: what is asked of a store, and what it answers. No I/O.

Money is whole micro-USD, times are milliseconds, and names say so.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from msgspec import Struct

from claude_contract import versions

VERSION = 1
"""Of the values in Redis. Leases and windows say it; a value that does not is version 0, what release 0.1.0 wrote."""

NAMESPACE = "claude"
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "month": 30 * 86400}  # seconds
# Limits up to this many are counted to the millisecond; larger ones in this many buckets per window.
BUCKETS = 64
MAX_SUBJECT_KEY = 96  # characters
SETTLED_MS = 24 * 3600 * 1000  # for how long a repeated settlement is recognised

Busy = Literal["reject", "queue", "later"]
"""Where all places are taken: refuse, or go on without a lease. `later`: take none now in any case."""


class LedgerUnavailable(Exception):
    """The store did not answer, or not as it should. The text is for logs and holds no secret."""


class UnreadableLedger(LedgerUnavailable):
    """The store answers, but what it holds of this subject cannot be read: another version's, or damaged."""


class Window(Struct, frozen=True):
    """At most `limit` requests in any `seconds`; with `burst`, paced as by nginx's limit_req (nodelay)."""

    name: str  # a key of PERIODS
    limit: int  # below 2**32
    burst: int = -1  # below 2**31; -1: not paced

    @property
    def seconds(self) -> int:
        return PERIODS[self.name]

    @property
    def width_ms(self) -> int:
        """Of the buckets in which requests are counted."""
        return 1 if self.limit <= BUCKETS else self.seconds * 1000 // BUCKETS


_RULE = struct.Struct("<IIIi")  # seconds, limit, bucket width (ms), burst


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a tier, and as the scripts take them: one argument is cheaper for Redis than twenty."""

    each: tuple[Window, ...] = ()
    packed: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        packed = b"".join([_RULE.pack(w.seconds, w.limit, w.width_ms, w.burst) for w in self.each])
        object.__setattr__(self, "packed", packed)


NO_WINDOWS = Windows()


@dataclass(frozen=True, slots=True)
class Slot:
    """What a run takes while it lives: one of `concurrent`, and `run_micro_usd` of the budgets. None: without limit."""

    concurrent: int | None = None
    run_micro_usd: int = 0  # reserved
    day_micro_usd: int | None = None
    month_micro_usd: int | None = None
    ttl_ms: int = 60_000

    def claim(self) -> dict[str, int]:
        """As it travels in the attestation and in job records (`slot`)."""
        given = {
            "concurrent": self.concurrent,
            "usd": self.run_micro_usd or None,
            "usd_day": self.day_micro_usd,
            "usd_month": self.month_micro_usd,
            "ttl_ms": self.ttl_ms,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_claim(cls, claim: Mapping[str, Any]) -> Slot:
        """The inverse of `claim`. Raises TypeError, ValueError for what is not one."""
        if unknown := claim.keys() - {"concurrent", "usd", "usd_day", "usd_month", "ttl_ms"}:
            raise TypeError(f"unknown in a slot: {', '.join(sorted(map(str, unknown)))}")
        whole = {name: int(value) for name, value in claim.items()}
        return cls(
            whole.get("concurrent"),
            whole.get("usd", 0),
            whole.get("usd_day"),
            whole.get("usd_month"),
            whole.get("ttl_ms", 60_000),
        )


_MEMBER = re.compile(r"(?:v([0-9]+)\.)?[^ ]*:([0-9]+)")


class Lease(Struct, frozen=True):
    """A place for one run and the money reserved for it. Its text form says all that is needed to end it."""

    namespace: str
    subject_key: str
    member: str  # "v1.<id>:<micro-USD>", as it stands in Redis; without "v1." where release 0.1.0 made it

    @classmethod
    def new(cls, namespace: str, subject_key: str, micro_usd: int = 0) -> Lease:
        return cls(namespace, subject_key, f"v{VERSION}.{secrets.token_urlsafe(12)}:{micro_usd}")

    @classmethod
    def parse(cls, text: str) -> Lease:
        """From an attestation's `lease`. Raises ValueError (UnknownVersion, where it is of another release)."""
        parts = text.split(" ") if isinstance(text, str) else []
        found = _MEMBER.fullmatch(parts[2]) if len(parts) == 3 and all(parts) else None
        if found is None:
            raise ValueError("not a lease")
        versions.check("the lease", found[1], VERSION)
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.namespace} {self.subject_key} {self.member}"

    @property
    def micro_usd(self) -> int:
        """What is reserved."""
        return reserved_by(self.member)


def reserved_by(member: str) -> int:
    """The micro-USD that a lease reserves, by its member."""
    return int(member.rpartition(":")[2])


class Admit(Struct, frozen=True):
    """One request: count it in the windows, and take the lease with what `slot` says. All of it, or nothing."""

    namespace: str
    subject_key: str
    windows: Windows = NO_WINDOWS
    lease: Lease | None = None
    slot: Slot = Slot()
    busy: Busy = "reject"


class Peek(Struct, frozen=True):
    """What a subject uses, and of which windows."""

    namespace: str
    subject_key: str
    windows: Windows = NO_WINDOWS


class Quota(NamedTuple):
    """One window's state: `reset_ms` until a place comes back."""

    window: Window
    remaining: int
    reset_ms: int


class Admission(Struct, frozen=True):
    """The answer to `admit` and `acquire`."""

    admitted: bool
    queued: bool  # admitted, its lease is to be acquired when it starts
    exceeded: str  # the limit that refused: a window's name, `concurrent`, `usd_per_day`, `usd_per_month`; "" for none
    wait_ms: int  # until it may pass; 0 where that depends on when a run ends
    running: int  # this and the next three are 0 where no lease was asked for
    reserved_micro_usd: int
    spent_day_micro_usd: int
    spent_month_micro_usd: int
    quotas: tuple[Quota, ...]


class Usage(Struct, frozen=True):
    """The answer to `peek`."""

    running: int
    reserved_micro_usd: int
    spent_day_micro_usd: int
    spent_month_micro_usd: int
    day_left_ms: int
    month_left_ms: int
    quotas: tuple[Quota, ...]


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


_SAFE_MARKS = "@|+="
# What `quote` would leave as it is.
_SAFE = re.compile(f"[A-Za-z0-9_.~{_SAFE_MARKS}-]+")


def subject_key(kind: str, value: str) -> str:
    """What is counted, as it stands in keys: the subject `alice`, or `<kind>:<value>` where something else is counted.

    Everything but unreserved characters is escaped, so that no subject can look like another kind's or break the
    braces of the hash tag; what is very long or empty becomes a digest, marked by `*`, which escaping never leaves.
    """
    safe = value if _SAFE.fullmatch(value) else quote(value, safe=_SAFE_MARKS, errors="surrogateescape")
    if not 0 < len(safe) <= MAX_SUBJECT_KEY:
        safe = "*" + hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return safe if kind == "subject" else f"{kind}:{safe}"


def key(namespace: str, subject_key: str, suffix: str) -> str:
    return f"{namespace}:{{{subject_key}}}:{suffix}"
