"""Two invokers and two workers behind the gateway, each a process that can be killed and comes back with what it has on
its disk: the shipped `kong.yml`, plugin server, two Redis, a store, the stand-in of the Messages API."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import yaml

from bench.jobs import FAST_CLI
from claude_contract.attestation import new_private_key, public_key_of
from kong_claude_local.token import AUDIENCE, ISSUER
from tests.invoker.conftest import clean_environment, user_ids
from tests.invoker.money import Charges, charging
from tests.rate_tiers.servers import RedisProcess
from tests.support.gateway import Alone, gateway_alone
from tests.support.ports import free_port
from tests.support.processes import command_line
from tests.support.s3 import ID, S3, SECRET
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
JWT_SECRET = "the tests' own secret, of more than 32 bytes"
INVOKERS, WORKERS = ("invoker-1", "invoker-2"), ("worker-1", "worker-2")


@dataclass
class Part:
    """One of them. `seen`: every process it has been, the one that lives last."""

    name: str
    command: str
    settings: dict[str, Any]
    log: Path
    seen: list[subprocess.Popen[bytes]] = field(default_factory=list)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is made to stop and start again."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.seen[-1]

    def start(self) -> None:
        environment = clean_environment() | {f"INVOKER_{name.upper()}": str(v) for name, v in self.settings.items()}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "claude_invoker", self.command]
            self.seen.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended: {self.log.read_text()[-3000:]}")
        if self.command == "worker":
            health = Path(self.settings["health_path"])
            return health.exists() and health.read_text().strip() == "ready"
        try:
            return httpx.get(f"http://127.0.0.1:{self.settings['port']}/readyz", timeout=HANG_S).status_code == 200
        except httpx.TransportError:
            return False

    async def ready(self) -> None:
        async with asyncio.timeout(HANG_S):
            while not await asyncio.to_thread(self.is_ready):
                await asyncio.sleep(0.05)

    def forget_health(self) -> None:
        """What a killed worker said of itself."""
        if self.command == "worker":
            Path(self.settings["health_path"]).unlink(missing_ok=True)

    async def kill(self) -> None:
        """By SIGKILL; another takes its place with the same directory. Returns when that is ready."""
        async with self.busy:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.forget_health()
            self.start()
            await self.ready()

    async def replace(self) -> None:
        """As an orchestrator does it: asked to stop, given its time, and started anew."""
        async with self.busy:
            self.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self.process.wait, HANG_S)
            self.start()
            await self.ready()

    async def kill_proxy(self) -> bool:
        """Its metering proxy, which it starts again. Whether there was one."""
        async with self.busy:
            found = [child for child in self._children() if "claude_invoker.metering" in command_line(child)]
            for child in found:
                child.kill()
            return bool(found)

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []


@dataclass
class Stage:
    """`ledger` and `runs` are the two Redis; `begun` is where the stand-in of the CLI writes down what it does."""

    folder: Path
    ledger: RedisProcess
    runs: RedisProcess
    charges: Charges
    gateway: Alone
    parts: dict[str, Part]
    is_real: bool = False
    """With the real CLI, and an S3 server for the store."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.proxy}"

    @property
    def begun(self) -> Path:
        return self.folder / "begun"

    def client(self, subject: str, tier: str = "team") -> httpx.AsyncClient:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "tier": tier, "roles": ["claude:invoke"]}
        now = int(time.time())
        token = jwt.encode(claims | {"iat": now, "exp": now + 7200}, JWT_SECRET, algorithm="HS256")
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=HANG_S)

    @property
    def jobs_go_back(self) -> bool:
        """Whether those of a worker that is gone run again."""
        return self.parts[WORKERS[0]].settings.get("on_worker_loss") == "retry"

    def tracebacks(self) -> list[str]:
        """What the logs of its processes have of them."""
        found = []
        for part in self.parts.values():
            for before, after in itertools.pairwise(part.log.read_text(errors="replace").split("Traceback")):
                found.append(f"{part.name}: {before[-300:]}Traceback{after[:3000]}")
        return found

    @property
    def restarts(self) -> int:
        return sum(len(part.seen) - 1 for part in self.parts.values())

    def charged(self) -> list[dict[str, Any]]:
        """Each request that the API charges for."""
        path = self.charges.path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    async def kill_plugin_server(self) -> bool:
        """Which its keeper starts again. Whether there was one."""
        (_, process), *_ = self.gateway.supervisor.running
        children = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in children if "claude.sock" in command_line(child)]
        for child in found:
            os.kill(child.pid, signal.SIGKILL)
        return bool(found)


