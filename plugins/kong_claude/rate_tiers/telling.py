"""Before a budget is used up: the caller's header, and what is told once: log, metric, notice to the operator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Counter

from claude_contract.ledger import PERCENTS, Budget, BudgetWarning, Ledger, LedgerUnavailable, usd
from claude_contract.ledger.figures import seconds
from claude_contract.ledger.warnings import Known, highest

HEADER = "X-Claude-Budget-Warning"
REACHED = Counter(
    "claude_budget_warnings_total",
    "Budgets of which so many percent were used, each once in its period.",
    ("pool", "budget", "percent"),
)


def header(seen: Sequence[BudgetWarning]) -> str:
    """`"team.usd_per_month";percent=80;left=95.2;reset=432000`: US dollars and seconds, by RFC 9651."""
    told = []
    for warning in highest(seen):
        found = warning.figures
        left = math.floor(usd(found.left) * 1000) / 1000  # as many decimals as RFC 9651 has
        reset = seconds(found.reset_ms) if found.reset_ms else 0
        told.append(f'"{warning.name}";percent={warning.percent};left={left};reset={reset}')
    return ", ".join(told)


def expect(pool: str, budgets: Iterable[Budget]) -> None:
    """Their counters are there before they count, at 0: else Prometheus would miss that they rise."""
    for budget in budgets:
        for percent in PERCENTS:
            REACHED.labels(pool, budget.name, str(percent))


class Teller:
    """Of one plugin instance: each warning is told once, also among all that share the store."""

    def __init__(self) -> None:
        self._known = Known()
        self._failed = False

    def tell(self, seen: Sequence[BudgetWarning], store: Ledger, log: Callable[[str], None]) -> None:
        """Where the store cannot be asked somebody tells it later: every admission sees it until then."""
        now_ms = time.time_ns() // 1_000_000
        for warning in self._known.untold(seen, now_ms):
            try:
                first = store.tell(warning)
            except LedgerUnavailable as error:
                if not self._failed:
                    log(f"that a budget is nearly used up cannot be told: {error}")
                self._failed = True
                return
            self._failed = False
            self._known.told(warning, now_ms)
            if first:
                REACHED.labels(warning.pool, warning.figures.budget.name, str(warning.percent)).inc()
                log(f"budget: {warning}")
