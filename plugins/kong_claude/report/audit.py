"""What runs and messages have cost, out of an invoker's audit log (docs/audit.md): what the ledger has booked."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

_NAME = re.compile(r"audit-([0-9a-f]+)-[0-9]+\.jsonl")
_ENDS = ("run.end", "message.end")
_INPUT = ("input", "cache_read", "cache_write_5m", "cache_write_1h")


@dataclass(frozen=True)
class Ended:
    """A run (a job's, too) or a message that is over. `names`: of the report's dimensions, those that the log knows.
    `cost_usd`: None where it is not known any more."""

    at: float
    names: Mapping[str, str]
    cost_usd: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0


def ends(directory: Path, counted: MutableMapping[str, int]) -> Iterator[Ended]:
    """All that the logs there have; details may have been deleted. `counted`: up to which number each log is, which
    may be in another directory, too, as a copy.

    It may be written meanwhile: details are there before their line is. Raises OSError, ValueError for what cannot be
    read."""
    found = [(path, named[1]) for path in sorted(directory.iterdir()) if (named := _NAME.fullmatch(path.name))]
    if not found:
        raise FileNotFoundError(errno.ENOENT, "there is no audit log in it")
    for path, log in found:
        before = counted.get(log, 0)
        at = {seq: when for seq, when in filter(None, map(_end, _rows(path))) if seq > before}
        counted[log] = max(at, default=before)
        for row in _rows(path.with_name(path.name.replace("audit-", "details-", 1))) if at else ():
            details = orjson.loads(row)
            if (when := at.pop(details["seq"], None)) is not None:
                yield _ended(when, details["details"])
        for when in at.values():
            yield Ended(when, {})


def _rows(path: Path) -> Iterator[bytes]:
    """Whole lines; none where the file is gone."""
    if path.exists():
        with path.open("rb") as stream:
            for row in stream:
                if row.endswith(b"\n"):
                    yield row


def _end(row: bytes) -> tuple[int, float] | None:
    """Number and time of a line that ends something."""
    line = orjson.loads(row)
    if line["kind"] not in _ENDS:
        return None
    at = datetime.strptime(line["at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return line["seq"], at.timestamp()


def _ended(at: float, details: Mapping[str, Any]) -> Ended:
    cost = details.get("cost_usd")
    if not isinstance(cost, int | float) or not math.isfinite(cost):
        return Ended(at, {})
    answered = details.get("answered_by")
    if isinstance(answered, list):
        answered = next(iter(answered), None)
    names = {"model": answered or details.get("model")}
    names |= {name: details.get(name) for name in ("tier", "team", "repository")}
    tokens = details.get("tokens") or {}
    return Ended(
        at,
        {name: str(value or "") for name, value in names.items()},
        float(cost),
        sum(int(tokens.get(kind) or 0) for kind in _INPUT),
        int(tokens.get("output") or 0),
    )
