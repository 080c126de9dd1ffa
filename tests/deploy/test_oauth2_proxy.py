"""What oauth2-proxy hands on, claude-jwt-claims takes: the contract of their headers, with a real OpenID provider.

The binary itself is a Go release that no package registry carries, so the log-in is walked here as it walks it: the
authorization code flow, then the ID token as a bearer token.
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml

from kong_claude import PLUGINS
from tests.support.kong_driver import Event, Request, Server, plugin_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oidc_provider_mock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "oauth2-proxy"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with oidc_provider_mock.run_server_in_thread() as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with plugin_server(PLUGINS) as running:
        yield running


def id_token(issuer: str, email: str, **claims: Any) -> str:
    """Logs in as oauth2-proxy does and returns the ID token."""
    with httpx.Client() as browser:
        browser.put(f"{issuer}/users/{email}", json={"email": email, "email_verified": True, **claims})
        found = browser.get(f"{issuer}/.well-known/openid-configuration").json()
        asked = {
            "client_id": "CLIENT-ID",
            "redirect_uri": "https://claude.example.com/oauth2/callback",
            "response_type": "code",
            "scope": "openid email profile",
        }
        landed = browser.post(found["authorization_endpoint"], params=asked, data={"sub": email})
        code = parse_qs(urlsplit(landed.headers["location"]).query)["code"][0]
        answer = browser.post(
            found["token_endpoint"],
            data={"grant_type": "authorization_code", "code": code, "redirect_uri": asked["redirect_uri"]},
            auth=("CLIENT-ID", "secret"),
        )
        return str(answer.json()["id_token"])


def section(issuer: str) -> dict[str, Any]:
    """kong-route.yml as it ships, pointed at the local provider."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "kong-route.yml").read_text())
    config["issuers"][0] |= {"issuer": issuer, "allow_insecure_jwks": True}
    return config | {"mark": "oauth"}


def ask(server: Server, issuer: str, token: str, **more: Any) -> Event:
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", section(issuer) | more)
        return kong.handle(instance, "access", Request(headers={"authorization": [f"Bearer {token}"]}))


def test_an_id_token_of_the_right_domain_and_role_passes(server: Server, issuer: str) -> None:
    event = ask(server, issuer, id_token(issuer, "alice@example.com", roles=["claude:invoke"]))
    assert event.exit is None, event.exit
    shared = next(args for method, args in event.calls if method == "kong.ctx.shared.set")
    assert shared[1]["sub"] == "entra:alice@example.com"


@pytest.mark.parametrize(
    ("email", "claims"),
    [
        ("mallory@evil.example", {"roles": ["claude:invoke"]}),
        ("bob@example.com", {}),
        ("carol@example.com", {"roles": ["other"]}),
        ("dave@example.com", {"roles": ["claude:invoke"], "email_verified": False}),
    ],
    ids=["other-domain", "no-role", "other-role", "unverified"],
)
def test_others_are_refused(server: Server, issuer: str, email: str, claims: dict[str, Any]) -> None:
    event = ask(server, issuer, id_token(issuer, email, **claims))
    assert event.exit is not None
    assert event.exit.status == 403


def test_a_token_for_another_client_is_refused(server: Server, issuer: str) -> None:
    token = id_token(issuer, "alice@example.com", roles=["claude:invoke"])
    event = ask(server, issuer, token, audience=["another-client"])
    assert event.exit is not None
    assert event.exit.status == 401


def test_the_configuration_hands_on_the_id_token_and_nothing_else() -> None:
    config = tomllib.loads((FOLDER / "oauth2-proxy.cfg").read_text())
    assert config["provider"] == "entra-id"
    assert config["pass_authorization_header"] is True
    assert config["pass_access_token"] is False
    assert config["email_domains"] == yaml.safe_load((FOLDER / "kong-route.yml").read_text())["email_domains"]
    assert not any("secret" in name for name in config), "secrets come from the environment"
