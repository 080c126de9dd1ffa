"""The verbs as calls of Redis, each a value: script, keys, arguments, and how its reply is read. No I/O.

How a call reaches Redis is its sender's business: the gateway has connections of its own, an asyncio service uses
`claude_contract.ledger.AsyncLedger`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from claude_contract import versions
from claude_contract.ledger import warnings
from claude_contract.ledger.limits import NO_WINDOWS, UTC_DAY, UTC_MONTH, Slot, Terms, Windows
from claude_contract.ledger.live import (
    BLOCKED,
    MOST_CHANGES,
    MOST_REFUSED,
    OUTBOX,
    Change,
    Target,
    limits_key,
    read_change,
    with_changes,
)
from claude_contract.ledger.model import (
    REST_MS,
    SETTLED_MS,
    VERSION,
    Admission,
    Admit,
    Blocked,
    Changed,
    Draw,
    Drawn,
    Lease,
    LedgerUnavailable,
    Peek,
    Quota,
    Renewal,
    Spent,
    Standing,
    UnreadableLedger,
    Usage,
    Verdict,
    heads,
)
from claude_contract.ledger.warnings import BudgetWarning

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its source, and the SHA-1 under which EVALSHA knows it."""

    source: str
    sha: str


class Call(Struct, Generic[R], frozen=True):
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


_MONEY = ("common", "money")
_BOOKS = ("draw", "settle")
_FRONT = {
    **dict.fromkeys(("admit", "peek"), (*_MONEY, "live")),
    "draw": (*_MONEY, "live", "book"),
    "settle": (*_MONEY, "book"),
    **dict.fromkeys(("change", "changes", "report", "tell"), ("common",)),
}


@lru_cache
def script(name: str) -> Script:
    folder = files(__package__)
    parts = [folder.joinpath(f"{part}.lua").read_text() for part in (*_FRONT.get(name, _MONEY), name)]
    books = "true" if name in _BOOKS else "false"
    source = "\n".join([f"local VERSION, BOOKS = {VERSION}, {books}", *parts])
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class OutOfPeriod(LedgerUnavailable):
    """Redis's clock says another period than ours. Asking again with its moment helps."""

    def __init__(self, now_ms: int) -> None:
        super().__init__("the clocks of Redis and of this machine differ")
        self.now_ms = now_ms


def admit(request: Admit, now_ms: int | None = None, *, one_node: bool = True) -> Call[Admission]:
    """`now_ms`: the moment whose periods are asked for, by default now. `one_node`: Redis is no Cluster. `parse` raises
    OutOfPeriod."""
    lease, slot = request.lease, request.slot
    limits = limits_of(request, slot.bound)
    moment = _now_ms() if now_ms is None else now_ms
    return Call(
        script("admit"),
        _keys(request, one_node),
        (
            _held(lease) if lease is not None else "",
            request.ttl_ms,
            request.busy,
            request.tier,
            int(request.message),
            *_packed(limits, moment, not request.shared.tag),
        ),
        lambda reply: _admission(reply, limits, moment if lease is not None else None),
    )


def to_acquire(lease: Lease, slot: Slot, tier: str = "") -> Admit:
    """What takes a lease, and counts nothing."""
    found = Admit(lease.namespace, lease.subject_key, lease=lease, slot=slot, shared=lease.shared, tier=tier)
    return replace(found, message=True) if lease.is_message else found


def acquire(lease: Lease, slot: Slot, now_ms: int | None = None) -> Call[Admission]:
    return admit(to_acquire(lease, slot), now_ms)


def renew(lease: Lease, ttl_ms: int) -> Call[Renewal]:
    return Call(script("renew"), _keys(lease), (_held(lease), ttl_ms), Renewal)


def draw(lease: Lease, slot: Slot, draw: Draw, now_ms: int | None = None, *, one_node: bool = True) -> Call[Drawn]:
    """`now_ms` and `one_node` as for `admit`."""
    limits = limits_of(to_acquire(lease, slot), slot.bound)
    moment = _now_ms() if now_ms is None else now_ms
    terms = [terms.packed(moment, not lease.shared.tag) for _, terms in limits]
    amounts = (draw.cost_micro_usd, draw.under_way_micro_usd, draw.least_micro_usd, draw.most_micro_usd)
    return Call(
        script("draw"),
        (*_keys(lease, one_node), booked_key(lease)),
        (_held(lease), slot.ttl_ms, *amounts, draw.tier, *terms),
        lambda reply: _drawn(reply, limits),
    )


