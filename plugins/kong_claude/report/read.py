"""Access log files, as claude-metrics (or Kong's nginx with its JSON format) writes them, in one pass."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

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


def parse(line: bytes) -> dict[str, Any] | None:
    """One request with `time` (seconds since the epoch); None for a line that is none."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict) or "status" not in found:
        return None
    if not isinstance(found.get("time"), int | float):
        try:
            found["time"] = datetime.strptime(found["time_local"], "%d/%b/%Y:%H:%M:%S %z").timestamp()
        except (KeyError, TypeError, ValueError):
            return None
    return found