async def restart_redis(server: RedisProcess) -> None:
    """Killed, and back with its log."""
    server.kill()
    await asyncio.to_thread(server.start)


def config(ports: list[int]) -> str:
    """The shipped one, with two invokers for one."""
    shipped = yaml.safe_load((ROOT / "kong.yml").read_text())
    shipped["upstreams"] = [{"name": "invoker", "targets": [{"target": f"127.0.0.1:{port}"} for port in ports]}]
    return json.dumps(shipped)


@contextmanager
def staged(*, is_real: bool = False, **more: Any) -> Iterator[Stage]:
    """All of it, ready, as long as the block runs. `more`: settings of invokers and workers."""
    folder = Path(tempfile.mkdtemp(prefix="replicas-"))
    folder.chmod(0o711)  # runs have users of their own
    (folder / "begun").touch()
    (folder / "begun").chmod(0o666)
    key, ports, bases = new_private_key(), [free_port() for _ in INVOKERS], user_ids()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = [RedisProcess("--appendonly", "yes", "--maxmemory-policy", "noeviction") for _ in range(2)]
        for server in redis:
            stack.callback(server.close)
        ledger, runs = redis
        charges = stack.enter_context(charging(folder))
        if is_real:
            logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's, which tells each request
            s3 = S3()
            stack.callback(s3.stop)
            own: dict[str, Any] = {"store": s3.url("chaos"), "store_key": f"{ID}:{SECRET}"}
        else:
            own = {"store": f"file://{folder}/store", "cli_path": FAST_CLI, "isolation": "none"}

        def settings(name: str, **its: Any) -> dict[str, Any]:
            shared = {
                "redis_url": ledger.url, "runs_redis_url": runs.url, "state_dir": folder / name, "uid_base": next(bases),
                "attestation_key": public_key_of(key, "the gateway's"), "anthropic_api_key": "sk-ant-none",
                "anthropic_base_url": charges.url, "pool_size": 0, "max_runs": 8, "queue_wait_s": HANG_S, "heartbeat_s": 1,
            }  # fmt: skip
            return shared | own | more | its

        parts: dict[str, Part] = {}
        for name, port in zip(INVOKERS, ports, strict=True):
            parts[name] = Part(name, "serve", settings(name, port=port), folder / f"{name}.log")
        for name in WORKERS:
            chosen = settings(name, health_path=folder / f"{name}.health", worker_concurrency=3)
            parts[name] = Part(name, "worker", chosen, folder / f"{name}.log")
        for part in parts.values():
            part.start()
            stack.callback(stop, part)
        secrets = {
            "CLAUDE_REDIS_URL": ledger.url, "CLAUDE_JWT_SECRET": JWT_SECRET, "CLAUDE_ATTESTATION_KEY": key,
        }  # fmt: skip
        gateway = stack.enter_context(gateway_alone(config(ports), lambda _, __, ___: secrets))
        for part in parts.values():
            asyncio.run(part.ready())
        yield Stage(folder, ledger, runs, charges, gateway, parts, is_real)


def stop(part: Part) -> None:
    for process in part.seen:
        if process.poll() is None:
            process.terminate()
    for process in part.seen:
        process.wait(HANG_S)