def settle(lease: Lease, cost_micro_usd: int, *, final: bool = True) -> Call[bool]:
    keys = (*_keys(lease), booked_key(lease))
    args = (_held(lease), cost_micro_usd, SETTLED_MS, int(final), _held(lease.rest), REST_MS)
    return Call(script("settle"), keys, args, bool)


def release(lease: Lease) -> Call[bool]:
    return Call(script("release"), _keys(lease), (_held(lease),), bool)


def peek(request: Peek, now_ms: int | None = None, *, one_node: bool = True) -> Call[Usage]:
    """`now_ms` and `one_node` as for `admit`."""
    limits = limits_of(request, known_to_all(request.slot.own))
    moment = _now_ms() if now_ms is None else now_ms
    return Call(
        script("peek"),
        _keys(request, one_node),
        (request.tier, int(request.message), *_packed(limits, moment, not request.shared.tag)),
        lambda reply: _usage(reply, limits, moment),
    )


def change(key: str, target: Target, made: Change | None, line: bytes) -> Call[bool]:
    """Changes limits, or takes a change back; `line` is for the audit log. False: there was nothing to take back.

    `parse` raises OverflowError where there are too many."""

    def parse(reply: Any) -> bool:
        if reply[0] < 0:
            raise OverflowError(f"there are {MOST_CHANGES} changes already: reset some")
        return bool(reply[0])

    encoded = made.encode() if made is not None else b""
    return Call(script("change"), (key, OUTBOX), (target.field, encoded, line, MOST_CHANGES), parse)


def changes(key: str) -> Call[dict[str, Change]]:
    """Those that hold now, by field. `parse` raises UnreadableLedger."""

    def parse(reply: Any) -> dict[str, Change]:
        fields = [field.decode("utf-8", "replace") for field in reply[::2]]
        return {field: read_change(field, value) for field, value in zip(fields, reply[1::2], strict=True)}

    return Call(script("changes"), (key,), (), parse)


def report(line: bytes) -> Call[bool]:
    """Leaves a line of a refused attempt for the audit log. False: too many are waiting, it is not kept."""
    return Call(script("report"), (OUTBOX,), (line, MOST_REFUSED), bool)


def tell(warning: BudgetWarning) -> Call[bool]:
    """True for the first who tells of it: then the notice is owed to the operator, too."""
    args = (warning.lives_ms, warnings.encode(warning.notice()), warnings.MOST_OWED, warnings.OWED_MS)
    return Call(script("tell"), (warnings.PREFIX + "told:" + warning.key, warnings.OWED), args, bool)


# Lua stumbled over a value, or the key holds another type. Not what Redis says of itself (`OOM …`, `-READONLY …`).
_DAMAGED = re.compile(r"\bWRONGTYPE\b|\buser_script:\d+: (?!(?:@user_script: \d+: )?-?[A-Z]{2,}\b)")
"""But not where Redis itself refused a command of the script: 6.2 says on a replica that
`@user_script:302: @user_script: 302: -READONLY …`."""


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


Limits = Sequence[tuple[Windows, Terms]]  # of each account
_BLOCKED, _BLOCKED_TIER = -1000, -1001  # see `live.lua`
_NO_TERMS = Terms()


def known_to_all(own: Terms) -> Terms:
    """The terms of which `peek` tells: two of each subject."""
    return Terms(own.concurrent, (UTC_DAY, UTC_MONTH, *own.budgets))


def limits_of(request: Admit | Peek, own: Terms) -> Limits:
    """Of each account, the subject's with its `own` terms first."""
    if not request.shared.pools:
        return ((request.windows, own),)
    none = len(request.shared.pools)
    windows = request.pool_windows or (NO_WINDOWS,) * none
    terms = request.slot.pools or (_NO_TERMS,) * none
    return ((request.windows, own), *zip(windows, terms, strict=True))


def _packed(limits: Limits, moment: int, own_tag: bool) -> tuple[bytes, ...]:
    return tuple([packed for w, terms in limits for packed in (w.packed, terms.packed(moment, own_tag))])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _keys(of: Admit | Peek | Lease, one_node: bool = False) -> tuple[str, ...]:
    """See `money.lua`. Without `one_node` all have one tag; what was changed of subjects by themselves has the
    deployment's."""
    if not of.shared.tag:
        return _keys_alone(of.namespace, of.subject_key, one_node)
    head = f"{of.namespace}:{{{of.shared.tag}}}:"
    keys = [head + "leases", f"{head}{of.subject_key}:settled", head + "limits", head + "held"]
    for account in (of.subject_key, *of.shared.pools):
        keys += (f"{head}{account}:w", f"{head}{account}:spent")
    return tuple(keys)


