"""The verbs as calls of Redis, each a value: script, keys, arguments, and how its reply is read. No I/O.

How a call reaches Redis is its sender's business: the gateway has connections of its own, an asyncio service uses
`claude_contract.ledger.AsyncLedger`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from claude_contract import versions
from claude_contract.ledger.model import (
    SETTLED_MS,
    VERSION,
    Admission,
    Admit,
    Lease,
    Peek,
    Quota,
    Renewal,
    Slot,
    UnreadableLedger,
    Usage,
    Window,
    key,
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its source, and the SHA-1 under which EVALSHA knows it."""

    source: str
    sha: str


class Call(NamedTuple, Generic[R]):
    """One EVALSHA. `parse` makes the reply of it."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | int | bytes, ...]
    parse: Callable[[Any], R]

    def command(self) -> tuple[str | int | bytes, ...]:
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def full_command(self) -> tuple[str | int | bytes, ...]:
        """The same with the source, for a Redis that does not know the script yet."""
        return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)


@lru_cache
def script(name: str) -> Script:
    folder = files(__package__)
    source = folder.joinpath(f"{name}.lua").read_text()
    if name != "release":
        source = f"local VERSION = {VERSION}\n{folder.joinpath('common.lua').read_text()}\n{source}"
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def admit(request: Admit) -> Call[Admission]:
    namespace, subject_key, lease, slot = request.namespace, request.subject_key, request.lease, request.slot
    windows = request.windows
    return Call(
        script("admit"),
        _account(namespace, subject_key),
        (
            lease.member if lease is not None else "",
            slot.ttl_ms,
            -1 if slot.concurrent is None else slot.concurrent,
            -1 if slot.day_micro_usd is None else slot.day_micro_usd,
            -1 if slot.month_micro_usd is None else slot.month_micro_usd,
            request.busy,
            windows.packed,
        ),
        lambda reply: _admission(reply, windows.each),
    )


def acquire(lease: Lease, slot: Slot) -> Call[Admission]:
    return admit(Admit(lease.namespace, lease.subject_key, lease=lease, slot=slot))


def renew(lease: Lease, ttl_ms: int) -> Call[Renewal]:
    return Call(script("renew"), _keys(lease, "leases", "settled"), (lease.member, ttl_ms), Renewal)


def settle(lease: Lease, cost_micro_usd: int) -> Call[bool]:
    keys = _keys(lease, "leases", "usd:day", "usd:month", "settled")
    return Call(script("settle"), keys, (lease.member, cost_micro_usd, SETTLED_MS), bool)


def release(lease: Lease) -> Call[bool]:
    return Call(script("release"), _keys(lease, "leases"), (lease.member,), bool)


def peek(request: Peek) -> Call[Usage]:
    windows = request.windows
    return Call(
        script("peek"),
        _account(request.namespace, request.subject_key),
        (windows.packed,),
        lambda reply: _usage(reply, windows.each),
    )


# Lua stumbled over a value, or the key holds another type. Not what Redis says of itself (`OOM …`, `-READONLY …`).
_DAMAGED = re.compile(r"\bWRONGTYPE\b|\buser_script:\d+: (?!-?[A-Z]{2,}\b)")


def unreadable(error: Exception, call: Call[Any]) -> UnreadableLedger | None:
    """What a script's error says where it met a value that it cannot read, of another version or damaged: a matter of
    one subject, while Redis is well. None for any other error."""
    text = str(error)
    if _DAMAGED.search(text):
        return UnreadableLedger(f"one of {', '.join(call.keys)} holds what is not ours: restore or delete it ({text})")
    found = re.search(r"\bVERSION (\d+)\b", text)
    if found is None:
        return None
    try:
        versions.check(f"what Redis holds under {call.keys[0]}", found[1], VERSION)
    except versions.UnknownVersion as unknown:
        return UnreadableLedger(str(unknown))
    return None


def _account(namespace: str, subject_key: str) -> tuple[str, str, str, str]:
    head = f"{namespace}:{{{subject_key}}}:"
    return (head + "leases", head + "w", head + "usd:day", head + "usd:month")


def _keys(lease: Lease, *suffixes: str) -> tuple[str, ...]:
    return tuple([key(lease.namespace, lease.subject_key, suffix) for suffix in suffixes])


_EXCEEDED = {0: "", -1: "concurrent", -2: "usd_per_day", -3: "usd_per_month"}


def _quotas(windows: Sequence[Window], numbers: Sequence[int]) -> tuple[Quota, ...]:
    return tuple(map(Quota, windows, numbers[::2], numbers[1::2]))


def _admission(reply: Sequence[int], windows: Sequence[Window]) -> Admission:
    verdict, who, wait_ms, running, reserved, spent_day, spent_month, *rest = reply
    exceeded = windows[who - 1].name if who > 0 else _EXCEEDED[who]
    quotas = _quotas(windows, rest)
    return Admission(verdict != 0, verdict == 2, exceeded, wait_ms, running, reserved, spent_day, spent_month, quotas)


def _usage(reply: Sequence[int], windows: Sequence[Window]) -> Usage:
    running, reserved, spent_day, spent_month, day_left_ms, month_left_ms, *rest = reply
    return Usage(running, reserved, spent_day, spent_month, day_left_ms, month_left_ms, _quotas(windows, rest))
