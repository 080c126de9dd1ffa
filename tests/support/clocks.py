"""Processes whose clock is another.

    python -m tests.support.clocks SECONDS MODULE [ARGUMENT…]

runs a module as `python -m` does, with `time.time` so much ahead. A program in another language: `shifted`."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
"""Debian's libfaketime. None where it is not installed. Not for Python's processes: what they fork may wait for a lock of
it for ever."""


def shifted(seconds: int) -> dict[str, str]:
    """The environment of a process that is so much ahead. How long something takes is as before."""
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


if __name__ == "__main__":
    ahead, true_s, true_ns = int(sys.argv[1]), time.time, time.time_ns
    time.time = lambda: true_s() + ahead
    time.time_ns = lambda: true_ns() + ahead * 10**9
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
