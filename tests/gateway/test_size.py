"""The attestation of claude-gateway with everything in it as large as configuration and request can make it.

In each part a byte more is refused by whoever makes that part, and by nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from claude_contract.attestation import HEADER, new_private_key, signer_from_config, verify
from claude_contract.claims import (
    ADDITIONS_ROOM,
    CLAMP_ROOM,
    IDENTITY_ROOM,
    MAX_HEADER,
    METHOD_ROOM,
    NAME_ROOM,
    NAMESPACE_ROOM,
    POOL_NAME_ROOM,
    POOLS_ROOM,
    Attestation,
    pools_size,
    size,
)
from claude_contract.errors import ConfigError
from claude_contract.ledger import MAX_POOLS
from claude_contract.ledger.limits import MAX_BUDGETS
from claude_contract.ledger.model import MAX_POOL_KEY
from kong_claude.gateway.plugin import Plugin
from kong_claude.gateway.schema import SCHEMA
from tests.core.test_pipeline import Ended, Kong

SECRET = "s" * 32
ISSUER = "https://id.example.com/tenants/0f8fad5b-d9cb-469f-a165-70867728950e/"
ATTESTATION = {
    "private_key": new_private_key(),
    "kid": "k" * 32,
    "issuer": "g" * NAME_ROOM,
    "audience": "i" * NAME_ROOM,
}
DOLLARS = 10**9


def largest() -> dict[str, Any]:
    """The configuration."""
    tier = {
        "name": "t" * NAME_ROOM,
        **dict.fromkeys(("second", "minute", "hour", "day", "month", "concurrent", "max_turns"), 2**31 - 1),
        **dict.fromkeys(("usd_per_day", "usd_per_month", "max_usd_per_run"), DOLLARS),
        "models": ["haiku", "sonnet"],
        "tools": ["Read"],
        "budgets": [{"usd": DOLLARS, "per": "week", "zone": "America/Argentina/ComodRivadavia"}],
    }
    tier["ask"] = ["Read(/src/**)"]
    rules = {"rules": {"ask": tier["ask"]}}
    taken = size({name: tier[name] for name in ("models", "tools", "max_turns")} | rules | {"max_usd": DOLLARS})
    tier["tools"] = ["Read", "x" * (CLAMP_ROOM - taken - 3)]
    context = {"repository": {"source": "header:X-Repo"}, "branch": {"source": "header:X-Branch"}}
    added = {"prepend": "", "context": {"branch": None, "repository": "org/app"}, "drop": ["model", "tools"]}
    return {
        "route_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
        "attestation": ATTESTATION,
        "jwt_claims": {
            "issuers": [{"issuer": ISSUER, "algorithms": ["HS256"], "secret": SECRET}],
            "audience": ["claude"],
            "forward_claims": ["team"],
        },
        "rate_tiers": {
            "tiers": [tier],
            "pools": pools(),
            "organisation_claim": "team",
            "limit_by": "credential",
            "namespace": "n" * NAMESPACE_ROOM,
            "policy": "local",
        },
        "prompt_context": {
            "apply": "attested",
            "prepend": "p" * (ADDITIONS_ROOM - size(added)),
            "context": context,
            "locked": ["model", "tools"],
            "on_locked": "replace",
            "max_prompt_bytes": 1000,  # so that the body is read and bound
        },
    }


def pools(more: int = 0) -> list[dict[str, Any]]:
    """As many and as long as fit into their room, and so many bytes more."""
    zone = {"usd": DOLLARS, "per": "week", "zone": "America/Argentina/ComodRivadavia"}
    each = {
        "claim": "team",
        "concurrent": 2**31 - 1,
        "usd_per_day": DOLLARS,
        "usd_per_month": DOLLARS,
        "budgets": [zone],
    }
    return [{"name": f"{n}" + "n" * length, **each} for n, length in enumerate((28, 28, 17, 0 + more))]


def token(more: int = 0) -> str:
    """Of a caller whose identity takes its room, and so many bytes more."""
    claims: dict[str, Any] = {
        "sub": "s" * 255,
        "tier": "t" * NAME_ROOM,
        "roles": ["r"],
        "permissions": ["p"],
        "email": "ada@example.com",
    }
    claims |= {"team": "c" * MAX_POOL_KEY, "jti": "j" * 64}
    who = {
        "idp": ISSUER,
        "perms": ["p"],
        "email": claims["email"],
        "tid": claims["jti"],
        "claims": {"team": claims["team"]},
    }
    taken = size({"sub": claims["sub"], "tier": claims["tier"], "roles": ["r"], "who": who})
    left = IDENTITY_ROOM - taken + more
    claims["roles"] = ["r" + "x" * min(left, 200), *(["y" * (left - 203)] if left > 200 else [])]
    return jwt.encode({**claims, "iss": ISSUER, "aud": "claude", "exp": int(time.time()) + 60}, SECRET)


def ask(config: dict[str, Any], compact: str = "", *, method: str = "M" * METHOD_ROOM, **headers: str) -> Kong:
    sent = {
        "authorization": f"Bearer {compact or token()}",
        "x-request-id": "q" * 128,
        "content-type": "application/json",
        "content-length": "15",
        "prefer": "respond-async",  # the run waits: so the place in the limits travels, although they are local
        "x-repo": "org/app",
    }
    answers = {
        "nginx.get_var": f"{method} /{'p' * 5000} HTTP/1.1",
        "request.get_raw_body": '{"prompt":"hi"}',
        "client.get_credential": {"id": "c" * 36},
    }
    kong = Kong(sent | headers, **answers)
    try:
        Plugin(config).access(kong)
    except Ended:
        pass
    return kong


def attested(kong: Kong) -> tuple[str, Attestation]:
    header = kong.args("service.request.set_headers")[0][HEADER]
    signer = signer_from_config(ATTESTATION)
    assert signer
    return header, verify(header, signer.keys, issuer=signer.issuer, audience=signer.audience)


def test_with_everything_at_its_largest_the_request_passes() -> None:
    kong = ask(largest())
    assert "response.exit" not in kong.methods, kong.calls[-1]
    header, found = attested(kong)
    assert len(header) <= MAX_HEADER
    assert found.identity and size(found.identity.to_claims()) == IDENTITY_ROOM
    assert size(found.clamp.to_claims()) == CLAMP_ROOM
    assert size(found.additions.to_claims()) == ADDITIONS_ROOM
    assert found.place and found.place.queued and found.place.slot.month_micro_usd == DOLLARS * 1_000_000
    assert pools_size(found.place) == POOLS_ROOM and len(found.place.lease.shared.pools) == MAX_POOLS
    assert found.body_hash and found.binding.path.startswith("sha256:")
    assert found.checks == ("jwt-claims", "prompt-context", "rate-tiers")


@pytest.mark.parametrize(
    ("more", "status", "reason", "text"),
    [
        ({"compact": 1}, 403, "jwt-claims/identity_too_large", "1025 bytes, at most 1024"),
        ({"x-repo": "org/app2"}, 413, "prompt-context/body_too_large", "larger than 1536 bytes"),
        ({"method": "M" * (METHOD_ROOM + 1)}, 501, "request/unknown_method", "method"),
    ],
)
def test_a_byte_more_of_the_request(more: dict[str, Any], status: int, reason: str, text: str) -> None:
    compact = token(more.pop("compact", 0)) if "compact" in more else ""
    code, body, headers = ask(largest(), compact, **more).args("response.exit")
    assert (code, headers["X-Claude-Refusal"]) == (status, reason)
    assert text in body["message"]


def tier(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["rate_tiers"]["tiers"][0].update(fields)


def longer(section: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config[section] = {**config[section], name: config[section][name] + "x"}

    return change


def longer_tools(config: dict[str, Any]) -> None:
    config["rate_tiers"]["tiers"][0]["tools"][1] += "x"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            longer_tools,
            r"rate_tiers\.tiers\[1\]\.tools: models, tools, egress, skills, agents, mcp and rules take 1025 bytes in the attestation, at most 1024",
        ),
        (
            lambda config: config["rate_tiers"].update(pools=pools(1)),
            r"rate_tiers\.tiers\[1\]\.pools: budgets and pools take 961 bytes in the attestation, at most 960",
        ),
        (tier(name="t" * (NAME_ROOM + 1)), r"rate_tiers\.tiers\[1\]\.name: must not be longer than 64 bytes"),
        (tier(usd_per_month=DOLLARS + 1), r"rate_tiers\.tiers\[1\]\.usd_per_month: must be more than 0, and at most"),
        (longer("rate_tiers", "namespace"), r"rate_tiers\.namespace: must not be longer than 32"),
        (longer("attestation", "kid"), r"attestation\.kid: takes more than 32 bytes"),
        (longer("attestation", "issuer"), r"attestation\.issuer: takes more than 64 bytes"),
        (longer("attestation", "audience"), r"attestation\.audience: takes more than 64 bytes"),
        (
            lambda config: config["prompt_context"].update(prepend="p" * ADDITIONS_ROOM),
            r"prompt_context\.prepend: .* in the attestation, at most 1536: shorten the texts, or set apply to body",
        ),
    ],
)
def test_a_byte_more_of_the_configuration(change: Callable[[dict[str, Any]], None], text: str) -> None:
    config = largest()
    Plugin(config)  # the control
    change(config)
    with pytest.raises(ConfigError, match=text):
        Plugin(config)


def test_without_an_attestation_there_is_no_such_bound() -> None:
    config = largest() | {"attestation": None}
    longer_tools(config)
    config["prompt_context"].update(apply="body", prepend="p" * 9000)
    kong = ask(config, token(1))
    assert "response.exit" not in kong.methods, kong.calls[-1]


def test_the_schema_says_the_same_bounds() -> None:
    """Kong refuses a configuration by the schema, before the plugin is asked."""
    found: dict[str, int] = {}

    def walk(fields: list[dict[str, Any]], path: str) -> None:
        for field in fields:
            for name, rules in field.items():
                where = f"{path}{name}"
                if "len_max" in rules:
                    found[where] = rules["len_max"]
                walk(rules.get("fields") or rules.get("elements", {}).get("fields") or [], f"{where}.")

    walk(SCHEMA, "")
    assert found == {
        "rate_tiers.tiers.name": NAME_ROOM,
        "rate_tiers.tiers.budgets": MAX_BUDGETS,
        "rate_tiers.tiers.budgets.zone": 32,
        "rate_tiers.pools.name": POOL_NAME_ROOM,
        "rate_tiers.pools.claim": 128,
        "rate_tiers.pools.budgets": MAX_BUDGETS,
        "rate_tiers.pools.budgets.zone": 32,
        "rate_tiers.organisation_claim": 128,
        "rate_tiers.namespace": NAMESPACE_ROOM,
        "attestation.kid": 32,
        "attestation.previous_kid": 32,
        "attestation.issuer": NAME_ROOM,
        "attestation.audience": NAME_ROOM,
    }
