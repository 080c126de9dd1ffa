"""PCRE patterns on Python's `re`: named groups written as PCRE writes them, and PCRE's defaults."""

from __future__ import annotations

import re
from functools import lru_cache

_NAMED = re.compile(r"((?:^|[^\\])(?:\\\\)*)\(\?<(?=[A-Za-z_])")
_START_OPTION = re.compile(r"^(?:\(\*[A-Z_]+(?:=\d+)?\))+")


@lru_cache(maxsize=4096)
def compile(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """The pattern for `re`. Raises re.error where it is no valid regex.

    `$` before the end matches before a final newline in both. Not translated: recursion, `\\K`, subroutine
    calls; `re` refuses them.
    """
    text = _START_OPTION.sub("", pattern)
    previous = None
    while previous != text:
        previous = text
        text = _NAMED.sub(r"\1(?P<", text)
    return re.compile(text, flags | re.ASCII)
