"""Plugin modules as kong-pdk defines them, and their instances.

A plugin file has `Plugin` (a class made with the config, with a method per phase), and optionally `Schema`, `version`,
`priority`; here also `on_error = "deny" | "pass"` (module or class): what an event that fails means to Kong, by
default a refusal. A `close()` method is called when Kong closes the instance or nobody has used it for a while.
"""

from __future__ import annotations

import logging
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kong_pdk.module import Module

from kong_claude.server.pair import Questions

log = logging.getLogger("kong_claude.pluginserver")

EXTENSIONS = (".py", ".so")
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Kong can be told to refuse in these (golden data: exit works in rewrite, access and response; in certificate it is
# a Lua error, which aborts the handshake). In log the answer is out already.
REFUSING_PHASES = frozenset(("certificate", "rewrite", "access", "preread", "response"))


class LoadError(Exception):
    """A plugin file that cannot be used; the message names it."""


class PhaseStats:
    """Counters of one plugin in one phase, read by the metrics."""

    __slots__ = ("buckets", "calls", "denied", "events", "exceptions", "exits", "seconds", "timeouts")

    def __init__(self) -> None:
        self.events = self.exits = self.exceptions = self.timeouts = self.denied = self.calls = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)

    def observe(self, seconds: float, calls: int) -> None:
        self.events += 1
        self.calls += calls
        self.seconds += seconds
        self.buckets[0 if seconds <= 0.001 else bisect_left(LATENCY_BUCKETS, seconds)] += 1


class Plugin:
    """One loaded plugin module."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        on_error = getattr(module.cls, "on_error", getattr(module.mod, "on_error", "deny"))
        if on_error not in ("deny", "pass"):
            raise LoadError(f"plugin {name}: on_error must be 'deny' or 'pass'")
        self.denies = on_error == "deny"
        self.stats = {phase: PhaseStats() for phase in module.phases}

    def info(self) -> dict[str, Any]:
        """What Kong's query command wants to read."""
        config = {"config": {"type": "record", "fields": self.module.schema}}
        return {
            "Name": self.name,
            "Phases": self.module.phases,
            "Priority": self.module.priority,
            "Version": self.module.version,
            "Schema": {"name": self.name, "fields": [config]},
        }


class Phase(NamedTuple):
    """What an event needs to know, looked up once per instance."""

    name: str
    handler: Callable[[Any], object]
    stats: PhaseStats
    refuses: bool  # a failure is answered with 503


class Instance:
    """A plugin with one configuration, as Kong started it."""

    __slots__ = (
        "active",
        "closing",
        "config",
        "id",
        "last_used",
        "object",
        "phases",
        "plugin",
        "questions",
        "start_time",
    )

    def __init__(self, id_: int, plugin: Plugin, config: Any, object_: Any) -> None:
        self.id = id_
        self.plugin = plugin
        self.config = config
        self.object = object_
        self.start_time = time.time()
        self.last_used = time.monotonic()
        self.active = 0
        self.closing = False
        self.questions = Questions(id_)
        self.phases = {
            name: Phase(name, getattr(object_, name), stats, plugin.denies and name in REFUSING_PHASES)
            for name, stats in plugin.stats.items()
        }

    def status(self) -> dict[str, Any]:
        return {
            "Name": self.plugin.name,
            "Id": self.id,
            "Config": self.config,
            "StartTime": self.start_time,
        }

    def close(self) -> None:
        """Runs the plugin's own `close()`, if it has one."""
        close = getattr(self.object, "close", None)
        if callable(close):
            close()


class Instances:
    """All running instances by id. Ids are random 52-bit integers: Kong keeps ids over a restart of the server, and
    a stale id must never meet another plugin's configuration (Lua numbers are exact below 2^53)."""

    def __init__(self) -> None:
        self.by_id: dict[Any, Instance] = {}

    def new_id(self) -> int:
        while True:
            id_ = (1 << 51) | secrets.randbits(51)
            if id_ not in self.by_id:
                return id_

    def unused_since(self, moment: float) -> list[Instance]:
        return [i for i in self.by_id.values() if not i.active and i.last_used < moment]


def plugin_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(plugin name, file) of each plugin file. Raises OSError."""
    for path in sorted(directory.iterdir()):
        if path.suffix in EXTENSIONS and path.is_file() and not path.stem.startswith(("_", ".")):
            yield path.stem.split(".")[0] if path.suffix == ".so" else path.stem, path


def load(name: str, path: Path) -> Plugin:
    """Imports one plugin file. Raises LoadError for whatever goes wrong in it."""
    try:
        return Plugin(name, Module(name, path=str(path)))
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"plugin {name}: {type(error).__name__}: {error}") from error


def load_all(directory: Path, only: str | None = None) -> dict[str, Plugin]:
    """The plugins of a directory, or the one named. A file that cannot be loaded is an error for `only`, else a
    logged line, as with kong-pdk. Raises LoadError, OSError."""
    found = {}
    for name, path in plugin_files(directory):
        if only is None or name == only:
            try:
                found[name] = load(name, path)
            except LoadError as error:
                if only is not None:
                    raise
                log.error("%s", error)
    if only is not None and only not in found:
        raise LoadError(f"no plugin {only} in {directory}")
    return found
