"""What the invoker knows of a run's account, which the metering proxy keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

from claude_invoker.metering.usage import Used
from claude_invoker.metering.wire import Metered, Told

MOST_REQUESTS = 500


def in_micro_usd(usd: Decimal) -> int:
    """Whole micro-dollars, rounded up: nothing is booked as less than it is."""
    return int((usd * 1_000_000).to_integral_value(ROUND_CEILING))


@dataclass
class Figures:
    """As the proxy has told them last."""

    spent_usd: Decimal = Decimal(0)
    used: dict[str, Used] = field(default_factory=dict)
    """By model."""
    under_way: int = 0
    """Requests that were sent and are not answered yet."""
    exhausted: bool = False
    """Whether a request was refused for want of budget."""
    budget: str = ""
    """Which, where it was not the run's own: a sentence."""
    blocked: bool = False
    """Whether it was none, but an admin who has blocked somebody."""
    refused: str | None = None
    """Why a request was not forwarded."""
    held: str | None = None
    """Why none is forwarded now, whatever it asks."""
    api_status: int | None = None
    """The status of the API's last answer; None before the first, and where the API could not be reached."""
    unreachable: bool = False
    retry_after: str | None = None
    """Seconds, as the API said them with its last answer."""
    requests: list[Metered] = field(default_factory=list)
    """The first `MOST_REQUESTS` that are over."""
    requests_in_all: int = 0

    @property
    def total(self) -> Used:
        return sum(self.used.values(), Used())

    @property
    def micro_usd(self) -> int:
        """What is booked."""
        return in_micro_usd(self.spent_usd)

    @property
    def cost_usd(self) -> float:
        """The same in US dollars: what answers, pages, metrics and the audit log say it has cost. A sum of them is the
        ledger's, to the micro-dollar."""
        return self.micro_usd / 1_000_000

    def add(self, request: Metered) -> None:
        """One that is over."""
        self.requests_in_all += 1
        if len(self.requests) < MOST_REQUESTS:
            self.requests.append(request)

    def take(self, told: Told) -> None:
        self.spent_usd, self.under_way, self.exhausted = told.spent_usd, told.under_way, told.exhausted
        self.budget, self.blocked = told.budget, told.blocked
        self.refused, self.held, self.api_status = told.refused, told.held, told.api_status
        self.unreachable, self.retry_after = told.unreachable, told.retry_after
        if told.used != Used():
            self.used[told.model] = self.used.get(told.model, Used()) + told.used
