"""What oauth2-proxy hands on, claude-jwt-claims takes: the contract of their headers, with a real OpenID provider.

No package registry carries the binary: tests/e2e/test_single_sign_on.py walks with it where there is one. Here the log-in
is walked as it walks it: the authorization code flow, then the ID token as a bearer token.
"""

from __future__ import annotations

import base64
import re
import subprocess
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
        browser.put(f"{issuer}/users/{email}", json={"email": email, "email_verified": True, "oid": email, **claims})
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


def section(issuer: str, domains: bool = True) -> dict[str, Any]:
    """kong-route.yml as it ships, pointed at the local provider; with the bolt that is commented out."""
    text = (FOLDER / "kong-route.yml").read_text()
    assert text.count("\n# email_domains:") == 1
    config: dict[str, Any] = yaml.safe_load(text.replace("# email_domains:", "email_domains:") if domains else text)
    config["issuers"][0] |= {"issuer": issuer, "allow_insecure_jwks": True}
    return config | {"mark": "oauth"}


def ask(server: Server, issuer: str, token: str, domains: bool = True, **more: Any) -> Event:
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", section(issuer, domains) | more)
        return kong.handle(instance, "access", Request(headers={"authorization": [f"Bearer {token}"]}))


def test_an_id_token_of_the_right_domain_and_role_passes(server: Server, issuer: str) -> None:
    event = ask(server, issuer, id_token(issuer, "alice@example.com", roles=["claude:invoke"]))
    assert event.exit is None, event.exit
    shared = next(args for method, args in event.calls if method == "kong.ctx.shared.set")
    assert shared[1]["sub"] == "alice@example.com"


def test_entra_id_does_not_say_that_an_address_is_verified(server: Server, issuer: str) -> None:
    """With `email_domains` as it once shipped nobody of Entra ID's would have got in."""
    as_entra_does = {"roles": ["claude:invoke"], "email_verified": None, "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474"}
    token = id_token(issuer, "alice@example.com", **as_entra_does)
    event = ask(server, issuer, token, domains=False)
    assert event.exit is None, event.exit
    shared = next(args for method, args in event.calls if method == "kong.ctx.shared.set")
    assert shared[1]["sub"] == as_entra_does["oid"]
    control = ask(server, issuer, token)
    assert control.exit is not None and control.exit.status == 403


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


def test_a_token_kept_by_the_dashboards_own_login_is_in_the_way_where_its_cookie_is_read(
    server: Server, issuer: str
) -> None:
    """Why the guide takes `cookie_names` out."""
    token = id_token(issuer, "alice@example.com", roles=["claude:invoke"])
    headers = {"authorization": [f"Bearer {token}"], "cookie": ["claude_token=of.last.week"]}
    for cookies, status in (({"cookie_names": ["claude_token"]}, 401), ({}, None)):
        with server.driver() as kong:
            instance = kong.start_instance("claude-jwt-claims", section(issuer) | cookies)
            event = kong.handle(instance, "access", Request(headers=headers))
        assert (event.exit and event.exit.status) == status


def test_a_token_for_another_client_is_refused(server: Server, issuer: str) -> None:
    token = id_token(issuer, "alice@example.com", roles=["claude:invoke"])
    event = ask(server, issuer, token, audience=["another-client"])
    assert event.exit is not None
    assert event.exit.status == 401


def test_the_configuration_hands_on_the_id_token_and_nothing_else() -> None:
    config = tomllib.loads((FOLDER / "oauth2-proxy.cfg").read_text())
    assert config["provider"] == "entra-id"
    assert config["pass_authorization_header"] is True
    assert config["pass_basic_auth"] is False, (
        "it is what passes X-Forwarded-User and -Email on, beside pass_user_headers"
    )
    assert config["pass_access_token"] is config["pass_user_headers"] is config["set_xauthrequest"] is False
    assert not any("secret" in name for name in config), "secrets come from the environment"


def test_the_configuration_and_the_guide_say_the_same() -> None:
    config = tomllib.loads((FOLDER / "oauth2-proxy.cfg").read_text())
    guide = (ROOT / "docs" / "deploy.md").read_text()
    section = guide.partition("## Single sign-on\n")[2].partition("\n## ")[0]
    assert config["redirect_url"] in section
    # A secret with + or / is no base64url: oauth2-proxy takes it as 44 bytes, and does not start.
    makes = "openssl rand -base64 32 | tr -- '+/' '-_'"
    assert makes in section and makes in (FOLDER / "oauth2-proxy.cfg").read_text()
    secret = subprocess.run(makes, shell=True, capture_output=True, text=True, check=True).stdout.strip()
    assert len(base64.urlsafe_b64decode(secret)) == 32 and not {"+", "/"} & {*secret}
    # Keycloak's ID tokens live for five minutes.
    assert config["cookie_refresh"] == "4m"
    assert "offline_access" in config["scope"].split()
    files = re.search(r"docker compose((?: -f \S+)+)((?: --profile \w+)+) up", section)
    assert files is not None
    named = re.findall(r"-f (\S+)", files[1])
    services: list[dict[str, Any]] = [yaml.safe_load((ROOT / name).read_text())["services"] for name in named]
    profiles = {profile for each in services for one in each.values() for profile in one.get("profiles", [])}
    assert {*re.findall(r"--profile (\w+)", files[2])} <= profiles
    (edge,) = services[1]["edge"]["volumes"]
    assert edge.split(":")[:2] == ["./deploy/oauth2-proxy/edge.conf", "/etc/nginx/sso/edge.conf"]
    assert "include /etc/nginx/sso/*.conf;" in (ROOT / "deploy/nginx/nginx.conf").read_text()
    assert services[1]["invoker"]["environment"] == {"INVOKER_SINGLE_SIGN_ON": "/oauth2"}
    # What the guide says to change in kong.yml is there.
    assert (ROOT / "kong.yml").read_text().count(", cookie_names: [claude_token]") == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/claude/dashboard", "page"),
        ("/claude/dashboard/jobs/job_1", "page"),
        ("/claude/dashboard/login/", "page"),
        ("/claude/dashboard/login", "public"),
        ("/claude/dashboard/login/out", "public"),
        ("/claude/dashboard/static/style.css", "public"),
        ("/claude/dashboard/live", "api"),
        ("/claude/dashboard/jobs/job_1/live", "api"),
        ("/claude/dashboard/jobs/job_1/cancel", "api"),
        ("/claude/dashboard/jobs/job_1/retry", "api"),
        ("/claude/dashboard/jobs/job_1/retry/org/app", "api"),
        ("/claude/dashboard/runs/run_1/permissions/p1", "api"),
        ("/claude/jobs", "api"),
        ("/claude/v1/messages", "api"),
        ("/claude/docs", "api"),
    ],
)
def test_who_is_led_to_the_login_and_who_is_told(path: str, kind: str) -> None:
    config = tomllib.loads((FOLDER / "oauth2-proxy.cfg").read_text())
    found = [
        name
        for name, patterns in (("public", config["skip_auth_routes"]), ("api", config["api_routes"]))
        if any(re.search(pattern, path) for pattern in patterns)
    ]
    assert found == ([] if kind == "page" else [kind])
