"""What the gateway counts and what the invoker runs, on Redis as people have it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from claude_contract import ledger
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_invoker import redis_clients
from claude_invoker.audit.anchor import RedisAnchor, Unreachable
from claude_invoker.jobs.store import PREFIX
from claude_invoker.replay import SeenOnce
from claude_invoker.settings import Settings as invoker_settings
from kong_claude.jwt_claims.revocation import Revocation
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.interop.deployments import Authority, available, running
from tests.jobs.conftest import lease, serving, slot, state, terms, until
from tests.rate_tiers.servers import SERVERS, free_port
from tests.support.waiting import HANG_S

__all__ = ["state"]  # a fixture

SHORT = [("6.2", "sentinel"), ("path", "tls"), ("valkey", "cluster"), ("8", "")]
LONG = [
    ("valkey", ""),
    ("6.2", "cluster"),
    ("path", "cluster"),
    ("8", "cluster"),
    ("8", "sentinel"),
    ("valkey", "sentinel"),
]
ROWS = [*SHORT, *(pytest.param(*row, marks=pytest.mark.slow) for row in LONG)]


@pytest.mark.parametrize(("server", "reached_by"), ROWS)
async def test_a_job_is_let_in_run_and_booked_and_a_run_is_listed(server: str, reached_by: str, state: Path) -> None:
    if not available(server):
        pytest.skip(f"{SERVERS[server] or 'redis-server'} is not there (make redis-servers)")
    with running(reached_by, SERVERS[server]) as redis:
        gateway = RedisLedger(Settings(redis.url, timeout=HANG_S))
        async with serving(redis, state, runs_redis_url=redis.url) as invoker:

            async def ready() -> bool:
                return bool((await invoker.client.get("/readyz")).json()["checks"]["redis"])

            await until(ready, "Redis answers")
            mine = lease("alice")
            claims: dict[str, Any] = {"lease": mine, **slot()}
            created = await invoker.ask("POST", "/claude/jobs", json={"prompt": "hi"}, claims=claims)
            assert created.status_code == 202, created.text
            seen = await invoker.see(created.json())
            assert seen["state"] == "done", seen
            usage = gateway.peek(ledger.Peek("claude", "alice", slot=terms()))
            assert usage.running == 0 and usage.own.spent[0].micro_usd > 0
            run = (await invoker.ask("POST", "/claude/invoke", json={"prompt": "hi"})).json()
            listed = (await invoker.ask("GET", "/claude/runs")).json()["runs"]
            assert [(each["id"], each["state"]) for each in listed] == [(run["id"], "succeeded")]
        gateway.close()


WITHIN: dict[str, Any] = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, "retry": Retry(NoBackoff(), 0)}


async def said_by_all(url: str) -> list[str]:
    """Why each of those who ask Redis cannot, "" for each that can: the gateway's ledger, the list of revoked tokens,
    the invoker's readiness, its jobs, the audit log's anchor."""
    found = []
    gateway = RedisLedger(Settings(url, timeout=HANG_S))
    revocation, anchor = Revocation(url, "revoked"), RedisAnchor(url)
    for ask in (
        lambda: gateway.peek(ledger.Peek("claude", "alice")),
        lambda: revocation.revoked(Identity("alice", "test")),
        anchor.heads,
    ):
        try:
            await asyncio.to_thread(ask)
        except (ledger.LedgerUnavailable, RedisError, Unreachable, OSError) as error:
            found.append(str(error))
        else:
            found.append("")
    seen = SeenOnce(url)
    found.append(await seen.obstacle() or "")
    jobs = redis_clients.client_of(url, PREFIX, **WITHIN)
    try:
        await jobs.execute_command("PING")
        found.append("")
    except (RedisError, OSError) as error:
        found.append(str(error))
    await seen.close()
    await jobs.aclose()
    gateway.close()
    revocation.close()
    return found


async def reached_by_all(url: str) -> bool:
    """Asked until it is so: on a busy machine a handshake may be late."""
    return await said_by_all(url) == [""] * 5


async def test_tls_is_of_both_sides_and_verified(tmp_path: Path) -> None:
    if not available("path"):
        pytest.skip("no redis-server with TLS on the PATH")
    stranger = Authority(tmp_path, "a stranger")
    with running("tls", SERVERS["path"]) as redis:
        await until(lambda: reached_by_all(redis.url), "all reach it")
        refused = {
            "a server that nobody we know has signed": redis.url_with(stranger.ca, *redis.client_files),
            "a client that the server does not know": redis.url_with(redis.authority.ca, *stranger.issue("client")),
            "a client without a certificate": redis.url_with(redis.authority.ca),
            "a server of another name": redis.url.replace("127.0.0.1", "localhost"),
        }
        for why, url in refused.items():
            assert all(await said_by_all(url)), why
        unverified = redis.url_with("", *redis.client_files) + "&ssl_cert_reqs=none&ssl_check_hostname=false"
        await until(lambda: reached_by_all(unverified), "the control: it is the verification that refuses")


async def test_sentinels_have_their_own_password_and_everybody_says_what_is_wrong() -> None:
    with running("sentinel") as redis:
        await until(lambda: reached_by_all(redis.url), "all reach it")
        for url in (
            redis.url_with(redis.PASSWORD),
            redis.url_with(redis.PASSWORD, redis.PASSWORD + "-is-not-of-sentinel"),
            redis.url_with("wr0ng", redis.SENTINELS_PASSWORD),
        ):
            said = await said_by_all(url)
            assert all(said), url
            assert not any(secret in "".join(said) for secret in (redis.PASSWORD, redis.SENTINELS_PASSWORD, "wr0ng"))
            assert f"Redis main of the Sentinels at 127.0.0.1:{redis.sentinel_port}" in said[3], "which one"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h:1", "must begin with redis://"),
        ("redis+unix://h:1", "must begin with redis://"),
        ("unix+cluster:///h:1", "must name each node as host:port"),
        ("redis+sentinel://h:1", "must name the Sentinel's service in its path"),
        ("redis+sentinel://h:1/main/one", "must have a number as its database"),
        ("redis+sentinel://h,g/main", "must name each node as host:port"),
        ("redis+cluster://h:1/2", "must name no database but 0"),
        ("redis://h:1/0?sentinel_password=s3cret", "has sentinel_password, which is for redis+sentinel:// only"),
        ("redis://h:1/0?ssl_certfile=/dev/null", "has ssl_certfile, which is for rediss:// only"),
        ("rediss://h:1/0?ssl_certfile=/nowhere/c.pem", "has ssl_certfile=/nowhere/c.pem: No such file or directory"),
        ("redis://:s3cret@h:1/0?sockettimeout=1", "has the parameter sockettimeout, which means nothing"),
        ("redis://:s3cret@h:s3cret/0", "is not a URL of Redis that can be used"),
        ("redis://:s3cret@[h/0", "is not a URL of Redis that can be used"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_where_it_is_written(url: str, why: str) -> None:
    """To the gateway by the name of its field, to the invoker by that of its setting; never with what is secret."""
    said = []
    with pytest.raises(ConfigError) as of_gateway:
        RedisLedger(Settings(url))
    said.append(str(of_gateway.value))
    with pytest.raises(ConfigError) as of_revocation:
        Revocation(url, "revoked")
    said.append(str(of_revocation.value))
    with pytest.raises(ValidationError) as of_invoker:
        invoker_settings(redis_url=url)
    [error] = of_invoker.value.errors(include_input=False)
    assert error["loc"] == ("redis_url",)
    said.append(error["msg"])
    assert all(why in text and "s3cret" not in text for text in said), said


async def test_a_cluster_that_is_away_is_away_as_a_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py tells it by an exception that is no RedisError; the control has its own client."""
    url = f"redis+cluster://127.0.0.1:{free_port()}"

    async def ask() -> None:
        client = redis_clients.client(url)
        try:
            await ledger.AsyncLedger(client).peek(ledger.Peek("claude", "alice"))
        finally:
            await client.aclose()

    with pytest.raises(ledger.LedgerUnavailable):
        await ask()
    with pytest.raises(Unreachable):
        RedisAnchor(url).heads()
    monkeypatch.setattr(redis_clients, "_Cluster", RedisCluster)
    with pytest.raises(RedisClusterException):
        await ask()