@lru_cache(maxsize=4096)  # who calls calls again
def _keys_alone(namespace: str, subject_key: str, one_node: bool) -> tuple[str, ...]:
    head = f"{namespace}:{{{subject_key}}}:"
    changes = limits_key(namespace) if one_node else head + "limits"
    # Not `held`: of the subject `jobs` that would be the key in which the job store counts what it holds.
    names = ("amounts", "w", "spent", "usd:day", "usd:month")
    return (head + "leases", head + "settled", changes, *[head + name for name in names])


def booked_key(lease: Lease) -> str:
    """Of how much a run has booked."""
    return f"{heads(lease.namespace, lease.subject_key, lease.shared)[0]}booked:{lease.member.rpartition(':')[0]}"


def _held(lease: Lease) -> str:
    """As it stands in Redis: where many share a tag, with its accounts."""
    if not lease.shared.tag:
        return lease.member
    return " ".join([lease.member, lease.subject_key, *lease.shared.pools])


def _standings(numbers: Sequence[int], limits: Limits, moment: int | None) -> tuple[Standing, ...]:
    """`moment`: whose periods were asked for, and by Redis's clock are now; None: nothing was asked about money."""
    found, at = [], 0
    for windows, terms in limits:
        running, reserved, at = numbers[at], numbers[at + 1], at + 2
        spent = []
        if moment is not None:
            for budget in terms.budgets:
                spent.append(Spent(budget, numbers[at], numbers[at + 1], *budget.span(moment)))
                at += 2
        quotas = []
        for window in windows.each:
            left, reset_ms = numbers[at], numbers[at + 1]
            quotas.append(Quota(window, max(left, 0), reset_ms, max(-left, 0)))
            at += 2
        found.append(Standing(running, reserved, tuple(spent), tuple(quotas)))
    return tuple(found)


def _admission(reply: Sequence[int], limits: Limits, moment: int | None) -> Admission:
    if reply[0] < 0:
        raise OutOfPeriod(reply[1])
    verdict, who, limit, wait_ms, *rest = reply
    exceeded = _name(limits[who - 1], limit) if limit else ""
    limits, rest, changed = _changed(limits, rest)
    each = _standings(rest, limits, moment)
    of_tier = limit == _BLOCKED_TIER
    return Admission(verdict != 0, verdict == 2, exceeded, who - 1, wait_ms, each[0], each[1:], changed, of_tier)


def _name(of: tuple[Windows, Terms], limit: int) -> str:
    """Of a limit by its number in `admit.lua`."""
    windows, terms = of
    if limit in (_BLOCKED, _BLOCKED_TIER):
        return BLOCKED
    if limit == -1:
        return "concurrent"
    return windows.each[limit - 1].name if limit > 0 else terms.budgets[-2 - limit].name


def _changed(limits: Limits, numbers: list[int]) -> tuple[Limits, list[int], tuple[Changed, ...]]:
    """The limits as they are now, the numbers that are left, and what was changed."""
    if not numbers[0]:
        return limits, numbers[1:], ()
    told, left = numbers[1 : 1 + numbers[0]], numbers[1 + numbers[0] :]
    changed = tuple(
        [Changed(told[n] - 1, _name(limits[told[n] - 1], told[n + 1]), told[n + 2]) for n in range(0, len(told), 3)]
    )
    return [with_changes(w, t, n, changed) for n, (w, t) in enumerate(limits)], left, changed


def _drawn(reply: Sequence[int], limits: Limits) -> Drawn:
    if reply[0] < 0:
        raise OutOfPeriod(reply[1])
    verdict, drawn, who, budget, left_ms, fleeting = reply
    name = _name(limits[who - 1], -1 - budget if budget > 0 else budget) if budget else ""
    return Drawn(Verdict(verdict), drawn, name, who - 1, left_ms, bool(fleeting), budget == _BLOCKED_TIER)


def _usage(reply: Sequence[int], limits: Limits, moment: int) -> Usage:
    if reply[0] < 0:
        raise OutOfPeriod(reply[1])
    numbers = list(reply[1:])
    which = numbers[2 : 1 + numbers[0] : 3]
    limits, numbers, told = _changed(limits, numbers)
    each = _standings(numbers, limits, moment)
    changed = tuple([one for one in told if one.limit != BLOCKED])
    found = zip(told, which, strict=True)
    blocked = tuple([Blocked(at, ms, of == _BLOCKED_TIER) for (at, limit, ms), of in found if limit == BLOCKED])
    return Usage(each[0], each[1:], changed, blocked)
