"""Sums over requests. Memory does not grow with their number: groups, subjects and hours are bounded."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kong_claude.report.audit import Ended
from kong_claude.report.read import NOT_UTF8

MAX_GROUPS = 1000
MAX_SUBJECTS = 100_000
MAX_HOURS = 24 * 400
SLOWEST = 10
_GROWTH = math.log(1.04)  # a percentile is right to 2 %
_SMALLEST = 0.001  # seconds
DIMENSIONS = ("tier", "team", "model", "repository", "route")
CHARTED = ("tier", "team", "model")
MAX_SERIES = 50  # of a dimension
MAX_SLOTS = 400  # of a series
OTHERS = "(others)"
BY_LOG = (
    "Cost and tokens are those of answers in one piece, as the access log has them: without streams, jobs, messages to "
    "models and runs that were cancelled. With --audit they are those of all that the ledger has booked."
)
BY_AUDIT = (
    "Cost and tokens are those of all runs, jobs and messages that have ended in this time, as the audit log has them "
    "and the ledger has booked them."
)
BY_AUDIT_ALONE = f"{BY_AUDIT} Without an access log requests, refusals and latencies are not known."
NOT_AUDITED = ("route",)
"""Dimensions by which the audit log does not tell what was spent."""
NOT_ALWAYS_AUDITED = ("team", "repository")
"""Those by which it does for some: it has the repository on which a run has worked, not one that a header has named
alone, and no team in lines of older releases."""


def slot_of(since: float, until: float) -> int:
    """Seconds of the slots in which a span is shown: hours up to two weeks, else days, or several where it is long."""
    span = until - since
    return 3600 if span <= 14 * 86400 else 86400 * math.ceil(span / 86400 / MAX_SLOTS)


class Quantiles:
    """A histogram with buckets that grow by 4 %: about 450 of them between a millisecond and half a day."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.total = 0

    def add(self, seconds: float) -> None:
        self.counts[0 if seconds <= _SMALLEST else int(math.log(seconds / _SMALLEST) / _GROWTH) + 1] += 1
        self.total += 1

    def at(self, share: float) -> float:
        """The quantile in seconds; 0 without values."""
        rank, seen = share * self.total, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return 0.0 if bucket == 0 else _SMALLEST * math.exp((bucket - 0.5) * _GROWTH)
        return 0.0


@dataclass
class Group:
    requests: int = 0
    refusals: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    is_paid_told: bool = False
    """Whether something says what was spent, be it nothing."""
    latency: Quantiles = field(default_factory=Quantiles)

    def document(self, *, is_paid_known: bool = True, are_requests_known: bool = True) -> dict[str, Any]:
        paid = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": round(self.cost_usd, 6),
        }
        counted = {"requests": self.requests, "refusals": self.refusals, "errors": self.errors}
        took = {f"p{share}_s": round(self.latency.at(share / 100), 3) for share in (50, 95, 99)}
        return {
            **(counted if are_requests_known else dict.fromkeys(counted)),
            **(paid if is_paid_known else dict.fromkeys(paid)),
            **(took if are_requests_known else dict.fromkeys(took)),
        }


