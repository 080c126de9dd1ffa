"""`kong-claude env`: Kong's environment for plugins of this package, to be put where Kong is started."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from kong_claude.environment import FORMS, IMAGE, IMAGE_PAIR_PATH, PLUGINS, Server, environment
from kong_claude.guard import PAIR_PATH
from kong_claude.problem import Problem

HELP = "print the environment that Kong needs to run the plugins"
IN_THE_IMAGE = ("compose", "helm")
HOST_PREFIX = "/usr/local/kong"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints the environment that Kong needs to run the plugins: their names, the plugin server's entries by full "
        "paths, the guards' Lua path, time-outs and the body buffer. What KONG_PLUGINS, KONG_PLUGINSERVER_NAMES and "
        "KONG_LUA_PACKAGE_PATH of this environment name already is kept."
    )
    parser.add_argument(
        "--plugin",
        action="append",
        choices=PLUGINS,
        help="may be repeated; the first one's entry starts the process (default: claude-gateway and claude-metrics)",
    )
    parser.add_argument(
        "--prefix",
        metavar="DIR",
        help=f"directory of the socket, writable by Kong's user (default: Kong's prefix, {HOST_PREFIX}; in the image "
        f"{IMAGE.prefix})",
    )
    parser.add_argument(
        "--format",
        choices=FORMS,
        default="env",
        help="env: a file for the shell or docker run (default); systemd: a drop-in; compose, helm: for the image of "
        "plugins/Dockerfile",
    )
    parser.add_argument(
        "--pair", action="store_true", help="with the Lua half of the plugins: one round trip per event (guard --pair)"
    )
    parser.add_argument("--metrics-listen", metavar="HOST:PORT", help="serve the plugin server's metrics there")


def run(options: argparse.Namespace) -> int:
    plugins = list(dict.fromkeys(options.plugin or ["claude-gateway", "claude-metrics"]))
    if options.format in IN_THE_IMAGE:
        place = IMAGE
    else:
        program = Path(sys.executable).with_name("kong-claude-pluginserver")
        if not program.is_file():
            raise Problem(f"{program} is missing: install this package with pip, for the Python that Kong shall use")
        place = Server(str(program), HOST_PREFIX)
    pair_path = (IMAGE_PAIR_PATH if place is IMAGE else PAIR_PATH) if options.pair else None
    server = replace(place, prefix=options.prefix or place.prefix, pair_path=pair_path, metrics=options.metrics_listen)
    print(FORMS[options.format].written(environment(plugins, server, os.environ)), end="")
    for plugin in plugins[1:] if options.format not in IN_THE_IMAGE else ():
        if (other := Path("/usr/local/bin", plugin)).exists():
            print(f"kong-claude: remove {other}: Kong would start it beside the plugin server", file=sys.stderr)
    return 0
