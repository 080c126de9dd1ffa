"""The catalog of an invoker: the skills that come with it, and what its operator has."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from claude_invoker.catalog.entry import Entry, Kind
from claude_invoker.catalog.sources import Read, Refused, read

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
    theirs = None if path is None else read(path)
    given = (*ours(built_in).entries, *(theirs.entries if theirs else ()))
    found = {(entry.kind, entry.name): entry for entry in given}
    return Catalog(tuple(found[key] for key in sorted(found)), theirs.refused if theirs else ())


def ours(built_in: Iterable[Entry] = ()) -> Read:
    """What comes with the invoker. Raises OSError."""
    found = read(OURS)
    return Read((*found.entries, *built_in), found.refused)


def without_their_servers(entries: Iterable[Entry], all_of_them: Iterable[Entry]) -> list[Refused]:
    """Of the entries those that need an MCP server which the whole catalog has not: each request for one is refused."""
    servers = {entry.name for entry in all_of_them if entry.kind == "server"}
    return [
        Refused(f"{entry.kind} {entry.name}", f"needs the MCP server {name}, which is not there (mcp/{name}.yaml)")
        for entry in entries
        for name in entry.needs.servers
        if name not in servers
    ]


def version_of(entries: Iterable[Entry]) -> str:
    """12 hexadecimal digits."""
    text = "".join(sorted(f"{entry.kind} {entry.name} {entry.digest}\n" for entry in entries))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