class Summary:
    """`limits`: tier → requests per minute, where they are known. `audited`: what was spent comes from an audit log,
    not from the lines of the access log. `logged`: whether there is an access log."""

    def __init__(
        self,
        since: float,
        until: float,
        limits: Mapping[str, int] | None = None,
        *,
        audited: bool = False,
        logged: bool = True,
    ) -> None:
        self.since, self.until, self.audited, self.logged = since, until, audited, logged
        self.unpriced = 0  # ends in the audit log that do not say what they have cost
        self.limits = dict(limits or {})
        self.lines = self.broken = self.outside = self.not_utf8 = 0
        self.all = Group()
        self.groups: dict[str, dict[str, Group]] = {name: {} for name in DIMENSIONS}
        self.status: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.hours: dict[int, list[float]] = {}  # hour → requests, refusals, cost
        self.slot = slot_of(since, until)
        self.costs: dict[str, dict[str, dict[int, float]]] = {name: {} for name in CHARTED}  # group → slot → USD
        self.peaks: dict[str, int] = {}  # tier → most requests of one caller in one minute
        self._minutes: dict[tuple[str, str], list[int]] = {}  # (subject, tier) → minute, requests in it
        self._slowest: list[tuple[float, int, dict[str, Any]]] = []
        self.metered: dict[str, float] = {}  # tier → cost as Prometheus has it: streams and jobs included

    def add(self, line: Mapping[str, Any] | None) -> None:
        """One parsed line; None counts as broken, and so does one with a value of another kind."""
        self.lines += 1
        try:
            if line is None:
                raise ValueError
            self._add(line)
        except (ValueError, TypeError, OverflowError):
            self.broken += 1

    def _add(self, line: Mapping[str, Any]) -> None:
        at, status, seconds = float(line["time"]), int(line["status"]), float(line.get("request_time") or 0)
        tokens_in, tokens_out = int(line.get("input_tokens") or 0), int(line.get("output_tokens") or 0)
        cost, refusal = float(line.get("cost_usd") or 0), str(line.get("refusal") or "")
        if not (math.isfinite(at) and math.isfinite(seconds) and math.isfinite(cost)):
            raise ValueError
        if not self.since <= at < self.until:
            self.outside += 1
            return
        if self.audited:
            tokens_in, tokens_out, cost = 0, 0, 0.0
        self.not_utf8 += line.get(NOT_UTF8) is True
        names = {name: str(line.get(name) or "") for name in DIMENSIONS}
        groups = [self.all, *(self._group(name, value) for name, value in names.items() if value)]
        for group in groups:
            group.requests += 1
            group.refusals += bool(refusal)
            group.errors += status >= 500
            if not refusal:
                group.latency.add(seconds)
        self.status[str(status)] += 1
        if refusal and (refusal in self.refusals or len(self.refusals) < MAX_GROUPS):
            self.refusals[refusal] += 1
        if (counts := self._hour(at)) is not None:
            counts[0] += 1
            counts[1] += bool(refusal)
        if cost or tokens_in or tokens_out:
            self._spend(Ended(at, names, cost, tokens_in, tokens_out), groups)
        if not refusal:  # what a limit has refused is no use of it
            self._peak(str(line.get("subject") or ""), names["tier"], int(at // 60))
            self._keep_slow(seconds, line)

    def add_end(self, ended: Ended) -> None:
        """One run or message of the audit log."""
        if not self.since <= ended.at < self.until:
            return
        if ended.cost_usd is None:
            self.unpriced += 1
        self._spend(ended, [self.all, *(self._group(name, value) for name, value in ended.names.items() if value)])

    def _spend(self, ended: Ended, groups: Sequence[Group]) -> None:
        cost = ended.cost_usd or 0.0
        for group in groups:
            group.input_tokens += ended.input_tokens
            group.output_tokens += ended.output_tokens
            group.cost_usd += cost
            group.is_paid_told = True
        if not cost:
            return
        if (counts := self._hour(ended.at)) is not None:
            counts[2] += cost
        for name in CHARTED:
            if value := ended.names.get(name):
                self._cost(self.costs[name], value, int(ended.at // self.slot), cost)

    def _hour(self, at: float) -> list[float] | None:
        hour = int(at // 3600)
        if hour in self.hours or len(self.hours) < MAX_HOURS:
            return self.hours.setdefault(hour, [0.0, 0.0, 0.0])
        return None

    def _group(self, name: str, value: str) -> Group:
        groups = self.groups[name]
        if value not in groups and len(groups) >= MAX_GROUPS:
            value = OTHERS
        return groups.setdefault(value, Group())

    def _cost(self, series: dict[str, dict[int, float]], value: str, slot: int, cost: float) -> None:
        if value not in series and len(series) >= MAX_SERIES:
            value = OTHERS
        slots = series.setdefault(value, {})
        slots[slot] = slots.get(slot, 0.0) + cost

    def _peak(self, subject: str, tier: str, minute: int) -> None:
        """Logs are in order of time, nearly: a minute that has passed is never counted again."""
        if not subject or not tier:
            return
        caller = (subject, tier)
        if len(self._minutes) >= MAX_SUBJECTS and caller not in self._minutes:
            self._minutes = {c: seen for c, seen in self._minutes.items() if seen[0] >= minute}
            if len(self._minutes) >= MAX_SUBJECTS:
                return
        seen = self._minutes.setdefault(caller, [minute, 0])
        if seen[0] != minute:
            seen[:] = [minute, 0]
        seen[1] += 1
        if seen[1] > self.peaks.get(tier, 0):
            self.peaks[tier] = seen[1]

    def _keep_slow(self, seconds: float, line: Mapping[str, Any]) -> None:
        if len(self._slowest) == SLOWEST and seconds <= self._slowest[0][0]:
            return
        shown = {name: line.get(name) or "" for name in ("run_id", "request_id", "route", "tier", "model", "subject")}
        shown |= {"seconds": round(seconds, 3), "time": line["time"]}
        entry = (seconds, self.lines, shown)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, entry)
        else:
            heapq.heapreplace(self._slowest, entry)

    def hints(self) -> list[str]:
        """What an operator may want to change."""
        found = []
        for tier, limit in self.limits.items():
            peak = self.peaks.get(tier, 0)
            if limit and peak >= 0.9 * limit:
                found.append(
                    f"Tier {tier}: a caller reached {peak} of {limit} requests per minute; consider raising it."
                )
            elif limit and self.all.requests and tier in self.peaks and peak <= 0.1 * limit:
                found.append(f"Tier {tier}: nobody used more than {peak} of {limit} requests per minute.")
        limited = sum(n for reason, n in self.refusals.items() if reason.endswith("/rate_limited"))
        if limited and limited > 0.05 * self.all.requests:
            found.append(f"{limited / self.all.requests:.0%} of all requests were over a limit.")
        if self.unpriced:
            found.append(
                f"{self.unpriced:,} runs and messages of the audit log do not say what they have cost: their details "
                "were deleted."
            )
        if self.broken:
            found.append(f"{self.broken:,} of {self.lines:,} lines could not be read and are not counted.")
        if self.not_utf8:
            found.append(
                f"{self.not_utf8:,} of {self.lines:,} lines have bytes that are no UTF-8, as their callers sent them."
            )
        return found

    def _is_paid_known(self, name: str, group: Group) -> bool:
        """Of a group of that dimension."""
        if not self.audited:
            return True
        return group.is_paid_told if name in NOT_ALWAYS_AUDITED else name not in NOT_AUDITED

    def document(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "since": self.since,
            "until": self.until,
            "lines": self.lines,
            "broken_lines": self.broken,
            "not_utf8_lines": self.not_utf8,
            "outside": self.outside,
            "cost_from": "audit log" if self.audited else "access log",
            "counted": BY_LOG if not self.audited else BY_AUDIT if self.logged else BY_AUDIT_ALONE,
            "unpriced": self.unpriced,
            "total": self.all.document(are_requests_known=self.logged),
            "status": dict(self.status.most_common()),
            "refusals": dict(self.refusals.most_common()),
            **{
                f"by_{name}": {
                    value: group.document(
                        is_paid_known=self._is_paid_known(name, group), are_requests_known=self.logged
                    )
                    for value, group in sorted(groups.items(), key=lambda item: (-item[1].cost_usd, -item[1].requests))
                }
                for name, groups in self.groups.items()
            },
            "slowest": [shown for _, _, shown in sorted(self._slowest, key=lambda item: -item[0])],
            "peaks_per_minute": self.peaks,
            "limits_per_minute": self.limits,
            "metered_cost_usd": self.metered,
            "hours": {str(hour * 3600): counts for hour, counts in sorted(self.hours.items())},
            "slot_s": self.slot,
            "cost_usd_over_time": {
                name: {
                    value: {str(at * self.slot): round(usd, 6) for at, usd in sorted(slots.items())}
                    for value, slots in sorted(series.items(), key=lambda item: -sum(item[1].values()))
                }
                for name, series in self.costs.items()
            },
            "hints": self.hints(),
        }
