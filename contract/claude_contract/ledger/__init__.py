"""The ledger: who runs how much, and what it cost. The gateway admits, the invoker settles.

Everything here is pure: a verb returns a `Call` (script, keys, arguments), and `parse_*` reads its reply. How the call
reaches Redis is the caller's business: the gateway has its own client, an asyncio service uses `run`:

    from redis.asyncio import Redis
    from claude_contract import ledger

    lease = ledger.Lease.parse(claims["lease"])                  # from the verified attestation
    await ledger.run(redis, ledger.renew(lease, ttl=60))         # heartbeat, at least every ttl / 3
    await ledger.run(redis, ledger.settle(lease, cost_usd))      # the run has ended, however; repeat it freely

A queued run (`claims["queue"]` is true) holds nothing yet; its lease is taken when the job starts:

    slot = ledger.Slot.from_claim(claims["slot"])
    admission = ledger.parse_admission(await ledger.run(redis, ledger.acquire(lease, slot)), ())
    if not admission.admitted: ...                               # try again later; admission.culprit says why not

A job that came with a lease but must wait (queue position) gives it back with `release` and takes it with `acquire`.

All keys of a subject share one hash tag, so that every script runs on one node of a Redis Cluster. Money is counted in
whole micro-USD, times in milliseconds unless a name says otherwise. The key layout is in docs/rate-tiers.md.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

NAMESPACE = "claude"
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "month": 30 * 86400}  # seconds
# Limits up to this many are counted to the millisecond; larger ones in this many buckets per window.
BUCKETS = 64
MAX_TAG = 96  # characters
SETTLED_MS = 24 * 3600 * 1000  # for how long a repeated settlement is recognised

Busy = Literal["reject", "queue", "later"]


class Script(NamedTuple):
    """A Lua script: its source, and the SHA-1 under which EVALSHA knows it."""

    name: str
    source: str
    sha: str


class Call(NamedTuple):
    """One EVALSHA."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | int | bytes, ...]

    def command(self) -> tuple[str | int | bytes, ...]:
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def full_command(self) -> tuple[str | int | bytes, ...]:
        """The same with the source, for a Redis that does not know the script yet."""
        return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)


@lru_cache
def script(name: str) -> Script:
    folder = files(__name__)
    source = folder.joinpath(f"{name}.lua").read_text()
    if name != "release":
        source = f"{folder.joinpath('common.lua').read_text()}\n{source}"
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Window(NamedTuple):
    """At most `limit` requests in any `seconds`; with `burst`, paced as by nginx's limit_req (nodelay)."""

    name: str  # a key of PERIODS
    limit: int  # below 2**32
    burst: int = -1  # below 2**31

    @property
    def seconds(self) -> int:
        return PERIODS[self.name]

    @property
    def width_ms(self) -> int:
        """Of the buckets in which requests are counted."""
        return 1 if self.limit <= BUCKETS else self.seconds * 1000 // BUCKETS


_RULE = struct.Struct("<IIIi")  # seconds, limit, bucket width (ms), burst


@lru_cache(maxsize=1024)
def pack_rules(windows: tuple[Window, ...]) -> bytes:
    """Windows as the scripts take them: one argument is cheaper for Redis than twenty."""
    return b"".join([_RULE.pack(w.seconds, w.limit, w.width_ms, w.burst) for w in windows])


def unpack_rules(packed: bytes) -> list[tuple[int, int, int, int]]:
    return list(_RULE.iter_unpack(packed))


def micro_usd(usd: float) -> int:
    """Whole micro-dollars, rounded up: a cost is never booked as less than it is. Raises ValueError for no amount."""
    if not math.isfinite(usd) or usd < 0:
        raise ValueError(f"not an amount of money: {usd!r}")
    return math.ceil(round(usd * 1_000_000, 3))


