"""claude-gateway that fails on command: a file beside it says how. Copied into the suite's plugin directory."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from kong_claude.gateway.plugin import Plugin as Sound
from kong_claude.gateway.schema import SCHEMA as Schema  # noqa: F401

version, priority = "0.1.0", 1440
FAULT = pathlib.Path(__file__).with_name("fault")


def fault() -> str:
    try:
        return FAULT.read_text()
    except OSError:
        return ""


class FailsBetweenCalls:
    """`kong` whose second call raises."""

    def __init__(self, kong: Any, counter: list[int] | None = None) -> None:
        self._kong, self._counter = kong, counter or [0]

    def __getattr__(self, name: str) -> FailsBetweenCalls:
        return FailsBetweenCalls(getattr(self._kong, name), self._counter)

    def __call__(self, *arguments: Any) -> Any:
        self._counter[0] += 1
        if self._counter[0] == 2:
            raise RuntimeError("chaos: between calls")
        return self._kong(*arguments)


whole_service: list[Plugin] = []  # what was configured for a service and not for a route


class Plugin(Sound):  # type: ignore[misc]  # a class made at run time
    def __init__(self, config: Mapping[str, Any]) -> None:
        if fault() == "init":
            raise RuntimeError("chaos: in __init__")
        super().__init__(config)
        if config.get("service_id") and not config.get("route_id"):
            whole_service.append(self)

    def access(self, kong: Any) -> None:
        how = fault()
        if how == "first":
            raise RuntimeError("chaos: before the first call")
        if how == "hang":
            time.sleep(3600)
        pipeline = whole_service[-1].pipeline if how == "stale" and whole_service else self.pipeline
        pipeline.access(FailsBetweenCalls(kong) if how == "between" else kong)
