"""`kong-claude token`: of a login (`--helper`), or for development where kong-claude-local is installed (`--sub`)."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import entry_points
from typing import Protocol

from kong_claude.login import fresh, kept
from kong_claude.problem import Problem

HELP = "print a token (nothing else) on stdout: of your login, or for development"
DEVELOPMENT = "kong_claude.development_tokens"
"""The entry point of this group makes tokens for a local stack."""


class Maker(Protocol):
    def arguments(self, group: argparse._ActionsContainer) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


def arguments(parser: argparse.ArgumentParser) -> None:
    login = parser.add_argument_group("of a login (kong-claude login)")
    login.add_argument(
        "--helper",
        action="store_true",
        help="the token of your login, refreshed where it expires soon: for Claude Code's apiKeyHelper",
    )
    login.add_argument("--name", help="which login, where there are several")
    if maker := _maker():
        maker.arguments(parser.add_argument_group("for development, which only a local stack takes"))
    else:
        parser.add_argument("--sub", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    if not options.helper:
        if (maker := _maker()) is None:
            raise Problem("--helper prints the token of your login; for development: pip install kong-claude-local")
        if options.sub is None or options.name is not None:
            raise Problem("--helper [--name NAME] prints the token of your login, --sub NAME makes one for development")
        return maker.run(options)
    if options.sub is not None:
        raise Problem("--helper prints the token of your login, whose subject the provider says: leave out --sub")
    try:
        print(fresh.token(kept.chosen(options.name)))
    except Problem as problem:
        print(f"kong-claude token: {problem}", file=sys.stderr)
        return 1
    return 0


def _maker() -> Maker | None:
    for entry in entry_points(group=DEVELOPMENT):
        found: Maker = entry.load()
        return found
    return None
