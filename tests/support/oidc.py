"""An OpenID provider with pages: Authlib's framework with the authorization code flow (PKCE), refresh and log-out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import urlencode

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc7636 import CodeChallenge
from flask import Flask, Response, jsonify, redirect, request
from joserfc import jwt
from joserfc.jwk import RSAKey
from werkzeug.serving import make_server

CLIENT, SECRET = "CLIENT-ID", "the-clients-own-secret-0123"
METHODS = ("client_secret_basic", "client_secret_post")


@dataclass
class Person:
    name: str
    claims: dict[str, Any]

    def get_user_id(self) -> str:
        return self.name


@dataclass
class Provider:
    """The server; what it says of whom, and what it was asked."""

    url: str = ""
    callbacks: tuple[str, ...] = ()
    """The only addresses to which a code is sent."""
    ttl_s: int = 3600
    """How long ID tokens are good."""
    people: dict[str, Person] = field(default_factory=dict)
    grants: list[str] = field(default_factory=list)
    """Of each answer with tokens: authorization_code or refresh_token."""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k", "use": "sig", "alg": "RS256"}))
    codes: dict[str, _Code] = field(default_factory=dict)
    refresh: dict[str, _Kept] = field(default_factory=dict)
    access: dict[str, str] = field(default_factory=dict)

    def person(self, name: str, **claims: Any) -> None:
        given = {"oid": name, "email": f"{name}@example.com", "email_verified": True, "roles": ["claude:invoke"]}
        self.people[name] = Person(name, given | claims)

    def id_token(self, name: str, **other: Any) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "sub": name, "aud": CLIENT, "iat": now, "exp": now + self.ttl_s}
        return jwt.encode({"alg": "RS256", "kid": "k"}, claims | self.people[name].claims | other, self.key)


class _Client(ClientMixin):
    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def get_client_id(self) -> str:
        return CLIENT

    def get_default_redirect_uri(self) -> str:
        return self.provider.callbacks[0]

    def get_allowed_scope(self, scope: Any) -> Any:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.provider.callbacks

    def check_client_secret(self, secret: str) -> bool:
        return secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in METHODS

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return True


@dataclass
class _Code(AuthorizationCodeMixin):
    user: Person
    redirect_uri: str
    scope: str
    nonce: str | None
    code: str = ""
    code_challenge: str | None = None
    code_challenge_method: str | None = None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class _Kept(TokenMixin):
    scope: str
    user: Person

    def check_client(self, client: _Client) -> bool:
        return True

    def get_scope(self) -> str:
        return self.scope


def _server(provider: Provider) -> Flask:
    app = Flask("provider")

    class Code(grants.AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def save_authorization_code(self, code: str, request: Any) -> None:
            asked = request.payload
            provider.codes[code] = _Code(
                request.user,
                asked.redirect_uri,
                asked.scope,
                asked.data.get("nonce"),
                code,
                asked.data.get("code_challenge"),
                asked.data.get("code_challenge_method"),
            )

        def query_authorization_code(self, code: str, client: Any) -> _Code | None:
            return provider.codes.get(code)

        def delete_authorization_code(self, authorization_code: _Code) -> None:
            del provider.codes[authorization_code.code]

        def authenticate_user(self, authorization_code: _Code) -> Person:
            return authorization_code.user

    class Refresh(grants.RefreshTokenGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def authenticate_refresh_token(self, token: str) -> Any:
            return provider.refresh.get(token)

        def authenticate_user(self, kept: _Kept) -> Person:
            return kept.user

        def revoke_old_credential(self, kept: Any) -> None:
            pass

    def save_token(token: dict[str, Any], asked: Any) -> None:
        provider.grants.append(asked.payload.grant_type)
        provider.access[token["access_token"]] = asked.user.name
        scope = token.get("scope", "")
        code = getattr(asked, "authorization_code", None)
        nonce = {"nonce": code.nonce} if code is not None and code.nonce else {}
        token["id_token"] = provider.id_token(asked.user.name, **nonce)
        # As the large providers do: a refresh token is for whoever asks for offline_access.
        token.pop("refresh_token", None)
        if "offline_access" in scope.split():
            token["refresh_token"] = os.urandom(24).hex()
            provider.refresh[token["refresh_token"]] = _Kept(scope, asked.user)

    app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
    server: Any = AuthorizationServer(
        app, query_client=lambda name: _Client(provider) if name == CLIENT else None, save_token=save_token
    )
    server.register_grant(Code, [CodeChallenge(required=True)])
    server.register_grant(Refresh)

    @app.get("/.well-known/openid-configuration")
    def document() -> Response:
        return jsonify(
            {
                "issuer": provider.url,
                "authorization_endpoint": f"{provider.url}/authorize",
                "token_endpoint": f"{provider.url}/token",
                "jwks_uri": f"{provider.url}/keys",
                "userinfo_endpoint": f"{provider.url}/userinfo",
                "end_session_endpoint": f"{provider.url}/logout",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    @app.get("/authorize")
    def form() -> Any:
        """Who has logged in here before is not asked again."""
        known = provider.people.get(request.cookies.get("person", ""))
        if known is not None:
            return server.create_authorization_response(grant_user=known)
        server.get_consent_grant(end_user=None)  # refuses what is wrong with the request
        action = escape(f"/authorize?{urlencode(request.args)}")
        return f'<form method=post action="{action}"><label>Name <input name=name></label><button>Go on</button></form>'

    @app.post("/authorize")
    def agreed() -> Any:
        answer = server.create_authorization_response(grant_user=provider.people[request.form["name"]])
        answer.set_cookie("person", request.form["name"], httponly=True)
        return answer

    @app.get("/logout")
    def logout() -> Any:
        answer = redirect(request.args.get("post_logout_redirect_uri", "/"))
        answer.delete_cookie("person")
        return answer

    @app.get("/userinfo")
    def userinfo() -> Response:
        person = provider.people[provider.access[request.headers["Authorization"].removeprefix("Bearer ")]]
        return jsonify({"sub": person.name, **person.claims})

    app.add_url_rule("/keys", view_func=lambda: jsonify({"keys": [provider.key.as_dict(private=False)]}))
    app.add_url_rule("/token", "token", server.create_token_response, methods=["POST"])
    return app


@contextmanager
def running(provider: Provider) -> Iterator[Provider]:
    """The server on loopback, as long as the block runs."""
    before = os.environ.get("AUTHLIB_INSECURE_TRANSPORT")
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # for http://127.0.0.1
    listening = make_server("127.0.0.1", 0, lambda *asked: app(*asked), threaded=True)
    provider.url = f"http://127.0.0.1:{listening.server_port}"
    app = _server(provider)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield provider
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
        if before is None:
            del os.environ["AUTHLIB_INSECURE_TRANSPORT"]
