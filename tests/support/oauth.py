"""An authorization server over HTTP: Authlib's framework with the grants that a login needs (RFC 8628, 6749, 7009, 9068)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant, DeviceCredentialDict
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, Response, jsonify, request
from joserfc import jwt
from joserfc.jwk import ECKey
from werkzeug.serving import make_server

from tests.support.waiting import HANG_S

CLIENT, CONFIDENTIAL, SECRET = "claude-cli", "with-a-secret", "the-clients-own-secret-0123"
AUDIENCE = "claude-code"
METHODS = ("none", "client_secret_post")


class _Client(ClientMixin):
    def __init__(self, name: str) -> None:
        self.name = name

    def get_client_id(self) -> str:
        return self.name

    def get_allowed_scope(self, scope: Any) -> Any:
        return scope

    def check_client_secret(self, secret: str) -> bool:
        return self.name == CONFIDENTIAL and secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == ("client_secret_post" if self.name == CONFIDENTIAL else "none")

    def check_grant_type(self, grant_type: str) -> bool:
        return True


@dataclass
class _User:
    name: str

    def get_user_id(self) -> str:
        return self.name


@dataclass
class _Kept(TokenMixin):
    """A refresh token: good once. Whoever comes with one that was used ends all that came from the same login."""

    client: str
    scope: str
    user: _User
    family: int
    used: bool = False

    def check_client(self, client: _Client) -> bool:
        return self.client == client.name

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Issuer:
    """The server; what it does and what it was asked."""

    url: str = ""
    interval: int = 1
    ttl_s: int = 3600
    refreshes: bool = True
    """Whether it gives refresh tokens."""
    rotates: bool = True
    answers: threading.Event = field(default_factory=threading.Event)
    """Refreshes wait until it is set, as it is at first."""
    broken: int = 0
    """How many requests of the token endpoint are 503."""
    first_errors: list[str] = field(default_factory=list)
    """What the device grant says before anything else."""
    expired: bool = False
    agrees: bool | None = True
    """Whether the person, who is called alice, agrees in her browser; None: she has not looked yet."""
    document: dict[str, Any] = field(default_factory=dict)
    """Members that its document has besides, or in the place of its own; None: left out."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and form of each POST."""
    codes: dict[str, dict[str, Any]] = field(default_factory=dict)
    refresh: dict[str, _Kept] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "k", "use": "sig", "alg": "ES256"}))

    def grants(self, kind: str) -> int:
        """How often the token endpoint was asked for a grant of that kind."""
        return sum(path == "/token" and form.get("grant_type", "").endswith(kind) for path, form in self.asked)

    @property
    def user_code(self) -> str:
        """Of the newest login."""
        return str([*self.codes.values()][-1]["user_code"])


