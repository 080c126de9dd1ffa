"""`kong-claude`: the tools around the plugins, and the local stack where it is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from kong_claude import __version__
from kong_claude.problem import Problem

GROUP = "kong_claude.commands"
"""Entry points of this group are subcommands, whichever distribution brings them. Each names a module that has `HELP`,
`arguments(parser)` and `run(options) -> exit code`."""
ELSEWHERE = {
    **dict.fromkeys(("up", "down", "status"), "pip install 'kong-claude-local[stack]'"),
    "invoke": "pip install kong-claude-local",
    "worker": "it is now: claude-invoker worker",
}
"""Subcommands that are known but not installed here, and what to do about it."""


class Command(Protocol):
    HELP: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the command found a problem, 2 bad input or a missing part."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="kong-claude", description="The tools around the plugins, and the local stack where it is installed."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    known = installed()
    # Only the named command is imported: `token` should not wait for what `report` needs.
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    try:
        if wanted in ELSEWHERE and wanted not in known:
            raise Problem(f"{wanted} is not part of this installation: {ELSEWHERE[wanted]}")
        for name in [wanted] if wanted in known else sorted(known):
            command: Command = _load(known[name])
            sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
            command.arguments(sub)
            sub.set_defaults(run=command.run)
        options = parser.parse_args(arguments)
        return int(options.run(options))
    except Problem as problem:
        print(f"kong-claude: {problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (missing := _remedy(error)) is None:
            raise
        print(f"kong-claude: {missing}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def _load(entry: EntryPoint) -> Command:
    found: Command = entry.load()
    return found


_EXTRAS = {
    "yaml": "kong-claude[tools]",
    "orjson": "kong-claude[report]",
    "rich": "kong-claude[report]",
    "matplotlib": "kong-claude[report]",
    "claude_invoker": "kong-claude-local[stack]",
    "minikong": "kong-claude-local[stack]",
}


def _remedy(error: ModuleNotFoundError) -> str | None:
    """What to install for a library that this command needs and the others do not; None for any other."""
    name = (error.name or "").partition(".")[0]
    return f"{name} is missing: pip install '{_EXTRAS[name]}'" if name in _EXTRAS else None


if __name__ == "__main__":
    sys.exit(main())
