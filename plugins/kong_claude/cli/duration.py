"""How long something lasts, as options have it: `30m`, `2h`, `7d`."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str) -> int:
    """Seconds. Raises ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]{1,7})([smhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no length of time such as 30m, 2h, 7d or 4w")
    return int(found[1]) * _UNITS[found[2]]
