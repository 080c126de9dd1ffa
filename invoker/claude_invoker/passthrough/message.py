"""One request to a model itself, from its admission to its cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from claude_invoker.caller import Caller
from claude_invoker.metering.control import Terms
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.wire import Answered, End
from claude_invoker.passthrough.heads import Session


@dataclass(eq=False)
class Message:
    """`model` is the one that was asked for; `key` names its account at the metering proxy."""

    key: str
    caller: Caller
    model: str
    session: Session
    terms: Terms
    token: str
    traceparent: str = ""
    """The W3C trace context of the client's request."""
    answered: asyncio.Future[Answered] | None = None
    """Once it is handed over: how its answer has ended."""
    figures: Figures = field(default_factory=Figures)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """Until its answer was over."""
    end: End = "left"

    @property
    def cost_usd(self) -> float:
        return self.figures.cost_usd

    @property
    def outcome(self) -> str:
        """`refused` (by the metering proxy), `api_429`, … where the API has not answered 200, else how it ended."""
        if self.figures.refused or self.figures.exhausted or self.figures.held:
            return "refused"
        status = self.figures.api_status
        return f"api_{status}" if status is not None and status != 200 else self.end
