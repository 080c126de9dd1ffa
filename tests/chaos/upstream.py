"""The upstream of the chaos suite: it counts whom the gateway let in, and plays the invoker towards the ledger."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import redis.asyncio
from aiohttp import web

from claude_contract import ledger
from claude_contract.attestation import HEADER, Key, demand, verify
from claude_contract.claims import Attestation
from claude_contract.members import AttestationError

FUNCTION = "chaos"  # of Lambda
CHAT = "/v1/chat/completions"
UNKNOWN = "?:bad:?"
CHECKS = ("jwt-claims", "rate-tiers", "prompt-context")


@dataclass
class Seen:
    """What reached the upstream since the last `clear`."""

    requests: int = 0
    unauthenticated: list[str] = field(default_factory=list)
    wrong_tenant: list[str] = field(default_factory=list)
    unattested: list[str] = field(default_factory=list)


class Upstream:
    """Answers /a and /b. A request says in X-Chaos what it is: `<tenant>:<good|bad>:<subject>`."""

    def __init__(self, key: Key, redis_url: str) -> None:
        self.key = key
        self.redis = redis.asyncio.from_url(redis_url)
        self.seen = Seen()
        self.routes: dict[str, str] = {}  # path → the route id it came with first
        self.runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        application = web.Application()
        application.router.add_post(f"/2015-03-31/functions/{FUNCTION}/invocations", self.function)
        application.router.add_post(CHAT, self.chat)
        application.router.add_post("/{row}/{place:guarded|late|bare}", self.unattested)
        application.router.add_route("*", "/{path:.*}", self.answer)
        self.runner = web.AppRunner(application, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, host, port, reuse_address=True, shutdown_timeout=0.1).start()

    async def stop(self) -> None:
        if self.runner:
            await self.runner.cleanup()
            self.runner = None

    def count(self, kind: str) -> None:
        self.seen.requests += 1
        if kind.split(":")[1] != "good":
            self.seen.unauthenticated.append(kind)

    async def function(self, request: web.Request) -> web.Response:
        """Lambda's: the client's request is in the body."""
        headers = (await request.json())["request_headers"]
        self.count(next((v for n, v in headers.items() if n.lower() == "x-chaos"), UNKNOWN))
        return web.json_response({"function": FUNCTION})

    async def chat(self, request: web.Request) -> web.Response:
        """A model's, as OpenAI answers."""
        self.count(request.headers.get("X-Chaos", UNKNOWN))
        message = {"role": "assistant", "content": "hi"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response({"object": "chat.completion", "model": "gpt-4", "choices": [choice], "usage": usage})

    async def unattested(self, request: web.Request) -> web.Response:
        """Behind plugins that sign nothing. What proxy-cache keeps must be 200, and of the type it is told."""
        self.count(request.headers.get("X-Chaos", UNKNOWN))
        return web.Response(body=b"kept", headers={"Content-Type": "text/plain"})

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        kind = request.headers.get("X-Chaos", UNKNOWN)
        self.count(kind)
        tenant, _, subject = kind.split(":")
        try:
            attestation = verify(
                request.headers.get(HEADER, ""), {"1": self.key}, issuer="kong-claude", audience="claude-invoker"
            )
            demand(attestation, method=request.method, path=request.path, checks=CHECKS, body=body)
        except AttestationError as error:
            self.seen.unattested.append(f"{kind}: {error}")
            return web.Response(status=401)
        route, attested = attestation.binding.route, attestation.identity.subject if attestation.identity else None
        right = attested == subject and attestation.tier == tenant
        right = right and route == self.routes.setdefault(request.path, route)
        if not right or request.path != f"/{tenant}":
            self.seen.wrong_tenant.append(f"{kind}: {attested} {attestation.tier} {request.path}")
        await self.settle(attestation)
        return web.json_response({"tenant": tenant, "sub": attested})

    async def settle(self, attestation: Attestation) -> None:
        """Most runs end properly; one in ten is lost, and its lease must lapse by itself."""
        if attestation.place is not None and random.random() < 0.9:
            try:
                await ledger.AsyncLedger(self.redis).settle(attestation.place.lease, 1000)
            except (redis.RedisError, ledger.LedgerUnavailable):
                pass  # lost as well
