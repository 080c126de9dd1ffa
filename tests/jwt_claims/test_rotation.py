"""A real OpenID provider and the plugin server: discovery, rotation under load, the provider away and back."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.jwt_claims.support import bearer
from tests.support.kong_driver import Driver, Event, Request, Server, plugin_server
from tests.support.waiting import HANG_S

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flask
    import oidc_provider_mock
    import werkzeug.serving
    from authlib.jose import JsonWebKey, KeySet


class Provider:
    """oidc-provider-mock on a fixed port; it can go away and come back, and its key can be replaced."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.fetches = 0
        self.rotate("k1")
        self.app = oidc_provider_mock.app()
        self.app.before_request(self._count)
        # The provider publishes one key; a rotating one publishes the old beside the new.
        self.app.view_functions["oidc-provider-mock.jwks"] = self._jwks
        self.port = 0
        self.start()

    def _count(self) -> None:
        self.fetches += 1

    def _jwks(self) -> Any:
        return flask.jsonify(KeySet(self.keys).as_dict())

    def rotate(self, kid: str) -> None:
        self.keys = [*self.keys[-1:], JsonWebKey.generate_key("RSA", 2048, {"kid": kid, "use": "sig"}, is_private=True)]

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.server = werkzeug.serving.make_server("127.0.0.1", self.port, self.app, threaded=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, key: int = -1, sub: str = "alice") -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": "claude-code", "sub": sub, "iat": now, "exp": now + 600}
        chosen = self.keys[key]
        return jwt.encode(claims, chosen.get_private_key(), "RS256", headers={"kid": chosen.as_dict()["kid"]})


@pytest.fixture
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    if running.thread.is_alive():
        running.stop()


def configured(provider: Provider, **times: int) -> dict[str, Any]:
    entry = {"issuer": provider.issuer, "algorithms": ["RS256"], "discovery": True, "allow_insecure_jwks": True}
    return {"issuers": [entry], "audience": ["claude-code"], "mark": "m", "jwks_timeout": 2, **times}


def ask(kong: Driver, instance: Any, compact: str) -> Event:
    return kong.handle(instance, "access", Request(headers=bearer(compact)))


def test_the_provider_is_a_real_one(provider: Provider) -> None:
    document = httpx.get(f"{provider.issuer}/.well-known/openid-configuration").json()
    assert document["issuer"] == provider.issuer
    assert [key["kid"] for key in httpx.get(document["jwks_uri"]).json()["keys"]] == ["k1"]


def test_a_new_key_is_picked_up_without_a_failed_request(server: Server, provider: Provider) -> None:
    """Eight clients ask without pause while the provider's key changes twice."""
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider, jwks_cooldown=1))
    refused: list[Any] = []
    used: set[str] = set()
    stop = threading.Event()

    def client(number: int) -> None:
        with server.driver() as own:
            while not stop.is_set():
                compact = provider.token(sub=f"user-{number}")
                event = ask(own, instance, compact)
                used.add(jwt.get_unverified_header(compact)["kid"])
                if event.exit is not None:
                    refused.append(event.exit)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in clients:
        thread.start()
    for kid in ("k2", "k3"):
        time.sleep(1.1)  # the cool-down after the last unknown kid
        provider.rotate(kid)
        deadline = time.monotonic() + HANG_S
        while kid not in used and time.monotonic() < deadline:
            time.sleep(0.02)
    stop.set()
    for thread in clients:
        thread.join(HANG_S)
    assert not refused
    assert used == {"k1", "k2", "k3"}
    assert provider.fetches <= 2 * 4  # discovery and keys, at the start and per rotation (with one to spare)


def test_a_removed_key_stops_serving_even_remembered_tokens(server: Server, provider: Provider) -> None:
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider, jwks_ttl=1))
        old = provider.token()
        assert ask(kong, instance, old).exit is None
        provider.keys = []
        provider.rotate("k9")
        deadline = time.monotonic() + HANG_S
        while ask(kong, instance, old).exit is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(kong, instance, old).ended.status == 401
        assert ask(kong, instance, provider.token()).exit is None


def test_random_kids_make_no_traffic(server: Server, provider: Provider) -> None:
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider, jwks_cooldown=3600))
        assert ask(kong, instance, provider.token()).exit is None
        stranger = JsonWebKey.generate_key("RSA", 2048, is_private=True).get_private_key()
        now = int(time.time())
        for number in range(200):
            claims = {"iss": provider.issuer, "aud": "claude-code", "sub": "m", "exp": now + 60, "n": number}
            event = ask(kong, instance, jwt.encode(claims, stranger, "RS256", headers={"kid": f"random-{number}"}))
            assert event.ended.status == 401
        assert provider.fetches <= 4


