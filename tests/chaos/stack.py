"""A gateway to break: minikong (with KONG=… a real Kong), the plugin server behind a relay, Redis, a JWKS server, two tenants."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import psutil
import yaml
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from claude_contract.attestation import new_private_key, parse_pem
from kong_claude.guard import LUA_PATH, PAIR_PATH, lua
from kong_claude_local import stack as parts
from kong_claude_local.supervise import Supervisor
from tests.chaos.tamper import Relay
from tests.chaos.upstream import CHAT, FUNCTION, Upstream
from tests.support.ports import free_port
from tests.support.processes import command_line
from tests.support.waiting import HANG_S

PLUGIN = "claude-gateway"
LEASE_TTL = 5  # seconds
# Rows of the guard alone, each with its controls: the places of the guard where a request without a token is served.
# First what of Kong's own answers, or chooses who answers, between our plugins and a post-function. minikong has the last
# one; tests/chaos/lua stands for the others, under their names and at their places, and a real Kong runs its own.
TERMINATORS = {
    "proxy-cache": ("late", "bare"),
    "redirect": ("late", "bare"),
    "aws-lambda": ("late", "bare"),
    # Sends the request to the model's address, which Kong asks after all plugins: a post-function is early enough.
    "ai-proxy": ("bare",),
    "request-termination": ("late", "bare"),
}
CHATTING = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
STALE = (
    "stale-instance"  # a route's requests meet the instance of its whole service, which lets in whom the route does not
)
ROWS = {**TERMINATORS, STALE: ("late", "bare")}
GUARD = {"name": "claude-guard"}
LATE_GUARD = {"name": "post-function", "config": {"access": [lua([PLUGIN])]}}
PRESENT = "if kong.ctx.shared.claude_gateway == nil then return kong.response.exit(503) end"
PRESENCE = {"name": "post-function", "config": {"access": [PRESENT]}}
PLACES: dict[str, list[dict[str, Any]]] = {"guarded": [GUARD], "late": [LATE_GUARD], "bare": []}
STAND_INS = Path(__file__).with_name("lua")
ADDRESS = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


class Stack:
    """Tenant `a` proves itself by a remote key set (RS256), tenant `b` by a shared secret; each has its own route.

    `pair`: with the Lua half of our plugins.
    """

    def __init__(self, pair: bool = False) -> None:
        self.pair = pair
        self.directory = Path(tempfile.mkdtemp(prefix="kc-chaos-"))
        self.plugins = self.directory / "plugins"
        self.plugins.mkdir()
        shutil.copy(Path(__file__).with_name("plugin_with_faults.py"), self.plugins / f"{PLUGIN}.py")
        proxy, upstream, self.jwks_port, metrics, admin = free_ports(5)
        self.upstream_port = upstream
        self.secrets = {"attestation-key": new_private_key(), "jwt-secret": secrets.token_hex(24)}
        self.layout = parts.Layout(
            config=self.directory / "kong.yml",
            plugins=self.plugins,
            state=self.directory,
            run=self.directory,
            port=proxy,
            metrics_port=metrics,
            admin_port=admin,
            kong=os.environ.get("KONG") or None,
            secrets=self.secrets,
        )
        self.url = self.layout.proxy_url
        self.key = rsa.generate_private_key(65537, 2048)
        self.relay = Relay(self.directory / "relay.sock", self.directory / "claude.sock")
        self.upstream = Upstream(parse_pem(self.layout.attestation_key, "upstream"), self.layout.redis)
        self.supervisor = Supervisor(self.directory / "log", io.StringIO(), restarts=float("inf"))
        self.jwks: web.AppRunner | None = None
        (self.directory / "kong.yml").write_text(yaml.safe_dump(self.config()))

    def config(self) -> dict[str, Any]:
        issuers: dict[str, dict[str, Any]] = {
            "a": {
                "algorithms": ["RS256"],
                "jwks_uri": f"http://{ADDRESS}:{self.jwks_port}/jwks",
                "allow_insecure_jwks": True,
            },
            "b": {"algorithms": ["HS256"], "secret": "{vault://env/claude-jwt-secret}"},
        }
        return {
            "_format_version": "3.0",
            "plugins": [{"name": "correlation-id", "config": {"header_name": "X-Request-Id", "generator": "uuid"}}],
            "services": [
                {
                    "name": "upstream",
                    "url": f"http://{ADDRESS}:{self.upstream_port}",
                    "retries": 0,
                    "routes": [self.route(tenant, issuer) for tenant, issuer in issuers.items()],
                    "plugins": [GUARD],
                },
                *(
                    {
                        "name": f"terminated-{name}",
                        "url": f"http://{ADDRESS}:{self.upstream_port}",
                        "routes": [self.terminated(name, place, issuers["b"]) for place in PLACES],
                    }
                    for name in TERMINATORS
                ),
                {
                    "name": STALE,
                    "url": f"http://{ADDRESS}:{self.upstream_port}",
                    "plugins": [self.claims(issuers["b"])],
                    "routes": [
                        *(self.stale(place, issuers["b"]) for place in PLACES),
                        {"name": f"{STALE}-lax", "paths": [f"/{STALE}/lax"]},
                    ],
                },
            ],
        }

    def route(self, tenant: str, issuer: Mapping[str, Any]) -> dict[str, Any]:
        gateway = {
            "attestation": {"private_key": "{vault://env/claude-attestation-key}", "request": f"POST /{tenant}"},
            "jwt_claims": {
                "issuers": [{"issuer": f"https://{tenant}.example", **issuer}],
                "audience": [tenant],
                "jwks_ttl": 2,
                "jwks_max_stale": 600,
                "jwks_cooldown": 1,
            },
            "rate_tiers": {
                "policy": "redis",
                "redis_url": "{vault://env/claude-redis-url}",
                "default_tier": tenant,
                "lease_ttl": LEASE_TTL,
                "tiers": [
                    {
                        "name": tenant,
                        "minute": 1_000_000,
                        "hour": 1_000_000,
                        "concurrent": 1000,
                        "max_usd_per_run": 0.01,
                        "usd_per_day": 1_000_000,
                    }
                ],
            },
            "prompt_context": {"prepend": f"You serve {tenant}. ", "locked": ["model"]},
        }
        return {
            "name": f"chaos-{tenant}",
            "paths": [f"/{tenant}"],
            "strip_path": False,
            "plugins": [{"name": PLUGIN, "config": gateway}],
        }

    def terminator(self, name: str) -> dict[str, Any]:
        """Its configuration; a function and a model are answered by our upstream."""
        known: dict[str, dict[str, Any]] = {
            "proxy-cache": {"strategy": "memory", "request_method": ["POST"], "content_type": ["text/plain"]},
            "redirect": {"location": "http://elsewhere.example/"},
            "aws-lambda": {
                "host": ADDRESS,
                "port": self.upstream_port,
                "disable_https": True,
                "aws_key": "no-key",
                "aws_secret": "no-secret",
                "aws_region": "eu-west-1",
                "function_name": FUNCTION,
                "forward_request_headers": True,
            },
            "ai-proxy": {
                "route_type": "llm/v1/chat",
                "model": {
                    "provider": "openai",
                    "name": "gpt-4",
                    "options": {"upstream_url": f"http://{ADDRESS}:{self.upstream_port}{CHAT}"},
                },
                "auth": {"header_name": "Authorization", "header_value": "Bearer no-key"},
            },
            "request-termination": {"status_code": 200, "message": "terminated"},
        }
        return known[name]

    def terminated(self, name: str, place: str, issuer: Mapping[str, Any]) -> dict[str, Any]:
        """A route that one of Kong's own plugins answers, with the guard before it or, for the controls, after it or
        nowhere."""
        return {
            "name": f"{name}-{place}",
            "paths": [f"/{name}/{place}"],
            "strip_path": False,
            "plugins": [self.claims(issuer), *PLACES[place], {"name": name, "config": self.terminator(name)}],
        }

    def stale(self, place: str, issuer: Mapping[str, Any]) -> dict[str, Any]:
        """A route that wants a role, of a service that does not. As the control, a guard that looks for presence only."""
        strict = self.claims(issuer, rules=[{"claim": "roles", "any_of": ["strict"]}])
        return {
            "name": f"{STALE}-{place}",
            "paths": [f"/{STALE}/{place}"],
            "strip_path": False,
            "plugins": [strict, *([PRESENCE] if place == "late" else PLACES[place])],
        }

    def claims(self, issuer: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        claims = {"issuers": [{"issuer": "https://b.example", **issuer}], "audience": ["b"], **more}
        return {"name": PLUGIN, "config": {"jwt_claims": claims}}

    async def start(self) -> None:
        await self.relay.start()
        await self.start_jwks()
        await self.upstream.start(ADDRESS, self.upstream_port)
        for part in (parts.redis(self.layout), self.gateway()):
            await asyncio.to_thread(self.supervisor.start, part)
        self.watching = asyncio.create_task(asyncio.to_thread(self.supervisor.watch))

    def gateway(self) -> Any:
        """The part of `kong-claude up`, with one plugin and the relay before its socket."""
        part = parts.gateway(self.layout)
        prefix = f"KONG_PLUGINSERVER_{PLUGIN.upper().replace('-', '_')}"
        kept = {n: v for n, v in part.environment.items() if "PLUGINSERVER_" not in n or n.startswith(prefix)}
        kept |= {
            "KONG_PLUGINS": ",".join(("bundled", PLUGIN, "claude-guard", *list(TERMINATORS)[:-1])),
            "KONG_LUA_PACKAGE_PATH": ";".join(self.lua_path()),
            "KONG_PLUGINSERVER_NAMES": PLUGIN,
            f"{prefix}_SOCKET": str(self.relay.listen),
            "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT": "1s",
        }
        kept[f"{prefix}_START_CMD"] += " --event-timeout 2"
        return replace(part, environment=kept)

    def lua_path(self) -> list[str]:
        stand_ins = [] if self.layout.kong else [f"{STAND_INS}/?.lua"]
        return [*([PAIR_PATH] if self.pair else []), LUA_PATH, *stand_ins, ";"]

    async def stop(self) -> None:
        self.supervisor.stopping.set()
        await self.watching
        await asyncio.to_thread(self.supervisor.stop)
        await self.relay.stop()
        await self.upstream.stop()
        await self.upstream.redis.aclose()
        await self.stop_jwks()
        shutil.rmtree(self.directory, ignore_errors=True)

    # What the faults act on.

    async def living(self) -> psutil.Process:
        """The plugin server's process, once there is one: after a kill Kong takes a second to start the next."""
        deadline = time.monotonic() + HANG_S
        while (server := self.server()) is None:
            assert time.monotonic() < deadline, "no plugin server within 30 s"
            await asyncio.sleep(0.05)
        return server

    def server(self) -> psutil.Process | None:
        """The gateway's child."""
        (gateway,) = [process for part, process in self.supervisor.running if part.name == "gateway"]
        try:
            found = [
                p for p in psutil.Process(gateway.pid).children(recursive=True) if "claude.sock" in command_line(p)
            ]
            keepers = {p.ppid() for p in found}
            return max((p for p in found if p.pid not in keepers), key=psutil.Process.create_time, default=None)
        except psutil.NoSuchProcess:
            return None

    def redis_pid(self) -> int:
        (process,) = [process for part, process in self.supervisor.running if part.name == "redis"]
        return process.pid

    def set_fault(self, how: str | None) -> None:
        path = self.plugins / "fault"
        if how is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(how)

    async def reload(self) -> int:
        """POST /config with the same content: Kong then starts every instance anew."""
        admin = aiohttp.UnixConnector(self.layout.admin_url.removeprefix("unix:"))
        async with aiohttp.ClientSession(connector=admin) as session:
            document = {"config": (self.directory / "kong.yml").read_text()}
            async with session.post("http://admin/config", json=document) as answer:
                await answer.read()
                return answer.status

    async def served(self, path: str) -> int:
        """The status of a good request to a route of `ROWS`, as soon as it is not refused (503, and 500 by a Kong whose
        plugin server starts anew). After 30 s what it is: 500 has a plugin of Kong's that cannot run."""
        headers = {"Authorization": f"Bearer {self.token('b', 's0', 'strict')}", "X-Chaos": "b:good:s0"}
        headers["Content-Type"] = "application/json"
        deadline = time.monotonic() + HANG_S
        async with aiohttp.ClientSession() as session:
            while True:
                sent = session.post(self.url + path, headers=headers, data=CHATTING, allow_redirects=False)
                async with sent as answer:
                    await answer.read()
                over = time.monotonic() > deadline
                if answer.status < 500 or (over and answer.status != 503):
                    return answer.status
                assert not over, f"{path} is refused for 30 s"
                await asyncio.sleep(0.1)

    async def start_jwks(self) -> None:
        key = json.loads(RSAAlgorithm.to_jwk(self.key.public_key())) | {"kid": "k1", "use": "sig", "alg": "RS256"}

        async def keys(_: web.Request) -> web.Response:
            return web.json_response({"keys": [key]})

        application = web.Application()
        application.router.add_get("/jwks", keys)
        self.jwks = web.AppRunner(application, access_log=None)
        await self.jwks.setup()
        await web.TCPSite(self.jwks, ADDRESS, self.jwks_port, reuse_address=True, shutdown_timeout=0.1).start()

    async def stop_jwks(self) -> None:
        if self.jwks:
            await self.jwks.cleanup()
            self.jwks = None

    def signal_redis(self, number: signal.Signals) -> None:
        os.kill(self.redis_pid(), number)

    # Requests.

    def token(
        self,
        tenant: str,
        subject: str,
        *roles: str,
        expired: bool = False,
        signed_by: str | None = None,
    ) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": f"https://{tenant}.example",
            "aud": tenant,
            "sub": subject,
            "tier": tenant,
            "iat": now - 10,
        }
        claims["roles"] = list(roles)
        claims["exp"] = now - 60 if expired else now + 600
        if (signed_by or tenant) == "a":
            return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "k1"})
        return jwt.encode(claims, self.secrets["jwt-secret"], algorithm="HS256")
