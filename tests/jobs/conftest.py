"""Jobs on a real Redis. Where the invoker runs, `bench/fast_cli.sh` stands for the CLI unless a test says otherwise."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from bench.jobs import FAST_CLI
from claude_contract import ledger
from claude_contract.attestation import HEADER, Signer
from claude_contract.claims import body_hash
from claude_invoker import redis_clients
from claude_invoker.app import create_app
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import Job, JobRequest
from claude_invoker.jobs.store import Store, connect
from claude_invoker.settings import Settings
from kong_claude_local.standin import StandIn
from tests.invoker.conftest import user_ids
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed
from tests.support.waiting import HANG_S
from tests.support.waiting import until as until

Found = TypeVar("Found")
SECRET = secrets.token_hex(32)
CHECKS = ["jwt-claims", "rate-tiers"]
SIGNER = Signer("1", SECRET.encode(), {"1": SECRET.encode()})
OVER = ("done", "failed", "cancelled")
_uid_bases = user_ids()


@pytest.fixture
async def store(redis_server: RedisProcess) -> AsyncIterator[Store]:
    redis = connect(redis_server.url)
    yield Store(redis, ("team", "pro"))
    await redis.aclose()


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory that the users of runs can reach."""
    folder = Path(tempfile.mkdtemp(prefix="jobs-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def job(
    subject: str = "alice", tier: str = "", prompt: str = "hi", created_at: float | None = None, **more: Any
) -> Job:
    return Job.new(JobRequest(prompt=prompt, **more), Caller(subject, tier=tier), created_at or time.time())


@dataclass
class Gateway:
    """Plays the gateway towards an application: signs each request as its plugins do."""

    client: httpx.AsyncClient
    app: FastAPI
    redis_url: str = ""

    async def ask(
        self,
        method: str,
        path: str,
        subject: str | None = "alice",
        *,
        claims: dict[str, Any] | None = None,
        **options: Any,
    ) -> httpx.Response:
        request = self.client.build_request(method, path, **options)
        request.headers[HEADER] = attestation(method, raw_path(request), subject, request.read(), **(claims or {}))
        return await self.client.send(request)

    async def create(self, prompt: str = "hi", subject: str = "alice", **more: Any) -> dict[str, Any]:
        answer = await self.ask("POST", "/claude/jobs", subject, json={"prompt": prompt} | more)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    async def see(self, created: dict[str, Any], subject: str = "alice", *states: str) -> dict[str, Any]:
        """The job, once it is in one of the states (or over)."""

        async def reached() -> dict[str, Any] | None:
            found = (await self.ask("GET", created["links"]["self"], subject)).json()
            return found if found["state"] in (states or OVER) else None

        return await until(reached, f"{created['id']} in {states or OVER}")


def raw_path(request: httpx.Request) -> str:
    """The path as it is sent, which is what the gateway signs."""
    return request.url.raw_path.partition(b"?")[0].decode()


def attestation(method: str, path: str, subject: str | None, body: bytes = b"", **more: Any) -> str:
    claims = {"sub": subject, "chk": CHECKS, "bsh": body_hash(body)} | more
    return signed(SIGNER, method, path, **claims)


@asynccontextmanager
async def serving(redis_server: RedisProcess, state: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """The application as it runs, its worker in it; answers without a socket."""
    async with StandIn().running() as api:
        chosen: dict[str, Any] = {
            "redis_url": redis_server.url,
            "state_dir": state / "state",
            "attestation_key": SECRET,
            "cli_path": FAST_CLI,
            "isolation": "none",
            "anthropic_api_key": "sk-ant-none",
            "anthropic_base_url": api.url,
            "worker": "embedded",
            "heartbeat_s": 0.5,
            "uid_base": next(_uid_bases),
        }
        app = create_app(Settings(**(chosen | settings)))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://invoker", timeout=HANG_S) as client:
                yield Gateway(client, app, redis_server.url)


@asynccontextmanager
async def limits_on(redis_url: str) -> AsyncIterator[ledger.AsyncLedger]:
    """The ledger wherever its keys are: on a Cluster that is another node than the jobs'."""
    client = redis_clients.client(redis_url)
    try:
        yield ledger.AsyncLedger(client)
    finally:
        await client.aclose()


def terms(concurrent: int = 1, **more: Any) -> ledger.Slot:
    return ledger.Slot(concurrent=concurrent, run_micro_usd=250_000, day_micro_usd=10**9, ttl_ms=10_000, **more)


def slot(concurrent: int = 1, **more: int) -> dict[str, Any]:
    """The claims of a caller whom the gateway lets in to wait."""
    return {"slot": terms(concurrent, **more).claim(), "queue": True}


def lease(subject: str) -> str:
    return str(ledger.Lease.new(ledger.NAMESPACE, ledger.subject_key("subject", subject), 250_000))
