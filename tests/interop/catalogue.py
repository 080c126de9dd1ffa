"""All cases of this folder, counted by where they come from: the table in the README.

python -m tests.interop.catalogue      writes it anew
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.interop.bodies import BODIES
from tests.interop.cli import LINES
from tests.interop.events import CLIENTS
from tests.interop.redis import ANSWERS
from tests.interop.tokens import CASES

README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- the table -->\n", "<!-- its end -->\n"


class Case(Protocol):
    @property
    def was(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def reported(self) -> bool: ...


AREAS: dict[str, Iterable[Case]] = {
    "tokens and key sets (`tokens.py`)": CASES,
    "bodies (`bodies.py`)": BODIES,
    "answers of Redis (`redis.py`)": ANSWERS,
    "lines of the CLI (`cli.py`)": LINES,
    "readers of event streams (`events.py`)": CLIENTS,
}


class Row(NamedTuple):
    """How many were reported, have a source of our own reading, or are known without one; and the sources."""

    reported: int
    read: int
    other: int
    failed: int
    sources: tuple[str, ...]


def row(cases: Iterable[Case]) -> Row:
    cases = list(cases)
    own = [case for case in cases if not case.reported]
    sources = {source for case in own for source in _named(case.source)}
    return Row(
        len(cases) - len(own),
        sum(bool(case.source) for case in own),
        sum(not case.source for case in own),
        sum(case.was != "good" for case in cases),
        tuple(sorted(sources, key=str.lower)),
    )


def _named(source: str) -> list[str]:
    """`a/b#1, #2` names the repository once."""
    found: list[str] = []
    for part in filter(None, source.split(", ")):
        repository = found[-1].partition("#")[0] if part.startswith("#") else ""
        found.append(repository + part)
    return found


def rows() -> dict[str, Row]:
    return {area: row(cases) for area, cases in AREAS.items()}


def table() -> str:
    counted = rows()
    lines = [
        "| | reported to us | read by us | known without a source kept | of all, wrong in 0.1.0 |",
        "|---|---|---|---|---|",
    ]
    for area, found in counted.items():
        lines.append(f"| {area} | {found.reported} | {found.read} | {found.other} | {found.failed} |")
    every = row(case for cases in AREAS.values() for case in cases)
    lines.append(f"| all | {every.reported} | {every.read} | {every.other} | {every.failed} |")
    lines.append("")
    for area, found in counted.items():
        lines += [f"- {re.sub(r' [(].*', '', area)}: {', '.join(found.sources)}"]
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """The README with the table as it is now."""
    before, _, rest = text.partition(_BEGIN)
    return before + _BEGIN + table() + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
