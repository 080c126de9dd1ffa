"""A multi-tenant issuer as Entra is one: a template in the discovery document, a list of the tenants that are let in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from kong_claude.jwt_claims import issuers as module
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.token import InvalidToken
from tests.interop.tokens import ENTRA, OTHER_TENANT, TENANT
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import bearer, config, jwk, private_key, sign, token
from tests.jwt_claims.test_remote import send as answer
from tests.jwt_claims.test_remote import serving
from tests.support.stages import stage_of

THIRD = "5ba5ef5e-3109-4e77-85bd-cfeb0d347e82"


def of(tenant: str, **claims: Any) -> str:
    return token("RS256", header={"kid": "one"}, iss=ENTRA.replace("{tenantid}", tenant), tid=tenant, **claims)


def stage(*keys: dict[str, Any], **entry: Any) -> JwtClaims:
    """With the keys in its configuration."""
    one = {
        "issuer": ENTRA,
        "algorithms": ["RS256"],
        "jwks": json.dumps({"keys": keys or [jwk("RS256")]}),
        "tenants": [TENANT, THIRD],
        **entry,
    }
    return stage_of(JwtClaims, config(issuers=[one]))


@pytest.fixture
def microsoft() -> Iterator[str]:
    """The place of the discovery document for all tenants, and of the keys that it names."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        base = f"http://{handler.headers['Host']}"
        documents: dict[str, Any] = {
            "/common/v2.0/.well-known/openid-configuration": {
                "issuer": f"{base}/{{tenantid}}/v2.0",
                "jwks_uri": f"{base}/common/discovery/v2.0/keys",
            },
            "/common/discovery/v2.0/keys": {"keys": [jwk("RS256", issuer=f"{base}/{{tenantid}}/v2.0")]},
        }
        found = documents.get(handler.path)
        answer(handler, 200 if found else 404, json.dumps(found).encode())

    with serving(respond) as url:
        yield url.removesuffix("/jwks")


def test_discovery_by_the_template(send: Send, microsoft: str) -> None:
    entry = {
        "issuer": f"{microsoft}/{{tenantid}}/v2.0",
        "algorithms": ["RS256"],
        "discovery": True,
        "tenants": [TENANT.upper()],
        "allow_insecure_jwks": True,
        "subject_prefix": "{tenantid}:",
    }
    settings = config(issuers=[entry])
    event, request = send(settings, bearer(token("RS256", iss=f"{microsoft}/{TENANT}/v2.0")))
    assert event.exit is None
    assert request.shared["claude_identity"]["sub"] == f"{TENANT}:alice"
    assert request.shared["claude_identity"]["who"]["idp"] == f"{microsoft}/{TENANT}/v2.0"
    refused, _ = send(settings, bearer(token("RS256", iss=f"{microsoft}/{OTHER_TENANT}/v2.0")))
    assert refused.ended.status == 401


def test_each_tenant_of_the_list_and_no_other() -> None:
    made = stage()
    assert made.verify(of(TENANT)).identity.issuer == ENTRA.replace("{tenantid}", TENANT)
    assert made.verify(of(THIRD)).identity.issuer == ENTRA.replace("{tenantid}", THIRD)
    others = [
        OTHER_TENANT,
        "{tenantid}",
        "common",
        "organizations",
        "",
        TENANT.upper(),
        f"{TENANT}/{OTHER_TENANT}",
        f"{OTHER_TENANT}/../{TENANT}",
        f"{TENANT}/v2.0/..",
        f"{TENANT}\n",
        f"x{TENANT}",
        "*",
        ".*",
    ]
    for tenant in others:
        with pytest.raises(InvalidToken) as refused:
            made.verify(of(tenant))
        assert refused.value.reason == "issuer", tenant


@pytest.mark.parametrize(
    ("key_issuer", "good"),
    [
        (ENTRA, True),
        (ENTRA.replace("{tenantid}", TENANT), True),
        (None, True),
        (ENTRA.replace("{tenantid}", OTHER_TENANT), False),
        (ENTRA.replace("{tenantid}", THIRD), False),
        (ENTRA + "/", False),
        ("", False),
        ([ENTRA], False),
        (7, False),
    ],
)
def test_a_key_of_another_tenant_signs_for_this_one_in_vain(key_issuer: Any, good: bool) -> None:
    """The set for all tenants holds keys that belong to one: those of personal accounts, for instance."""
    made = stage(jwk("RS256", issuer=key_issuer))
    if good:
        made.verify(of(TENANT))
    else:
        with pytest.raises(InvalidToken, match="not signed by a key of its issuer"):
            made.verify(of(TENANT))


def test_control_without_the_keys_own_issuer_it_would_sign_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(jwk("RS256", issuer=ENTRA.replace("{tenantid}", OTHER_TENANT)))
    monkeypatch.setattr(module.Issuer, "_own", lambda self, issuer: True)
    assert made.verify(of(TENANT)).identity.subject == "alice"


def test_the_prefix_keeps_tenants_apart() -> None:
    """Where another claim than `sub` is the subject, a tenant's administrator chooses it."""
    made = stage(subject_prefix="{tenantid}:")
    assert made.verify(of(TENANT)).identity.subject == f"{TENANT}:alice"
    assert made.verify(of(THIRD)).identity.subject == f"{THIRD}:alice"
    one = stage(subject_prefix="entra:")
    assert one.verify(of(TENANT)).identity.subject == one.verify(of(THIRD)).identity.subject == "entra:alice"


def test_a_key_issuer_says_nothing_where_no_tenants_are_configured() -> None:
    """`issuer` is Entra's own member of a key: others may mean something else by it."""
    name = ENTRA.replace("{tenantid}", TENANT)
    entry = {"issuer": name, "algorithms": ["RS256"], "jwks": json.dumps({"keys": [jwk("RS256", issuer="CN=idp")]})}
    assert stage_of(JwtClaims, config(issuers=[entry])).verify(of(TENANT)).identity.issuer == name


def test_too_many_keys_to_try_are_said() -> None:
    """A token without kid costs a signature for each key: the refusal says what would help."""
    many = [jwk("RS256", kid=f"k{n}") for n in range(module.MAX_TRIED)]
    without = sign({"alg": "RS256"}, {"iss": ENTRA.replace("{tenantid}", TENANT)}, "RS256", private_key("RS256"))
    full = stage(*many, jwk("RS256"))
    with pytest.raises(InvalidToken, match=r"must name its key \(kid\): its issuer has more than 64 keys"):
        full.verify(without)
    assert full.verify(of(TENANT))
    with pytest.raises(InvalidToken, match="aud"):  # all are tried, one has signed
        stage(*many).verify(without)
