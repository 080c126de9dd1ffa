"""The catalog of an invoker: the skills that come with it, and what its operator has."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from claude_invoker.catalog.entry import Entry, Kind
from claude_invoker.catalog.sources import Refused, read

_log = logging.getLogger(__name__)
OURS = Path(__file__).parent / "ours"


@dataclass(frozen=True)
class Catalog:
    """`refused`: what the operator's has besides, left out. `obstacles`: why entries cannot work on this machine, by
    kind and name."""

    entries: tuple[Entry, ...] = ()
    refused: tuple[Refused, ...] = ()
    obstacles: Mapping[tuple[Kind, str], str] = field(default_factory=dict)

    def of(self, kind: Kind) -> Mapping[str, Entry]:
        """Those of a kind, by their names."""
        return {entry.name: entry for entry in self.entries if entry.kind == kind}

    def without(self, servers: Mapping[str, str]) -> Catalog:
        """With more obstacles: of servers, by name."""
        for name, why in servers.items():
            _log.warning("server %s cannot be used here: %s", name, why)
        return replace(self, obstacles={**self.obstacles, **{("server", name): why for name, why in servers.items()}})

    @property
    def version(self) -> str:
        """The same wherever the same entries are: on another machine, from an archive."""
        return version_of(self.entries)


EMPTY = Catalog()


def load(path: Path | None, built_in: Iterable[Entry] = ()) -> Catalog:
    """`path`: the operator's directory or archive. An entry of his stands in the place of ours of that name.
    `built_in`: those of ours that are no files.

    Raises ValueError for what is no catalog, OSError.
    """
    ours = read(OURS)
    theirs = None if path is None else read(path)
    found = {
        (entry.kind, entry.name): entry for entry in (*built_in, *ours.entries, *(theirs.entries if theirs else ()))
    }
    return Catalog(tuple(found[key] for key in sorted(found)), theirs.refused if theirs else ())


def version_of(entries: Iterable[Entry]) -> str:
    """12 hexadecimal digits."""
    text = "".join(sorted(f"{entry.kind} {entry.name} {entry.digest}\n" for entry in entries))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
