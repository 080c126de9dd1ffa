"""Kong, the plugin server and Redis: started, ended, and what they have used of the CPU."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kong_claude.guard import LUA_PLUGINS
from kong_claude_local.stack import redis_binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Raises OSError where nobody does."""
    with socket.create_connection(("127.0.0.1", port)):
        return True


def wait_for(what: Callable[[], Any], name: str, seconds: float = 60) -> Any:
    """What it returns when that is true. OSErrors count as not yet."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{name} did not come up")


@contextmanager
def process(*command: str) -> Iterator[int]:
    """The pid of a child that is ended with the block."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def redis(folder: Path) -> Iterator[tuple[int, int]]:
    """(port, pid)."""
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with process(redis_binary(), *arguments) as pid:
        wait_for(lambda: listens(port), "Redis")
        yield port, pid


@contextmanager
def plugin_server(folder: Path, socket_path: Path, plugins: Path) -> Iterator[int]:
    # As docker-compose.yml has it.
    command = [sys.executable, "-m", "kong_claude.server", "-d", str(plugins), "-p", str(folder)]
    with process(*command, "--socket-name", socket_path.name, "--no-lua-style", "--event-timeout", "2") as pid:
        wait_for(socket_path.exists, "the plugin server")
        yield pid


@contextmanager
def kong(
    program: str, folder: Path, name: str, servers: dict[str, tuple[Path, Path]], lua_path: str
) -> Iterator[tuple[int, int]]:
    """(port, worker's pid) of a Kong with `servers`: plugin → (socket, directory of its file)."""
    port, prefix = free_port(), folder / name
    bundled = ",".join(("bundled", *LUA_PLUGINS))
    settings = {
        "PREFIX": str(prefix),
        "DATABASE": "off",
        "DECLARATIVE_CONFIG": str(folder / "kong.json"),
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_ACCESS_LOG": "off",
        "ADMIN_LISTEN": "off",
        "ADMIN_GUI_LISTEN": "off",
        "STATUS_LISTEN": "off",
        "ANONYMOUS_REPORTS": "off",
        "NGINX_WORKER_PROCESSES": "1",
        "NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE": "1m",
        "LUA_PACKAGE_PATH": lua_path,
        "PLUGINS": ",".join((bundled, *servers)),
        "PLUGINSERVER_NAMES": ",".join(servers),
    }
    if os.geteuid() == 0:
        settings["NGINX_USER"] = "root root"  # else the worker could not reach the sockets
    for plugin, (socket_path, directory) in servers.items():
        key = f"PLUGINSERVER_{plugin.upper().replace('-', '_')}"
        dump = [sys.executable, "-m", "kong_claude.server", "-d", str(directory), "--dump", plugin]
        settings |= {f"{key}_SOCKET": str(socket_path), f"{key}_QUERY_CMD": shlex.join(dump)}
    own = {name: value for name, value in os.environ.items() if not name.startswith("KONG_")}
    environment = own | {f"KONG_{name}": value for name, value in settings.items()}

    def call(verb: str) -> None:
        subprocess.run(
            [program, verb, "-p", str(prefix)], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120
        )

    call("start")
    master = int((prefix / "pids/nginx.pid").read_text())
    try:
        worker = wait_for(lambda: worker_of(master), "Kong's worker")
        wait_for(lambda: listens(port), "Kong")
        yield port, worker
    finally:
        call("stop")
        try:
            wait_for(lambda: not Path(f"/proc/{master}").exists(), "Kong's end", 20)
        except TimeoutError:
            os.kill(master, signal.SIGKILL)


def worker_of(master: int) -> int | None:
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    named = [int(pid) for pid in children if b"worker process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return named[0] if len(named) == 1 else None


def cpu_seconds(pid: int) -> float:
    """What the threads of the process have run, to the nanosecond (`stat` counts in ticks of 10 ms)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
