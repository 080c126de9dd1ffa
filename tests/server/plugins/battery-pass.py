"""The battery's plugin with `on_error = "pass"`."""

from __future__ import annotations

import time
from typing import Any

version = "1.0.0"
priority = 999
on_error = "pass"
CLOSED: list[Plugin] = []


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        if self.config.get("do") == "sleep":
            time.sleep(60)
        if self.config.get("do") == "closed":
            kong.ctx.shared.set("closed", len(CLOSED))
            return
        raise RuntimeError("lost")

    def close(self) -> None:
        CLOSED.append(self)
