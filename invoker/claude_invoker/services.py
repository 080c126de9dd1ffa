"""What the routes work with, made once by `app.create_app`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from claude_contract.attestation import Key
from claude_invoker.idempotency import Claims
from claude_invoker.jobs.queue import Queues
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
from claude_invoker.metrics import Metrics
from claude_invoker.passthrough.desk import Desk
from claude_invoker.replay import SeenOnce
from claude_invoker.replicas.forwarding import Forwarder
from claude_invoker.replicas.register import Register
from claude_invoker.runs.engine import Engine
from claude_invoker.settings import Settings


@dataclass(frozen=True)
class Jobs:
    """Records and queues of jobs, on one Redis."""

    store: Store
    queues: Queues

    async def close(self) -> None:
        await self.queues.close()
        await self.store.close()


@dataclass(frozen=True)
class Replicas:
    """What this one knows of the others."""

    register: Register
    forwarder: Forwarder


@dataclass(frozen=True)
class Services:
    """`ledger` and `jobs` are None where no Redis is configured, `replicas` where none is for them."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    attestation_keys: Mapping[str, Key]
    seen: SeenOnce
    ledger: Ledger | None
    jobs: Jobs | None
    replicas: Replicas | None
    claims: Claims
    desk: Desk


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
