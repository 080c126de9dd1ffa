"""`kong-claude guard`: the fail-closed guard for a route or service, as configuration for Kong."""

from __future__ import annotations

import argparse

from kong_claude.guard import BYS, KEYS, LUA_PATH, PAIR_PATH, PLUGIN, By, lua, named
from kong_claude.problem import Problem

HELP = "print the guard: 503 unless each plugin left the mark of the route (or service) that Kong matched"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by",
        choices=BYS,
        default="route",
        help="whose id the mark must be: what the plugins themselves are bound to (default: route)",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        choices=sorted(KEYS),
        help="a plugin that must have passed, may be repeated (default: claude-gateway)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--lua-plugin", action="store_true", help="print the form for a Kong that has the plugin claude-guard installed"
    )
    form.add_argument("--mark", help="for plugins that have this `mark` in their config; --by does not matter then")
    form.add_argument("--lua-path", action="store_true", help="print Kong's lua_package_path with claude-guard in it")
    form.add_argument(
        "--pair",
        action="store_true",
        help="print the same with the Lua half of our plugins in it: one round trip per event instead of one per call",
    )


def run(options: argparse.Namespace) -> int:
    plugins = options.plugin or ["claude-gateway"]
    if options.lua_path:
        print(f"{LUA_PATH};;")
    elif options.pair:
        print(f"{PAIR_PATH};{LUA_PATH};;")
    elif options.lua_plugin:
        print(lua_plugins(plugins, options.by), end="")
    else:
        print(post_function(code(options.mark, plugins, options.by)), end="")
    return 0


def code(mark: str | None, plugins: list[str], by: By) -> str:
    """The guard's Lua. Raises Problem."""
    try:
        return lua(plugins, by) if mark is None else named(mark, plugins)
    except ValueError as error:
        raise Problem(str(error)) from error


def post_function(code: str) -> str:
    """A plugin entry for kong.yml."""
    indented = "".join(f"      {line}\n" for line in code.splitlines())
    return f"- name: post-function\n  config:\n    access:\n    - |\n{indented}"


def lua_plugins(plugins: list[str], by: By) -> str:
    """Plugin entries for kong.yml, one per place in Kong's order."""
    made = ""
    for plugin in plugins:
        which = f", plugin: {plugin}" if PLUGIN[plugin] == "claude-guard" else ""
        made += f"- name: {PLUGIN[plugin]}\n  config: {{by: {by}{which}}}\n"
    return made