@dataclass(frozen=True, slots=True)
class Slot:
    """What a run takes while it lives: one of `concurrent`, and `usd` of the budgets. None: without limit."""

    concurrent: int | None = None
    usd: int = 0  # micro-USD reserved
    usd_day: int | None = None
    usd_month: int | None = None
    ttl_ms: int = 60_000

    def claim(self) -> dict[str, int]:
        """As it travels in the attestation (`slot`)."""
        given = {
            "concurrent": self.concurrent,
            "usd": self.usd or None,
            "usd_day": self.usd_day,
            "usd_month": self.usd_month,
            "ttl_ms": self.ttl_ms,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_claim(cls, claim: Mapping[str, Any]) -> Slot:
        """The inverse of `claim`. Raises TypeError, ValueError for what is not one."""
        return cls(**{name: int(value) for name, value in claim.items()})

    def args(self) -> tuple[int, int, int, int]:
        def limit(value: int | None) -> int:
            return -1 if value is None else value

        return (self.ttl_ms, limit(self.concurrent), limit(self.usd_day), limit(self.usd_month))


class Lease(NamedTuple):
    """A place for one run and the money reserved for it. Its text form says all that is needed to end it."""

    namespace: str
    tag: str
    member: str  # "<id>:<micro-USD>", as it stands in Redis

    @classmethod
    def new(cls, namespace: str, tag: str, usd: int = 0) -> Lease:
        return cls(namespace, tag, f"{secrets.token_urlsafe(12)}:{usd}")

    @classmethod
    def parse(cls, text: str) -> Lease:
        """From an attestation's `lease`. Raises ValueError."""
        parts = text.split(" ") if isinstance(text, str) else []
        if len(parts) != 3 or not all(parts) or not parts[2].rpartition(":")[2].isdecimal():
            raise ValueError("not a lease")
        return cls(*parts)

    def __str__(self) -> str:
        return " ".join(self)

    @property
    def usd(self) -> int:
        """The reserved micro-USD."""
        return int(self.member.rpartition(":")[2])


def tag(kind: str, value: str) -> str:
    """The hash tag of a subject: `alice`, or `<kind>:<value>` where something else is counted.

    Everything but unreserved characters is escaped, so that no subject can look like another kind's or break the
    braces of the hash tag; what is very long or empty becomes a digest, marked by `*`, which escaping never leaves.
    """
    safe = quote(value, safe="@|+=", errors="surrogateescape")
    if not 0 < len(safe) <= MAX_TAG:
        safe = "*" + hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return safe if kind == "subject" else f"{kind}:{safe}"


def key(namespace: str, tag: str, suffix: str) -> str:
    return f"{namespace}:{{{tag}}}:{suffix}"


def _keys(namespace: str, tag: str, *suffixes: str) -> tuple[str, ...]:
    head = f"{namespace}:{{{tag}}}:"
    return tuple([head + suffix for suffix in suffixes])


def admit(
    namespace: str, tag: str, windows: tuple[Window, ...], lease: Lease | None, slot: Slot, busy: Busy = "reject"
) -> Call:
    """Check and take everything, or nothing. Reply: `parse_admission`."""
    keys = _keys(namespace, tag, "leases", "w", "usd:day", "usd:month")
    return Call(script("admit"), keys, (lease.member if lease else "", *slot.args(), busy, pack_rules(windows)))


def acquire(lease: Lease, slot: Slot) -> Call:
    """Take the lease of a queued run that is about to start; harmless where it is held. Reply: `parse_admission`."""
    return admit(lease.namespace, lease.tag, (), lease, slot)


def renew(lease: Lease, ttl: float) -> Call:
    """Keep a running execution's lease for `ttl` more seconds. Reply: 1 extended, 2 it had lapsed, 0 it is settled."""
    return Call(
        script("renew"), _keys(lease.namespace, lease.tag, "leases", "settled"), (lease.member, int(ttl * 1000))
    )


def settle(lease: Lease, cost_usd: float) -> Call:
    """The run has ended and cost this much (0 where nothing ran). Reply: 1 booked, 0 it was settled before."""
    keys = _keys(lease.namespace, lease.tag, "leases", "usd:day", "usd:month", "settled")
    return Call(script("settle"), keys, (lease.member, micro_usd(cost_usd), SETTLED_MS))


def release(lease: Lease) -> Call:
    """The run never started, or has to wait: give back place and reservation. Reply: 1 given back, 0 there was none."""
    return Call(script("release"), _keys(lease.namespace, lease.tag, "leases"), (lease.member,))


def peek(namespace: str, tag: str, windows: tuple[Window, ...]) -> Call:
    """What is used; changes nothing. Reply: `parse_usage`."""
    return Call(script("peek"), _keys(namespace, tag, "leases", "w", "usd:day", "usd:month"), (pack_rules(windows),))


class Quota(NamedTuple):
    """One window's state: `reset_ms` until a place comes back."""

    window: Window
    remaining: int
    reset_ms: int


class Admission(NamedTuple):
    """The reply to `admit`. `culprit`: a window's name, `concurrent`, `usd_per_day` or `usd_per_month`.

    `wait_ms` is how long until it may pass; 0 where that depends on when a run ends.
    """

    admitted: bool
    queued: bool
    culprit: str
    wait_ms: int
    running: int
    reserved: int  # micro-USD, as all money here
    spent_day: int
    spent_month: int
    quotas: tuple[Quota, ...]


class Usage(NamedTuple):
    """The reply to `peek`."""

    running: int
    reserved: int
    spent_day: int
    spent_month: int
    day_left_ms: int
    month_left_ms: int
    quotas: tuple[Quota, ...]


_CULPRITS = {0: "", -1: "concurrent", -2: "usd_per_day", -3: "usd_per_month"}


def _quotas(windows: Sequence[Window], numbers: Sequence[int]) -> tuple[Quota, ...]:
    return tuple([Quota(w, numbers[2 * i], numbers[2 * i + 1]) for i, w in enumerate(windows)])


def parse_admission(reply: Sequence[int], windows: Sequence[Window]) -> Admission:
    verdict, who, wait, running, reserved, day, month, *rest = reply
    culprit = windows[who - 1].name if who > 0 else _CULPRITS[who]
    quotas = _quotas(windows, rest)
    return Admission(verdict != 0, verdict == 2, culprit, wait, running, reserved, day, month, quotas)


def parse_usage(reply: Sequence[int], windows: Sequence[Window]) -> Usage:
    running, reserved, day, month, day_left, month_left, *rest = reply
    return Usage(running, reserved, day, month, day_left, month_left, _quotas(windows, rest))


async def run(redis: Any, call: Call) -> Any:
    """The call through a `redis.asyncio` client (Redis or RedisCluster): one round trip, two for a new script."""
    from redis.exceptions import NoScriptError  # only those that do I/O need redis

    try:
        return await redis.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
    except NoScriptError:
        return await redis.eval(call.script.source, len(call.keys), *call.keys, *call.args)
