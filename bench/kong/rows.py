"""What is measured: the rows, as routes of Kong's declarative configuration, and the requests that are sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import yaml

from bench.chain import JWT, PROMPT, SECRET, TOKEN_SECRET
from claude_contract.attestation import new_private_key

ROOT = Path(__file__).parents[2]
CALLERS = 1000
MANY = 100_000_000  # nobody is refused
TIMEOUT_MS = 5000  # for Redis, of ours and of Kong's plugin: a busy machine is no error
BODY = b'{"prompt": "Explain this function.", "system": "Be brief."  }'
PAIR = "_pair"
# The rows that are measured once more with the Lua half of our plugins, in a Kong of their own.
PAIRED = ("claims", "gateway", "gateway_ed25519", "gateway_body", "apart", "shipped")
# What claude-gateway asks and tells for a request that passes, without finding anything out.
NOTHING = """
version, priority = "1", 1440
HEADERS = {"X-RateLimit-Limit-Minute": "10", "X-RateLimit-Remaining-Minute": "9", "X-RateLimit-Limit-Hour": "10",
           "X-RateLimit-Remaining-Hour": "9", "RateLimit-Limit": "10", "RateLimit-Remaining": "9",
           "RateLimit-Reset": "60", "RateLimit-Policy": '"minute";q=10;w=60, "hour";q=10;w=3600',
           "RateLimit": '"minute";r=9;t=60'}
class Plugin:
    def __init__(self, config):
        pass
    def access(self, kong):
        kong.request.get_headers(1000)
        kong.service.request.set_headers({"X-Claude-Attestation": "x" * 700, "X-Claude-Subject": "ada",
                                          "X-Claude-Context": "v=1"})
        kong.response.set_headers(HEADERS)
        kong.ctx.shared.set("claude_nothing", {"claude_identity": {"sub": "ada"}, "mark": "x"})
    def log(self, kong):
        pass