def _server(issuer: Issuer) -> Flask:
    app = Flask("issuer")
    families = iter(range(1_000_000))

    class Generator(JWTBearerTokenGenerator):
        def get_jwks(self) -> dict[str, Any]:
            return {"keys": [issuer.key.as_dict(private=True)]}

        def get_extra_claims(self, *_: Any) -> dict[str, Any]:
            return {"roles": ["claude:invoke"], "tier": "free"}

        def get_audiences(self, *_: Any) -> str:
            return AUDIENCE

    class Device(DeviceAuthorizationEndpoint):
        CLIENT_AUTH_METHODS = METHODS

        def get_verification_uri(self) -> str:
            return f"{issuer.url}/activate"

        def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
            issuer.codes[data["device_code"]] = {**data, "client_id": client_id, "scope": scope}

    class Grant(DeviceCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def query_device_credential(self, device_code: str) -> DeviceCredentialDict | None:
            found = issuer.codes.get(device_code)
            until = 1 if issuer.expired else time.time() + 1000
            return None if found is None else DeviceCredentialDict({**found, "expires_at": until})

        def query_user_grant(self, _: str) -> tuple[_User, bool] | None:
            return None if issuer.first_errors or issuer.agrees is None else (_User("alice"), issuer.agrees)

        def should_slow_down(self, _: Any) -> bool:
            return bool(issuer.first_errors) and issuer.first_errors.pop(0) == "slow_down"

    class Refresh(grants.RefreshTokenGrant):
        INCLUDE_NEW_REFRESH_TOKEN = issuer.rotates
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def authenticate_refresh_token(self, token: str) -> Any:
            issuer.answers.wait(HANG_S)
            kept = issuer.refresh.get(token)
            if kept is None or kept.family in issuer.ended:
                return None
            if kept.used:
                issuer.ended.add(kept.family)
                return None
            return kept

        def authenticate_user(self, kept: _Kept) -> _User:
            return kept.user

        def revoke_old_credential(self, kept: Any) -> None:
            kept.used = issuer.rotates

    class Revocation(RevocationEndpoint):
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token: str, _: str | None) -> _Kept | None:
            return issuer.refresh.get(token)

        def revoke_token(self, kept: _Kept, _: Any) -> None:
            issuer.ended.add(kept.family)

    def save_token(token: dict[str, Any], asked: Any) -> None:
        before: _Kept | None = getattr(asked, "refresh_token", None)
        if not issuer.refreshes:
            token.pop("refresh_token", None)
        elif "refresh_token" in token:
            family = next(families) if before is None else before.family
            name, scope = asked.client.name, token.get("scope", "")
            issuer.refresh[token["refresh_token"]] = _Kept(name, scope, asked.user, family)
        claims = {"iss": issuer.url, "sub": "alice", "aud": asked.client.name, "iat": int(time.time())}
        claims["exp"] = claims["iat"] + issuer.ttl_s
        token["id_token"] = jwt.encode({"alg": "ES256"}, claims, issuer.key)

    server: Any = AuthorizationServer(
        app, query_client=lambda name: _Client(name) if name in (CLIENT, CONFIDENTIAL) else None, save_token=save_token
    )
    generator = Generator(
        issuer=issuer.url,
        alg="ES256",
        expires_generator=lambda *_: issuer.ttl_s,
        refresh_token_generator=lambda **_: os.urandom(24).hex(),
    )
    server.register_token_generator("default", generator)
    for grant in (Grant, Refresh):
        server.register_grant(grant)
    endpoints: Any = (Device, Revocation)
    for endpoint in endpoints:
        server.register_endpoint(endpoint)

    @app.before_request
    def note() -> Response | None:
        if request.method == "POST":
            issuer.asked.append((request.path, request.form.to_dict()))
        if request.path == "/token" and issuer.broken:
            issuer.broken -= 1
            return Response("<html>no</html>", 503)
        return None

    @app.get("/.well-known/openid-configuration")
    def document() -> Response:
        own = {
            "issuer": issuer.url,
            "jwks_uri": f"{issuer.url}/keys",
            "token_endpoint": f"{issuer.url}/token",
            "device_authorization_endpoint": f"{issuer.url}/device",
            "revocation_endpoint": f"{issuer.url}/revoke",
        }
        return jsonify({name: value for name, value in {**own, **issuer.document}.items() if value is not None})

    app.add_url_rule("/keys", view_func=lambda: jsonify({"keys": [issuer.key.as_dict(private=False)]}))
    app.add_url_rule("/token", "token", server.create_token_response, methods=["POST"])
    app.add_url_rule(
        "/device", "device", lambda: server.create_endpoint_response("device_authorization"), methods=["POST"]
    )
    app.add_url_rule("/revoke", "revoke", lambda: server.create_endpoint_response("revocation"), methods=["POST"])

    @app.after_request
    def shape(answer: Response) -> Response:
        if request.path == "/device" and answer.status_code == 200:
            answer.set_data(json.dumps({**answer.get_json(), "interval": issuer.interval}))
        return answer

    return app


@contextmanager
def running(**settings: Any) -> Iterator[Issuer]:
    """A server on loopback, as long as the block runs."""
    before = os.environ.get("AUTHLIB_INSECURE_TRANSPORT")
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # for http://127.0.0.1
    issuer = Issuer(**settings)
    issuer.answers.set()
    listening = make_server("127.0.0.1", 0, lambda *asked: app(*asked), threaded=True)
    issuer.url = f"http://127.0.0.1:{listening.server_port}"
    app = _server(issuer)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield issuer
    finally:
        issuer.answers.set()
        listening.shutdown()
        thread.join()
        listening.server_close()
        if before is None:
            del os.environ["AUTHLIB_INSECURE_TRANSPORT"]