def test_the_provider_away_for_the_whole_stale_window(server: Server, provider: Provider) -> None:
    """Valid tokens pass while the keys may be used, then 503: never a pass, and never after they are too old."""
    times = {"jwks_ttl": 1, "jwks_max_stale": 2, "jwks_cooldown": 1, "jwks_timeout": 1}
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider, **times))
        remembered, fresh = provider.token(), provider.token(sub="bob")
        assert ask(kong, instance, remembered).exit is None
        provider.stop()
        away = time.monotonic()
        outcomes: list[tuple[float, int | None]] = []
        refusals = 0
        while refusals < 20 and time.monotonic() - away < HANG_S:
            for compact in (remembered, fresh):
                event = ask(kong, instance, compact)
                outcomes.append((time.monotonic() - away, event.exit.status if event.exit else None))
                refusals += event.exit is not None
            fresh = provider.token(sub=f"bob-{len(outcomes)}")
            time.sleep(0.05)
        assert {status for _, status in outcomes} == {None, 503}
        assert any(status is None for at, status in outcomes if at > 1)  # beyond jwks_ttl
        first = next(at for at, status in outcomes if status == 503)
        assert all(status == 503 for at, status in outcomes if at > first)
        event = ask(kong, instance, remembered)
        assert event.ended.headers["Retry-After"]
        assert "WWW-Authenticate" not in event.ended.headers
        provider.start()
        deadline = time.monotonic() + HANG_S
        while ask(kong, instance, remembered).exit is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(kong, instance, remembered).exit is None


def test_a_provider_that_was_never_there(server: Server, provider: Provider) -> None:
    settings = configured(provider)
    compact = provider.token()
    provider.stop()
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", settings)
        assert ask(kong, instance, compact).ended.status == 503
        # What needs no key to be refused is refused as ever.
        assert ask(kong, instance, "x.y.z").ended.status == 401


def test_a_waiting_request_does_not_hold_up_others(server: Server, provider: Provider) -> None:
    """While one request waits for keys, another instance's requests go on in the same process."""
    provider.app.before_request(lambda: time.sleep(0.5))
    from tests.jwt_claims import support

    with server.driver() as slow, server.driver() as quick:
        waiting = slow.start_instance("claude-jwt-claims", configured(provider, jwks_timeout=10))
        ready = quick.start_instance("claude-jwt-claims", support.config())
        ended = threading.Event()

        def wait() -> None:
            ask(slow, waiting, provider.token())
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        for _ in range(20):
            assert ask(quick, ready, support.token()).exit is None
        assert not ended.is_set()
        thread.join(HANG_S)
        assert ended.is_set()


def test_on_kong_pdks_own_server(plugins_dir: Path, provider: Provider) -> None:
    """The plugin needs nothing of our plugin server: keys, rotation and refusals work with threads too."""
    with plugin_server(plugins_dir, stock=True) as stock, stock.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider))
        assert ask(kong, instance, provider.token()).exit is None
        provider.rotate("k2")
        assert ask(kong, instance, provider.token()).exit is None
        assert ask(kong, instance, "x.y.z").ended.status == 401


def test_why_keys_cannot_be_had_is_in_kongs_log_at_warn(server: Server, provider: Provider) -> None:
    """Kong logs what a plugin server writes itself at info, which it does not show by default. One line, not one per request."""
    settings = configured(provider, jwks_cooldown=3600)
    place = f"{provider.issuer}/.well-known/openid-configuration"
    compact = provider.token()
    provider.stop()
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", settings)
        events = [ask(kong, instance, compact) for _ in range(5)]
    assert [event.ended.status for event in events] == [503] * 5
    said = [args for event in events for method, args in event.calls if method == "kong.log.warn"]
    (line,) = said
    assert f"keys of {provider.issuer} cannot be had, its tokens are refused: {place} cannot be fetched" in str(line)


def test_an_empty_set_locks_nobody_out_and_is_said(server: Server, provider: Provider) -> None:
    with server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", configured(provider, jwks_ttl=1, jwks_cooldown=1))
        assert ask(kong, instance, provider.token()).exit is None
        good, provider.keys = provider.keys, []
        calls: list[str] = []
        fetches, deadline = provider.fetches, time.monotonic() + HANG_S
        while not calls and time.monotonic() < deadline:
            compact = jwt.encode(
                {"iss": provider.issuer, "aud": "claude-code", "sub": str(provider.fetches), "exp": time.time() + 60},
                good[-1].get_private_key(),
                "RS256",
                headers={"kid": good[-1].as_dict()["kid"]},
            )
            event = ask(kong, instance, compact)
            assert event.exit is None
            calls = [str(args) for method, args in event.calls if method == "kong.log.warn"]
            time.sleep(0.02)
        assert provider.fetches > fetches
        assert "no usable key" in calls[0]
        assert "those of before serve for" in calls[0]
