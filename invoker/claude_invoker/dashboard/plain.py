"""Texts of runs, and so of enemies, so that they look as what they are. Pure."""

from __future__ import annotations

import re

# Blank or without width, though they are letters, marks and symbols.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_BLANKS = re.compile(f"[{_BLANK}]")
_BEYOND_ASCII = re.compile(r"[^\x20-\x7e\t\n]")


def plain(text: str) -> str:
    """With an escape in the place of whatever changes how the rest looks, or is not seen: direction marks and other
    controls, what has no width, blanks that are no space. Tabs and ends of lines stay."""
    return _BEYOND_ASCII.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    letter = found[0]
    return letter if letter.isprintable() and not _BLANKS.match(letter) else ascii(letter)[1:-1]
