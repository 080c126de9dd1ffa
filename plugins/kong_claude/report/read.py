"""Access log files, as claude-metrics (or Kong's nginx with its JSON format) writes them, in one pass."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

NOT_UTF8 = "not_utf8"  # member of a parsed line
MAX_LINE = 1 << 20  # bytes; what is longer is no line of ours


def lines(paths: list[Path], progress: Callable[[int], None]) -> Iterator[bytes]:
    """Every line of every file; `.gz` is unpacked. `progress` gets bytes of the files as they lie on disk."""
    for path in paths:
        with path.open("rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            told = pending = 0
            while line := stream.readline(MAX_LINE):
                yield line
                pending += 1
                if pending == 2000:
                    pending = 0
                    progress(raw.tell() - told)
                    told = raw.tell()
            progress(raw.tell() - told)


def _replaced(line: bytes) -> Any:
    text = line.decode("utf-8", "replace")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found | {NOT_UTF8: True} if isinstance(found, dict) else None


def parse(line: bytes) -> dict[str, Any] | None:
    """One request with `time` (seconds since the epoch); None for a line that is none.

    What nginx writes may have bytes that are no UTF-8, as a client sent them: they are replaced, and NOT_UTF8 is true.
    """
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = _replaced(line)
    if not isinstance(found, dict) or "status" not in found:
        return None
    if not isinstance(found.get("time"), int | float):
        try:
            found["time"] = datetime.strptime(found["time_local"], "%d/%b/%Y:%H:%M:%S %z").timestamp()
        except (KeyError, TypeError, ValueError):
            return None
    return found
