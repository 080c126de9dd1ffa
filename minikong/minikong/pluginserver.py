"""Plugin server processes: what they serve, starting, respawning, stopping.

Source: kong/runloop/plugin_servers/process.lua 3.9.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from minikong import cjson
from minikong.conf import PluginServer
from minikong.external import PluginInfo
from minikong.luavalue import lua_type, tostring

Log = Callable[[str, str], None]
RESPAWN_PAUSE = 1.0  # seconds from one start to the next


class StartError(Exception):
    """Kong would not start; the text is what `kong start` prints."""


def query(server: PluginServer) -> PluginInfo:
    """The first plugin that the server's query command describes. Its stderr is ours.

    Raises:
        StartError: with the text of Kong's error.
    """
    done = subprocess.run(  # noqa: S602 -- the command line is the admin's, as io.popen runs it
        server.query_command, shell=True, stdout=subprocess.PIPE, check=False
    )
    try:
        dump = cjson.decode(done.stdout)
    except ValueError:
        found = "T_END" if not done.stdout.strip() else "invalid token"
        raise StartError(
            f"failed loading external plugins: failed decoding plugin info: Expected value but found {found} "
            "at character 1"
        ) from None
    if not isinstance(dump, list | dict):
        output = done.stdout.decode("utf-8", "replace")
        raise StartError(
            f"failed loading external plugins: not a plugin info table: \n{server.query_command}\n{output}"
        )
    protocol, plugins = b"MsgPack:1", dump
    if isinstance(dump, dict):
        protocol = dump.get(b"Protocol", protocol)
        plugins = dump.get(b"Plugins", dump)
    info = plugins[0] if isinstance(plugins, list) and plugins else None
    if info is None:
        raise StartError("attempt to index local 'info' (a nil value)")
    return _info(_text(info), _text(protocol))


def _info(info: Any, protocol: str) -> PluginInfo:
    if not isinstance(info, dict) or info.get("Name") is None:
        raise StartError("table index is nil")
    name = _shown(info["Name"])  # one that is no text is nobody's
    phases = info.get("Phases")
    if not isinstance(phases, list | dict):
        raise StartError(f"bad argument #1 to 'ipairs' (table expected, got {lua_type(phases)})")
    return PluginInfo(
        name=name,
        phases=tuple(phases) if isinstance(phases, list) else (),
        priority=info.get("Priority"),  # type: ignore[arg-type]  # check_plugin looks at them
        version=info.get("Version"),  # type: ignore[arg-type]
        schema=info.get("Schema"),  # type: ignore[arg-type]
        protocol=protocol,
    )


def check_plugin(info: PluginInfo) -> None:
    """kong/db/dao/plugins.lua's checks of a plugin's VERSION and PRIORITY. Raises StartError."""
    if isinstance(info.priority, bool) or not isinstance(info.priority, int):
        raise StartError(
            f"error loading plugin schemas: on plugin '{info.name}': Plugin \"{info.name}\" cannot be loaded because "
            f'its PRIORITY field is not a valid integer number, got: "{_shown(info.priority)}".'
        )
    if not isinstance(info.version, str) or not _is_version(info.version):
        raise StartError(
            f"error loading plugin schemas: on plugin '{info.name}': Plugin \"{info.name}\" cannot be loaded because "
            f'its VERSION field does not follow the "x.y.z" format, got: "{_shown(info.version)}".'
        )


def not_installed(name: str) -> StartError:
    return StartError(
        f"error loading plugin schemas: on plugin '{name}': {name} plugin is enabled but not installed;"
        "\nno plugin found"
    )


def _is_version(text: str) -> bool:
    """lua-version's parser takes the first digits and dots of a text: "1", "v2.1 beta"."""
    found = re.search(r"\d[\d.]*", text)
    parts = found[0].removesuffix(".").split(".") if found else []
    return 0 < len(parts) < 4 and "" not in parts


def _shown(value: Any) -> str:
    """Lua's `tostring`; ngx.null is a userdata."""
    return value if isinstance(value, str) else tostring(value).decode("utf-8", "replace")


def _text(value: Any) -> Any:
    """The same with str for bytes (the schema engine works on text)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_text(item) for item in value]
    if isinstance(value, dict):
        return {_text(k): _text(v) for k, v in value.items()}
    return value


class Process:
    """One plugin server that minikong starts and keeps alive."""

    def __init__(self, server: PluginServer, log: Log, cwd: str | None = None) -> None:
        self.server = server
        self.log = log
        self.cwd = cwd
        self.process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.get_running_loop().create_task(self._keep_alive())

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    async def _keep_alive(self) -> None:
        name, command = self.server.name, self.server.start_command
        next_spawn = 0.0
        while True:
            await asyncio.sleep(max(0.0, next_spawn - time.monotonic()))
            self.log("notice", f"[pluginserver] starting pluginserver process for {name}")
            self.process = await asyncio.create_subprocess_shell(
                f"exec {command}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={},  # nginx keeps almost nothing of its environment; the shell sets PWD
                cwd=self.cwd,
                limit=1 << 20,
            )
            next_spawn = time.monotonic() + RESPAWN_PAUSE
            pid = self.process.pid
            self.log("notice", f"[pluginserver] started, pid {pid}")
            reader = asyncio.get_running_loop().create_task(self._grab_logs(self.process))
            status = await self.process.wait()
            reader.cancel()
            if status == 127:
                self.log(
                    "err",
                    f'[pluginserver] external pluginserver "{name}" start command "{command}" exited with '
                    '"command not found"',
                )
            else:
                reason = f"signal {-status}" if status < 0 else f"exit {status}"
                self.log("notice", f"external pluginserver '{name}' terminated: {reason}")

    async def _grab_logs(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the limit
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip("\n")
            if text:
                self.log("info", f"[{self.server.name}:{process.pid}] {text}")

    async def stop(self, patience: float = 2.0) -> None:
        """SIGTERM; SIGKILL for what is still there after `patience` seconds."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(patience):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
