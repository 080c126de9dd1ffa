"""`kong-claude doctor`: names every opening through which a request could reach the invoker unchecked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from kong_claude import PLUGINS
from kong_claude.problem import Problem

KONGS = {"KONG_PLUGINS", "KONG_PLUGINSERVER_NAMES"}
"""Of these one is in the environment of every Kong that runs plugins of ours."""
SETTINGS = {
    "Kong's settings": ("KONG_PLUGINS", "KONG_PLUGINSERVER_NAMES", "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"),
    "Kong's Lua path": ("KONG_LUA_PACKAGE_PATH",),
    "secrets": ("CLAUDE_JWT_SECRET",),
}
"""What may be out of sight, with variables that stand for it."""
HELP = "name the openings in a Kong configuration; exit code 1 where there is one"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, default=Path("kong.yml"), help="declarative file (kong.yml)")
    parser.add_argument(
        "--admin-url",
        help="examine a running Kong instead of a file: http://127.0.0.1:8001, or unix:/path/admin.sock (see: status)",
    )
    parser.add_argument(
        "--env-file", type=Path, help="KONG_* and secrets as NAME=value lines (default: own environment)"
    )
    parser.add_argument(
        "--invoker-url", help="also ask the invoker directly: it must turn us away, and know the gateway's key"
    )
    parser.add_argument("--plugins-directory", type=Path, help="directory with the claude-*.py files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from kong_claude.doctor import admin, doubts, probe, reach, rules, view
    from kong_claude.doctor.settings import of_environment

    # KONG_CLAUDE_* are settings of this command, not of Kong.
    own = {name: value for name, value in os.environ.items() if not name.startswith("KONG_CLAUDE_")}
    # A stray KONG_ADMIN_LISTEN of this shell does not say how Kong was started.
    if not options.env_file and KONGS.isdisjoint(own):
        own = {name: value for name, value in own.items() if not name.startswith("KONG_")}
    environment = read_environment(options.env_file) if options.env_file else own
    seen = (
        admin.from_admin(options.admin_url, of_environment(environment))
        if options.admin_url
        else view.from_file(options.config, environment)
    )
    try:
        openings = rules.examine(seen)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # such as tags that are a number
        raise Problem(
            f"{options.admin_url or options.config}: something in it is not what Kong takes in its place ({error})"
        ) from error
    openings += probe.configurations(seen, options.plugins_directory or PLUGINS)
    if options.invoker_url:
        openings += probe.invoker(options.invoker_url, seen)
    elsewhere = [route.name for route in reach.elsewhere(seen)]
    doubted, operators = doubts.doubts(seen), doubts.of_the_operator(seen)
    unseen = [what for what, names in SETTINGS.items() if not seen.settings.shows(*names)]
    if options.json:
        found: dict[str, object] = {"openings": [asdict(opening) for opening in openings], "routes": len(seen.routes)}
        found |= {"doubts": [asdict(doubt) for doubt in doubted], "of_the_operator": operators}
        print(json.dumps(found | {"not_examined": elsewhere, "not_visible": unseen}))
    else:
        for opening in openings:
            place = f"{options.config}:{opening.line}: " if opening.line else ""
            print(f"{place}{opening.rule}: {opening.where}: {opening.problem}\n    {opening.fix}")
        for doubt in doubted:
            place = f"{options.config}:{doubt.line}: " if doubt.line else ""
            print(f"{place}{doubt.field}: {doubt.name} {doubt.problem}", file=sys.stderr)
        if operators:
            print(
                f"not examined, for only the invoker knows its own catalog (INVOKER_CATALOG): {', '.join(operators)}",
                file=sys.stderr,
            )
        if elsewhere:
            print(
                f"not examined, for no plugin of this suite protects their services: {', '.join(elsewhere)}",
                file=sys.stderr,
            )
        if unseen:
            print(f"not examined, for they are not visible here: {', '.join(unseen)} (--env-file)", file=sys.stderr)
        print(f"{_counted(len(seen.routes), 'route')}, {_counted(len(openings), 'opening')}", file=sys.stderr)
    return 1 if openings else 0


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def read_environment(path: Path) -> dict[str, str]:
    """`NAME=value` lines; comments and blank lines are skipped. Raises Problem."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: is not UTF-8 text") from error
    pairs = (line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return {name.strip().removeprefix("export "): value.strip().strip("'\"") for name, _, value in pairs}
