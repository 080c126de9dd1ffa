"""The Schema as Kong reads it: what is filled in, what is refused before an instance starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from kong_claude import PLUGINS
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.schema import SCHEMA
from minikong import admin, declarative
from minikong.precedence import Precedence
from minikong.schema import bundled
from tests.support.stages import stage_of

NAME = "claude-rate-tiers"


@cache
def schemas() -> declarative.Schema:
    command = [sys.executable, "-m", "kong_claude.server", "-d", str(PLUGINS), "--dump", NAME]
    (info,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (info["Name"], info["Priority"], sorted(info["Phases"])) == (NAME, 905, ["access", "log"])
    return declarative.Schema({**bundled.schemas(), NAME: info["Schema"]})


def load(config: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, Any] | str:
    """The Config JSON that the plugin server would get, or why the configuration is refused."""
    route = {"name": "r", "paths": ["/"], "plugins": [{"name": NAME, "config": config}]}
    services = [{"name": "s", "url": "http://127.0.0.1:9", "routes": [route]}]
    gateway = admin.Admin(schemas(), environ=environ or {})
    document = json.dumps({"_format_version": "3.0", "services": services}).encode()
    status, _, body = gateway.handle("POST", "/config", document, {"content-type": "application/json"})
    if status != 201:
        return body.decode()
    (entity,) = [p for p in Precedence(gateway.config).entities if p.name == NAME]
    made: dict[str, Any] = json.loads(json.dumps(entity.instance_config()))
    return made


def test_the_seed_example_gets_the_defaults() -> None:
    made = load({"minute": 60, "hour": 500, "policy": "redis", "redis_host": "redis", "hide_client_headers": False})
    assert isinstance(made, dict)
    own = {n: v for n, v in made.items() if not n.startswith("__") and n != "route_id"}
    assert own == {
        "minute": 60,
        "hour": 500,
        "limit_by": "subject",
        "on_missing_identity": "deny",
        "on_busy": "reject",
        "mode": "enforce",
        "policy": "redis",
        "redis_host": "redis",
        "redis_port": 6379,
        "redis_database": 0,
        "redis_ssl": False,
        "redis_ssl_verify": True,
        "timeout_ms": 500,
        "on_error": "deny",
        "namespace": "claude",
        "lease_ttl": 60,
        "header_style": "both",
        "hide_client_headers": False,
        "error_code": 429,
        "error_message": "API rate limit exceeded",
        "report": False,
        "tell": False,
        "admin": False,
        "by_model": False,
        "by_operation": False,
    }
    stage_of(RateTiers, made)


def test_a_whole_configuration_starts() -> None:
    tier = {
        "name": "team",
        "second": 10,
        "minute": 60,
        "hour": 500,
        "day": 5000,
        "month": 50000,
        "burst": 20,
        "concurrent": 4,
        "usd_per_day": 50,
        "usd_per_month": 500.5,
        "models": ["opus"],
        "max_turns": 25,
        "max_usd_per_run": 2.5,
        "tools": ["Read"],
        "egress": ["pypi.org", "*.npmjs.org:8443"],
        "skills": ["pdf", "canvas-design"],
        "default_skills": ["pdf"],
        "agents": ["reviewer"],
        "mcp": ["github"],
        "api_features": ["context_1m"],
        "ask": ["Read(/keys/**)", "mcp__github__*"],
        "deny": ["Read(/keys/root)"],
        "allow": ["mcp__github__get"],
        "four_eyes": True,
        "on_budget": "model",
        "cheaper": {"model": "opus", "up_to_percent": 120, "max_usd_per_run": 0.5},
    }
    made = load(
        {
            "tiers": [tier, {"name": "free", "minute": 5}],
            "default_tier": "free",
            "policy": "redis",
            "redis_url": "{vault://env/claude-redis-url}",
            "attestation": {"secret": "s" * 32},
        },
        {"CLAUDE_REDIS_URL": "redis://127.0.0.1:1/0"},
    )
    assert isinstance(made, dict) and made["tiers"][0] == tier
    stage = stage_of(RateTiers, made)
    assert [w.name for w in stage.choice.tiers["team"].windows.each] == ["second", "minute", "hour", "day", "month"]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"minute": 0}, "minute"),
        ({"minute": 1.5}, "minute"),
        ({"tiers": [{"minute": 5}]}, "name"),
        ({"tiers": [{"name": "t", "minutes": 5}]}, "minutes"),
        ({"tiers": [{"name": "t", "usd_per_day": 0}]}, "usd_per_day"),
        ({"tiers": [{"name": "t", "skills": ["*"]}]}, "skills"),
        ({"tiers": [{"name": "t", "skills": ["catalog:pdf"]}]}, "skills"),
        ({"tiers": [{"name": "t", "skills": ["PDF"]}]}, "skills"),
        ({"tiers": [{"name": "t", "default_skills": [""]}]}, "default_skills"),
        ({"tiers": [{"name": "t", "mcp": ["mcp__github"]}]}, "mcp"),
        ({"limit_by": "user"}, "limit_by"),
        ({"on_missing_identity": "allow"}, "on_missing_identity"),
        ({"on_error": "pass"}, "on_error"),
        ({"mode": "off"}, "mode"),
        ({"policy": "cluster"}, "policy"),
        ({"namespace": "a b"}, "namespace"),
        ({"namespace": "{x}"}, "namespace"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"error_code": 200}, "error_code"),
        ({"path": "relative"}, "path"),
        ({"redis": {"hostname": "x"}}, "hostname"),
        ({"redis": {"host": "x", "sentinel_role": "slave"}}, "sentinel_role"),
    ],
)
def test_what_kong_refuses(config: dict[str, Any], names: str) -> None:
    refused = load(config)
    assert isinstance(refused, str) and names in refused


def fields(of: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for field in of:
        ((name, attributes),) = field.items()
        yield name, attributes
        yield from fields(attributes.get("fields", []))
        yield from fields(attributes.get("elements", {}).get("fields", []))


def test_every_field_is_described_and_secrets_are_referenceable() -> None:
    found = dict(fields(SCHEMA))
    assert [name for name, attributes in found.items() if len(attributes.get("description", "")) < 10] == []
    for name in ("redis_url", "redis_password", "redis_username"):
        assert found[name]["referenceable"]
    assert [n for n, a in found.items() if a["type"] == "record" and a.get("required") is not False] == []
