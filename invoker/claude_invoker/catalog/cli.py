"""`claude-invoker catalog check|list|pack`: looks at a catalog as the invoker will."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from claude_invoker.catalog.catalog import ours, version_of, without_their_servers
from claude_invoker.catalog.entry import Entry
from claude_invoker.catalog.sources import Read, pack, read


def main(argv: list[str], built_in: Iterable[Entry]) -> int:
    """0: all is well; 1: something is left out, or cannot be used; 2: it is no catalog. `built_in`: what comes with the
    invoker and is no file."""
    parser = argparse.ArgumentParser(
        prog="claude-invoker catalog", description="Skills, agents and MCP servers for runs (docs/catalog.md)."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="check|list|pack")
    check = verbs.add_parser("check", help="say what of a directory or archive is left out or of no use, and why")
    listing = verbs.add_parser("list", help="list its entries, with what each needs; without a path: ours")
    packing = verbs.add_parser("pack", help="make an archive of a directory, so that every worker has the same")
    for verb in (check, packing):
        verb.add_argument(
            "path",
            type=Path,
            help="a directory with skills/NAME/SKILL.md, agents/NAME.md and mcp/NAME.yaml, or its archive",
        )
    listing.add_argument("path", type=Path, nargs="?", help="the catalog")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    packing.add_argument("--into", type=Path, default=Path(), help="the directory for catalog-VERSION.tar.gz (here)")
    options = parser.parse_args(argv)
    try:
        found = ours(built_in) if options.path is None else read(options.path)
        for each in found.refused:
            print(f"claude-invoker: {each}", file=sys.stderr)
        if options.verb == "pack":
            return _pack(found, options.into)
    except ValueError as error:
        print(f"claude-invoker: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"claude-invoker: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if options.verb == "list":
        _list(found, as_json=options.json)
        return 1 if found.refused else 0
    useless = without_their_servers(found.entries, (*ours(built_in).entries, *found.entries))
    for each in useless:
        print(f"claude-invoker: {each}", file=sys.stderr)
    print(f"{len(found.entries)} entries, version {version_of(found.entries)}")
    return 1 if found.refused or useless else 0


def _pack(found: Read, into: Path) -> int:
    """An archive of the half of a catalog would go unnoticed: there is none. Raises OSError."""
    if found.refused:
        print("claude-invoker: nothing is packed while something would be left out", file=sys.stderr)
        return 1
    path = into / f"catalog-{version_of(found.entries)}.tar.gz"
    pack(found.entries, path)
    print(path)
    return 0


def _list(found: Read, *, as_json: bool) -> None:
    if as_json:
        entries = [
            {"kind": entry.kind, "name": entry.name, "description": entry.description, "needs": entry.needs.to_json()}
            | ({} if entry.server is None else {"offers": list(entry.server.tools)})
            for entry in found.entries
        ]
        print(json.dumps({"version": version_of(found.entries), "entries": entries}, ensure_ascii=False))
        return
    for entry in found.entries:
        needs = "; ".join(f"{name}: {', '.join(each)}" for name, each in entry.needs.to_json().items())
        print(f"{entry.kind} {entry.name}  ({needs or 'needs nothing'})\n  {entry.description}")
        if entry.server is not None:
            print(f"  offers: {', '.join(entry.server.tools)}")
