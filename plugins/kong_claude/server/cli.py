"""`kong-claude-pluginserver`: kong-pdk's command line, and what it lacks.

gevent is patched in before anything else, so that plugins may use blocking clients (redis-py, requests). A dump
writes JSON to stdout and nothing else: what plugins print while imported goes to stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kong_claude.server.keeper import keep, master_of
from kong_claude.server.logs import FORMATS, LEVELS, Logs


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments. Exits with status 2 on bad ones."""
    from kong_pdk.const import __version__

    import kong_claude
    from kong_claude import PLUGINS

    parser = argparse.ArgumentParser(
        prog="kong-claude-pluginserver", description="Kong plugin server for kong-pdk plugins."
    )
    add = parser.add_argument
    add(
        "-p",
        "--kong-prefix",
        "-kong-prefix",
        dest="prefix",
        default="/usr/local/kong/",
        metavar="DIR",
        help="directory of the socket (default: %(default)s)",
    )
    add(
        "-d",
        "--plugins-directory",
        "-plugins-directory",
        dest="directory",
        default=PLUGINS,
        type=Path,
        metavar="DIR",
        help="directory of the plugins' files (default: those of this package)",
    )
    add("--socket-name", default="python_pluginserver.sock", metavar="NAME", help="default: %(default)s")
    add("--socket-mode", type=_mode, default=0o600, metavar="OCTAL", help="default: 0600")
    add("--listen-queue-size", type=int, default=4096, metavar="N", help="default: %(default)s")
    add(
        "--no-lua-style",
        action="store_true",
        help="PDK functions return their value and raise PDKException, instead of returning (value, error)",
    )
    add(
        "--event-timeout",
        type=_seconds,
        default=25.0,
        metavar="SECONDS",
        help="an event is ended after this; keep it under half of Kong's lua_socket_read_timeout (default: 25)",
    )
    add("--max-in-flight", type=int, default=1024, metavar="N", help="events at once (default: %(default)s)")
    add(
        "--drain-timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long SIGTERM waits for running events (default: 5)",
    )
    add("--metrics-listen", type=_address, metavar="HOST:PORT", help="serve Prometheus metrics there")
    add(
        "--log-file",
        type=Path,
        metavar="PATH",
        help="log there, not to stderr, which Kong hides by default; rotate freely",
    )
    add("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    add("--log-format", choices=FORMATS, default="text", help="default: %(default)s")
    add(
        "-v", "--verbose", action="count", default=0, help="--log-level debug: also the messages of plugins' exceptions"
    )
    add(
        "--version",
        "-version",
        action="version",
        version=f"%(prog)s {kong_claude.__version__} (kong-pdk {__version__})",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("-m", "--multiprocessing", action="store_true", help="accepted, without effect")
    modes.add_argument("-g", "--gevent", action="store_true", help="accepted, without effect: always on")
    dumps = parser.add_mutually_exclusive_group()
    dumps.add_argument("--dump", metavar="NAME", help="one plugin as a list of one: what Kong >= 3.9 reads")
    dumps.add_argument(
        "--dump-plugin-info", "-dump-plugin-info", dest="dump_info", metavar="NAME", help="one plugin as an object"
    )
    dumps.add_argument(
        "--dump-all-plugins", "-dump-all-plugins", dest="dump_all", action="store_true", help="all plugins as a list"
    )
    return parser.parse_args(argv)


def _mode(text: str) -> int:
    mode = int(text, 8)
    if mode & ~0o777:
        raise ValueError(text)
    return mode


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise ValueError(text)
    return seconds


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "0.0.0.0", int(port)


def dump(args: argparse.Namespace) -> NoReturn:
    """Answers Kong's query command."""
    from kong_claude.server.plugins import LoadError, load_all

    out = os.dup(1)
    os.dup2(2, 1)  # also for what writes to the descriptor itself
    try:
        loaded = load_all(args.directory, args.dump or args.dump_info)
    except (LoadError, OSError) as error:
        sys.exit(f"error: {error}")
    info: Any = [plugin.info() for plugin in loaded.values()]
    sys.stdout.flush()
    with os.fdopen(out, "w", encoding="utf-8") as stream:
        json.dump(info[0] if args.dump_info else info, stream)
    sys.exit(0)


def _close_inherited() -> None:
    """Kong starts the server with its own descriptors open: listening sockets must not outlive Kong here."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        try:
            if fd > 2 and not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(fd)
        except OSError:
            pass


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the server, or a dump, and exits: 0 after SIGTERM, 1 when it cannot serve."""
    gc.disable()  # until all is imported: collections would be a seventh of the start
    args = parse(argv)
    dumping = args.dump or args.dump_info or args.dump_all
    master = None
    if not dumping:
        _close_inherited()
        master = master_of(os.getpid())
        if master is not None:
            keep()
    from gevent import monkey

    monkey.patch_all()
    try:
        logs = Logs(None if dumping else args.log_file, "debug" if args.verbose else args.log_level, args.log_format)
    except OSError as error:
        sys.exit(f"--log-file {args.log_file}: {error.strerror}")
    if dumping:
        dump(args)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what plugins print is in Kong's log at once

    from kong_claude.server.service import serve

    sys.exit(serve(args, master, logs))
