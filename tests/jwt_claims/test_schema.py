"""The plugin's schema in Kong's dialect: what Kong would refuse itself, and that what it accepts makes an instance."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.schema import FIELDS, SCHEMA
from minikong import admin, declarative
from minikong.precedence import Precedence
from minikong.schema import bundled
from tests.jwt_claims.support import ISSUER, SECRET, config, issuer, jwk, pem
from tests.support.stages import stage_of

DUMP = {"name": "claude-jwt-claims", "fields": [{"config": {"type": "record", "fields": SCHEMA}}]}
SCHEMAS = declarative.Schema({**bundled.schemas(), "claude-jwt-claims": DUMP})
ENVIRON = {"JWT_SECRET": SECRET}


def post(plugin_config: dict[str, Any]) -> tuple[int, str, dict[str, Any]]:
    """(status, errors, the Config that an instance gets) of POST /config."""
    route = {"name": "r", "paths": ["/"], "plugins": [{"name": "claude-jwt-claims", "config": plugin_config}]}
    services = [{"name": "up", "url": "http://127.0.0.1:9000", "routes": [route]}]
    gateway = admin.Admin(SCHEMAS, environ=ENVIRON)
    document = json.dumps({"_format_version": "3.0", "services": services})
    status, _, body = gateway.handle("POST", "/config", document.encode(), {})
    if status != 201:
        return status, json.dumps(json.loads(body)), {}
    (running,) = [p for p in Precedence(gateway.config).entities if p.name == "claude-jwt-claims"]
    return status, "", json.loads(json.dumps(running.instance_config()))


def fields(entries: list[dict[str, dict[str, Any]]], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in entries:
        ((name, field),) = entry.items()
        yield path + name, field
        inner = field.get("fields") or field.get("elements", {}).get("fields")
        if inner:
            yield from fields(inner, f"{path}{name}.")


@pytest.mark.parametrize(("name", "field"), fields(FIELDS), ids=[name for name, _ in fields(FIELDS)])
def test_every_field_is_described_and_says_whether_it_is_required(name: str, field: dict[str, Any]) -> None:
    assert len(field["description"]) >= 10  # under that Kong does not start
    assert "required" in field
    if field["type"] == "string" and any(word in name for word in ("secret", "redis_url")):
        assert field["referenceable"]
        assert field["encrypted"]


FULL = {
    "issuers": [
        issuer(),
        issuer("RS256", issuer="https://b.example"),
        {"issuer": "https://c.example", "algorithms": ["RS256"], "jwks": json.dumps({"keys": [jwk("RS256")]})},
        {"issuer": "https://d.example", "algorithms": ["EdDSA"], "jwks_uri": "https://127.0.0.1:9/jwks"},
        {"issuer": "https://127.0.0.1:9", "algorithms": ["ES256"], "discovery": True, "subject_prefix": "e:"},
        {
            "issuer": "f",
            "algorithms": ["HS256"],
            "secret": base64.b64encode(SECRET.encode()).decode(),
            "secret_is_base64": True,
        },
        {
            "issuer": "https://127.0.0.1:9/{tenantid}/v2.0",
            "algorithms": ["RS256"],
            "discovery": True,
            "tenants": ["72f988bf-86f1-41af-91ab-2d7cd011db47"],
            "subject_prefix": "{tenantid}:",
        },
    ],
    "audience": ["claude-code", "other"],
    "audience_claims": ["aud", "client_id"],
    "header_names": ["authorization", "X-Token"],
    "raw_header_names": ["x-api-key"],
    "cookie_names": ["jwt"],
    "uri_param_names": ["jwt"],
    "leeway": 0,
    "maximum_expiration": 3600,
    "typ": ["at+jwt"],
    "required_claims": ["org.id"],
    "forward_claims": ["org.id"],
    "rules": [
        {"claim": "scope", "all_of": ["a", "b"], "none_of": ["c"]},
        {"claim": "https://example.com/roles", "any_of": ["x"]},
        {"claim": "org.plan", "equals": "paid"},
    ],
    "email_domains": ["example.com", "x.example.co.uk"],
    "repo_claim": "repos",
    "repo_capture": "repo",
    "push_claim": "pushes",
    "pull_request_claim": "pulls",
    "ref_header": "x-ref",
    "consumer_claim": "sub",
    "anonymous": "guest",
    "run_on_preflight": False,
    "realm": "claude code",
    "revocation_redis_url": "redis://127.0.0.1:6379/0",
    "revocation_on_error": "allow",
}
MINIMAL: dict[str, Any] = {
    "issuers": [{"issuer": ISSUER, "algorithms": ["HS256"], "secret": "{vault://env/jwt-secret}"}],
    "audience": ["a"],
}


@pytest.mark.parametrize("accepted", [MINIMAL, FULL, config()], ids=["minimal", "full", "tests"])
def test_what_kong_accepts_makes_an_instance(accepted: dict[str, Any]) -> None:
    status, errors, made = post(accepted)
    assert status == 201, errors
    stage_of(JwtClaims, made).close()


def test_a_reference_is_resolved_and_an_unresolved_one_refused() -> None:
    _, _, made = post(MINIMAL)
    assert made["issuers"][0]["secret"] == SECRET
    unresolved = {**MINIMAL["issuers"][0], "secret": "{vault://env/not-there}"}
    status, _, made = post({**MINIMAL, "issuers": [unresolved]})
    assert status == 201  # Kong finds out only later
    with pytest.raises(ValueError, match=r"issuers\[1\]"):
        stage_of(JwtClaims, made)


def first(**more: Any) -> dict[str, Any]:
    return {**MINIMAL, "issuers": [{**MINIMAL["issuers"][0], **more}]}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "required field missing"),
    "no issuer": ({"issuers": [], "audience": ["a"]}, "length must be at least 1"),
    "no audience": ({**MINIMAL, "audience": None}, "required field missing"),
    "empty audience": ({**MINIMAL, "audience": []}, "length must be at least 1"),
    "unknown field": ({**MINIMAL, "audiences": ["a"]}, "unknown field"),
    "algorithm none": (first(algorithms=["none"]), "expected one of"),
    "algorithms absent": (first(algorithms=None), "required field missing"),
    "no key": (first(secret=None), "at least one of these fields must be non-empty"),
    "two keys": (first(secret=SECRET, public_key=pem("RS256")), "only one or none of these fields must be set"),
    "empty secret": (first(secret=""), "length must be at least 1"),
    "jwks_uri of a file": (first(secret=None, jwks_uri="file:///etc/passwd"), "invalid value"),
    "leeway of an hour": ({**MINIMAL, "leeway": 3600}, "value should be between 0 and 120"),
    "maximum_expiration negative": ({**MINIMAL, "maximum_expiration": -1}, "value should be between"),
    "header with a line break": ({**MINIMAL, "header_names": ["a\nb"]}, "invalid value"),
    "raw header with a line break": ({**MINIMAL, "raw_header_names": ["a\nb"]}, "invalid value"),
    "no audience claim": ({**MINIMAL, "audience_claims": []}, "length must be at least 1"),
    "tenants that are a path": (first(tenants=["a/b"]), "invalid value"),
    "no tenants": (first(tenants=[]), "length must be at least 1"),
    "cookie with a semicolon": ({**MINIMAL, "cookie_names": ["a;b"]}, "invalid value"),
    "realm with a quote": ({**MINIMAL, "realm": 'a"b'}, "invalid value"),
    "realm with a line break": ({**MINIMAL, "realm": "a\nb"}, "invalid value"),
    "rule without a claim": ({**MINIMAL, "rules": [{"any_of": ["a"]}]}, "required field missing"),
    "rule without a demand": ({**MINIMAL, "rules": [{"claim": "a"}]}, "at least one of these fields"),
    "domain with an at sign": ({**MINIMAL, "email_domains": ["@example.com"]}, "invalid value"),
    "on_error maybe": ({**MINIMAL, "revocation_on_error": "maybe"}, "expected one of"),
    "short mark": ({**MINIMAL, "mark": ""}, "length must be at least 1"),
}


def test_two_keys_one_a_reference() -> None:
    """Kong skips checks over fields with a reference, so the instance has to refuse."""
    status, _, made = post(first(public_key=pem("RS256")))
    assert status == 201
    with pytest.raises(ValueError, match="needs exactly one of"):
        stage_of(JwtClaims, made)


@pytest.mark.parametrize("name", BAD)
def test_what_kong_refuses(name: str) -> None:
    refused, text = BAD[name]
    status, errors, _ = post(refused)
    assert status == 400
    assert text in errors
