"""Who has spent it: what the log says that runs and requests to models themselves have cost, added up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from claude_invoker.audit import line
from claude_invoker.audit.log import pairs, rows, still

By = Literal["subject", "tier", "model", "repository", "session"]
BY: tuple[By, ...] = get_args(By)
_ENDS = {"run.end": "runs", "message.end": "messages"}


@dataclass
class Spent:
    """`name`: whose; "" where the log does not say, as of runs without a repository. `last`: when it ended last."""

    name: str
    usd: Decimal = Decimal(0)
    runs: int = 0
    messages: int = 0
    last: str = ""


def spent(directories: Iterable[Path], by: By, since: datetime | None = None) -> tuple[list[Spent], int]:
    """The dearest first; and how many lines say no more what they are about, since their details were deleted. Raises
    OSError, ValueError for lines that cannot be read."""
    found: dict[str, Spent] = {}
    unknown = 0
    for directory in directories:
        with still(directory):
            for each in pairs(directory):
                ends = {}
                for row in rows(each.lines):
                    members = line.read(row).members
                    at = line.time_of(str(members.get("at")))
                    if members.get("kind") in _ENDS and (since is None or at is None or at >= since):
                        ends[int(members["seq"])] = members
                for row in rows(each.details):
                    if ends and (of := ends.pop(line.seq_of_details(row), None)) is not None:
                        _add(found, by, of, json.loads(row)["details"])
                unknown += len(ends)
    return sorted(found.values(), key=lambda each: (-each.usd, each.name)), unknown


def _add(found: dict[str, Spent], by: By, members: Any, details: dict[str, Any]) -> None:
    name = str(members["subject"] if by == "subject" else details.get(by) or "")
    its = found.setdefault(name, Spent(name))
    its.usd += Decimal(str(details.get("cost_usd") or 0))
    its.last = max(its.last, str(members["at"]))
    if members["kind"] == "run.end":
        its.runs += details.get("end") != "deferred"  # a part of one, which goes on when somebody has decided
    else:
        its.messages += 1


def table(found: Iterable[Spent], by: By) -> str:
    """As text, a line each. What is in a name shows as it is, and moves nothing on a terminal."""
    head = f"{'US dollars':>14}  {'runs':>6}  {'messages':>8}  {'last':<20}  {by}"
    shown = [
        f"{each.usd:14.6f}  {each.runs:6}  {each.messages:8}  {each.last[:19] + 'Z':<20}  "
        f"{json.dumps(each.name)[1:-1] or '-'}"
        for each in found
    ]
    return "\n".join([head, *shown])
