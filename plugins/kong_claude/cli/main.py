"""`kong-claude`: runs the local stack and the tools around the plugins."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Protocol

from kong_claude.cli.problem import Problem

# Subcommand → its module. Each module has `HELP`, `arguments(parser)` and `run(options) -> exit code`.
COMMANDS = {
    "up": "up",
    "down": "down",
    "status": "status",
    "token": "token",
    "invoke": "invoke",
    "worker": "worker",
    "guard": "guard",
    "doctor": "doctor",
    "report": "report",
    "export": "export",
}


class Command(Protocol):
    HELP: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def load(name: str) -> Command:
    return importlib.import_module(f"kong_claude.cli.{COMMANDS[name]}")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the command found a problem, 2 bad input or a missing part."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="kong-claude", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    # Only the named command is imported: `token` should not wait for what `report` needs.
    wanted = next((word for word in arguments if word in COMMANDS), None)
    for name in COMMANDS if wanted is None else [wanted]:
        command = load(name)
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except Problem as problem:
        print(f"kong-claude: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
