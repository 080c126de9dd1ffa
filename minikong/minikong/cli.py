"""`minikong`: a stand-in for Kong Gateway on this machine, for development and tests."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from minikong import app, conf, declarative, pluginserver
from minikong.schema.metaschema import BadSchema

_log = logging.getLogger("minikong")


class StartError(Exception):
    """Why minikong does not start; one line per problem."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minikong",
        description="A stand-in for Kong Gateway 3.9 in development and tests. Production is Kong.",
        epilog="KONG_* environment variables are read as Kong reads them.",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="declarative configuration (kong.yml)")
    add("--conf", type=Path, metavar="FILE", help="kong.conf")
    add("--proxy-listen", metavar="ADDRESSES", help="as in kong.conf (default: 127.0.0.1:8000)")
    add("--admin-listen", metavar="ADDRESSES", help="as in kong.conf, or unix:/path (default: 127.0.0.1:8001)")
    add(
        "--plugins-directory",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="serve the Python plugins of DIR with kong-pdk's own server; may be given several times",
    )
    add("-v", "--verbose", action="store_true", help="log at level debug")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM. 2 if it cannot start: what is wrong is on stderr, with file, line and field."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s [%(levelname)s] %(message)s",
        stream=sys.stderr,
    )
    with tempfile.TemporaryDirectory(prefix="minikong-") as prefix:
        name = "declarative config"
        try:
            settings = _load(options, Path(prefix))
            name = settings.declarative_config or name
            uvloop.run(run(settings))
        except declarative.DeclarativeError as problem:
            print("\n".join(problem.located(name)), file=sys.stderr)
            return 2
        except (StartError, conf.ConfError, BadSchema, pluginserver.StartError, OSError) as problem:
            print(f"minikong: {problem}", file=sys.stderr)
            return 2
    return 0


async def run(settings: conf.KongConf) -> None:
    """Serves until SIGINT or SIGTERM; SIGHUP reloads as `kong reload` does, the declarative config included."""
    for warning in settings.warnings:
        _log.warning(warning)
    running = await app.start(settings, environ=os.environ)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.get_running_loop().create_task(_reload(running))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    # Said last: whoever has read it may send any of these signals.
    for kind, addresses in (("proxy", running.proxy_addresses), ("Admin API", running.admin_addresses)):
        listens = settings.proxy_listen if kind == "proxy" else settings.admin_listen
        for listen, bound in zip(listens, addresses, strict=True):
            _log.info("%s listening on %s", kind, listen.url(bound))
    try:
        await stop.wait()
    finally:
        with contextlib.suppress(ConnectionError):
            await running.stop()


async def _reload(running: app.App) -> None:
    """A config or a plugin that Kong would refuse leaves everything as it is."""
    try:
        await running.reload()
    except declarative.DeclarativeError as problem:
        _log.error("not reloaded: %s", "; ".join(problem.located(running.conf.declarative_config or "config")))
    except (BadSchema, pluginserver.StartError, OSError) as problem:
        _log.error("not reloaded: %s", problem)
    else:
        _log.info("reloaded")


def _load(options: argparse.Namespace, prefix: Path) -> conf.KongConf:
    """kong.conf and the environment, and over them the command line."""
    settings = _settings(options, prefix)
    made = conf.load(options.conf, os.environ, settings)
    if not options.plugins_directory:
        return made
    if made.pluginservers:
        raise StartError("--plugins-directory and pluginserver_names exclude each other")
    settings |= plugin_settings(options.plugins_directory, prefix, ",".join(sorted(made.plugins)))
    return conf.load(options.conf, os.environ, settings)


def _settings(options: argparse.Namespace, prefix: Path) -> dict[str, str]:
    """The command line as kong.conf settings."""
    settings: dict[str, str] = {"log_level": "debug"} if options.verbose else {}
    if options.conf is None:
        # Kong listens on all addresses and on TLS by default; a tool for one machine does not.
        if "KONG_PROXY_LISTEN" not in os.environ:
            settings["proxy_listen"] = "127.0.0.1:8000"
        if "KONG_PREFIX" not in os.environ:
            settings["prefix"] = str(prefix)
    if options.proxy_listen:
        settings["proxy_listen"] = options.proxy_listen
    if options.admin_listen:
        settings["admin_listen"] = options.admin_listen
    if options.config:
        settings["declarative_config"] = str(options.config)
    return settings


def plugin_settings(directories: Sequence[Path], prefix: Path, plugins: str = "bundled") -> dict[str, str]:
    """kong.conf settings that serve the plugins in `directories` with kong-pdk's own server, one process each.

    Raises:
        StartError: a directory has no plugins, or they cannot be loaded.
    """
    settings: dict[str, str] = {}
    names: list[str] = []
    for number, directory in enumerate(directories):
        dumps = _dump(directory)
        socket = f"python{number}.sock"
        server = [_server(), "-d", str(directory.resolve()), "-p", str(prefix), "--socket-name", socket]
        for index, dump in enumerate(dumps):
            name = str(dump["Name"])
            names.append(name)
            query = prefix / f"query-{name}.json"
            query.write_text(json.dumps([dump]))
            keys = f"pluginserver_{name.replace('-', '_')}"
            settings[f"{keys}_socket"] = str(prefix / socket)
            # Kong takes the first plugin of a dump only, and several names may share one server.
            settings[f"{keys}_query_cmd"] = shlex.join(["cat", str(query)])
            if index == 0:
                settings[f"{keys}_start_cmd"] = shlex.join(server)
    if names:
        settings["pluginserver_names"] = ",".join(names)
        settings["plugins"] = ",".join([plugins, *names])
    return settings


def _server() -> str:
    return str(Path(sys.executable).with_name("kong-python-pluginserver"))


def _dump(directory: Path) -> list[dict[str, object]]:
    if not directory.is_dir():
        raise StartError(f"{directory}: no such directory")
    done = subprocess.run(
        [_server(), "-d", str(directory), "--dump-all-plugins"], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise StartError(f"{directory}: cannot load its plugins\n{done.stderr.strip()}") from None
    if not found:
        raise StartError(f"{directory}: no plugins in it")
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
