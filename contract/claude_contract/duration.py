"""How long something lasts, as options of all commands have it: `30m`, `2h`, `7d`."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MOST = 36_525 * 86400
"""A hundred years: what is farther away than that is no date for everybody."""


def duration(text: str) -> int:
    """Seconds, one at least. Raises ArgumentTypeError."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhdw])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is no length of time such as 30m, 2h, 7d or 4w")
    return seconds