"""

Plugins = list[tuple[str, dict[str, Any]]]


def rows(redis_port: int, private_key: str) -> dict[str, Plugins]:
    """Row → plugins of its route."""
    limits: dict[str, Any] = {
        "policy": "redis",
        "redis_url": f"redis://127.0.0.1:{redis_port}",
        "timeout_ms": TIMEOUT_MS,
        "default_tier": "pro",
        "tiers": [{"name": "pro", "minute": MANY, "hour": MANY}],
    }
    trio: Plugins = [
        ("jwt", {}),
        ("rate-limiting", {"minute": MANY, "hour": MANY, "policy": "redis",
                           "redis": {"host": "127.0.0.1", "port": redis_port, "timeout": TIMEOUT_MS}}),
    ]  # fmt: skip
    added = ["X-Gateway: kong", "X-Team: bench", "X-Note: added"]
    keyed = {"private_key": private_key}
    return {
        "plain": [],
        "jwt": [("jwt", {})],
        "trio": [*trio, ("request-transformer", {"add": {"headers": added}})],
        "trio_body": [
            *trio,
            ("request-transformer", {"add": {"headers": added, "body": ["context:You review code."]}}),
        ],
        "claims": [("claude-jwt-claims", signed("claims", JWT))],
        "gateway": gateway("gateway", limits, PROMPT),
        "gateway_ed25519": gateway("gateway_ed25519", limits, PROMPT, keyed),
        "gateway_quiet": gateway("gateway_quiet", {**limits, "hide_client_headers": True}, PROMPT),
        "gateway_body": gateway("gateway_body", limits, {**PROMPT, "apply": "body"}),
        "apart": [
            ("claude-jwt-claims", signed("apart", JWT)),
            ("claude-rate-tiers", signed("apart", limits)),
            ("claude-prompt-context", signed("apart", PROMPT)),
        ],
        "nothing": [("bench-nothing", {})],
    }


def signed(row: str, config: dict[str, Any], key: dict[str, str] | None = None) -> dict[str, Any]:
    return {**config, "attestation": {**(key or {"secret": SECRET}), "request": f"POST /{row}"}}


def gateway(row: str, limits: dict[str, Any], prompt: dict[str, Any], key: dict[str, str] | None = None) -> Plugins:
    return [("claude-gateway", signed(row, {"jwt_claims": JWT, "rate_tiers": limits, "prompt_context": prompt}, key))]


def shipped(upstream: int, redis_port: int, private_key: str) -> dict[str, Any]:
    """kong.yml's service with its route claude-invoke and the global plugins, with this bench's keys and addresses.

    Limits are such that nobody is refused. What runs behind the gateway ends no lease, so that leases last five
    seconds: each caller has some twenty of them.
    """
    known = {
        "{vault://env/claude-jwt-secret}": TOKEN_SECRET,
        "{vault://env/claude-redis-url}": f"redis://127.0.0.1:{redis_port}",
        "{vault://env/claude-attestation-key}": private_key,
    }

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolved(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner) for inner in value]
        return known.get(value, value) if isinstance(value, str) else value

    config = resolved(yaml.safe_load((ROOT / "kong.yml").read_text()))
    service = next(s for s in config["services"] if s["name"] == "claude-code-service")
    (route,) = (r for r in service["routes"] if r["name"] == "claude-invoke")
    plugin = route["plugins"][0]["config"]
    plugin["attestation"]["request"] = "POST /shipped"
    plugin["jwt_claims"]["issuers"][0]["issuer"] = "bench"
    limits = plugin["rate_tiers"]
    limits |= {"lease_ttl": 5, "timeout_ms": TIMEOUT_MS}
    for tier in limits["tiers"]:
        for name in ("minute", "hour", "concurrent"):
            tier[name] = MANY
        tier["usd_per_day"] = 1_000_000
    route |= {"name": "shipped", "paths": ["~/shipped$"]}
    # The same plugins as globally, but not for the other rows.
    route["plugins"] += [p for p in config["plugins"] if p["name"] in ("correlation-id", "claude-metrics")]
    return {**service, "name": "shipped", "url": f"http://127.0.0.1:{upstream}", "routes": [route]}


def kong_yml(upstream: int, redis_port: int) -> dict[str, Any]:
    private_key = new_private_key()
    routes = [
        {
            "name": row,
            "paths": [f"/{row}"],
            "strip_path": False,
            "plugins": [{"name": name, "config": config} for name, config in plugins],
        }
        for row, plugins in rows(redis_port, private_key).items()
    ]
    return {
        "_format_version": "3.0",
        "services": [
            {"name": "bench", "url": f"http://127.0.0.1:{upstream}", "routes": routes},
            shipped(upstream, redis_port, private_key),
        ],
        "consumers": [
            {"username": "bench", "jwt_secrets": [{"key": "bench", "algorithm": "HS256", "secret": TOKEN_SECRET}]}
        ],
    }


def token(caller: int) -> str:
    claims = {"iss": "bench", "sub": f"user-{caller}", "aud": "claude-code", "tier": "pro", "roles": ["claude:invoke"]}
    return jwt.encode({**claims, "exp": int(time.time()) + 86400}, TOKEN_SECRET, algorithm="HS256")


def request(row: str, caller: int) -> bytes:
    head = [
        f"POST /{row} HTTP/1.1",
        "Host: bench.test",
        "User-Agent: bench",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {len(BODY)}",
        f"Authorization: Bearer {token(caller)}",
        "X-Repo: org/app",
        "X-Branch: main",
    ]
    if row != "shipped":  # there correlation-id makes one
        head.append("X-Request-Id: 0123456789abcdef")
    return "\r\n".join([*head, "", ""]).encode() + BODY


def names() -> list[str]:
    """All rows, in the order in which they are measured."""
    single = [*rows(0, ""), "shipped"]
    return [name for row in single for name in (row, *([row + PAIR] if row in PAIRED else []))]
