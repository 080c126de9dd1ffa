"""claude-gateway that fails on command: a file beside it says how. Copied into the suite's plugin directory."""

import pathlib
import time

from kong_claude.gateway.plugin import Plugin as Sound
from kong_claude.gateway.schema import SCHEMA as Schema  # noqa: F401

version, priority = "0.1.0", 1440
FAULT = pathlib.Path(__file__).with_name("fault")


def fault():
    try:
        return FAULT.read_text()
    except OSError:
        return ""


class FailsBetweenCalls:
    """`kong` whose second call raises."""

    def __init__(self, kong, counter=None):
        self._kong, self._counter = kong, counter or [0]

    def __getattr__(self, name):
        return FailsBetweenCalls(getattr(self._kong, name), self._counter)

    def __call__(self, *arguments):
        self._counter[0] += 1
        if self._counter[0] == 2:
            raise RuntimeError("chaos: between calls")
        return self._kong(*arguments)


class Plugin(Sound):
    def __init__(self, config):
        if fault() == "init":
            raise RuntimeError("chaos: in __init__")
        super().__init__(config)

    def access(self, kong):
        how = fault()
        if how == "first":
            raise RuntimeError("chaos: before the first call")
        if how == "hang":
            time.sleep(3600)
        super().access(FailsBetweenCalls(kong) if how == "between" else kong)
