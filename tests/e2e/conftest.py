"""The whole stack, once per run: real plugin server, Redis, CLI; minikong stands for Kong, or with KONG=… Kong for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.ports import free_port as free_port
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).parent / "kong-claude")
# What must not leak into a stack under test.
FOREIGN = ("ANTHROPIC_", "CLAUDE", "KONG_", "INVOKER_", "REDIS_URL")


def own_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"KONG_CLAUDE_HOME": str(home)}


@dataclass
class Gateway:
    """What a scenario needs of a stack, whichever gateway runs it."""

    url: str
    invoker: str
    home: Path
    pid: int

    def token(self, subject: str = "alice", *options: str) -> str:
        command = [COMMAND, "token", "--sub", subject, *options]
        return subprocess.run(
            command, env=own_environment(self.home), capture_output=True, text=True, check=True
        ).stdout.strip()

    def client(self, subject: str | None = None, *options: str, timeout: float = 60) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token(subject, *options)}"} if subject else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def record(self) -> list[dict[str, Any]]:
        """What reached the stand-in of the Messages API."""
        path = self.home / "standin.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self, word: str) -> list[psutil.Process]:
        """The stack's own processes whose command line has `word`."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def knocking(gateway: Gateway, clients: int = 4) -> Iterator[list[int]]:
    """Clients without a token ask without pause; yields the list in which their answers' statuses gather."""
    answered: list[int] = []
    stop = threading.Event()

    def knock() -> None:
        with gateway.client() as nobody:
            while not stop.is_set():
                try:
                    answered.append(nobody.post("/claude/invoke", json={"prompt": "hi"}).status_code)
                except httpx.TransportError:  # a connection that the gateway closed: no answer, and not the end
                    continue

    threads = [threading.Thread(target=knock) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG_S)


def gateway_option() -> list[str]:
    """As `make test-kong` runs these: on the Kong that the variable KONG names."""
    return ["--kong", os.environ["KONG"]] if os.environ.get("KONG") else []


def up(
    home: Path, port: int, *options: str, config: Path = ROOT / "kong.yml", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "up", "--detach", "--port", str(port), "--config", str(config), *gateway_option(), *options]
    own = own_environment(home) | environment
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=110, check=False)


@contextmanager
def standing(home: Path, *options: str, config: Path = ROOT / "kong.yml", **environment: str) -> Iterator[Gateway]:
    """A stack of its own, as long as the block runs."""
    started = up(home, free_port(), *options, config=config, **environment)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        running = json.loads((home / "stack.json").read_text())
        yield Gateway(running["proxy"], running["invoker"], home, running["pid"])
    finally:
        subprocess.run([COMMAND, "down"], env=own_environment(home), check=True, timeout=HANG_S)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with standing(tmp_path_factory.mktemp("stack")) as found:
        yield found
