"""What a bad day does to replicas: a Redis that is full or was away, and another replica that hangs, doubts or is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import redis
from fastapi import Request
from starlette.types import Message

from claude_contract.attestation import Signer
from claude_invoker.api.replicas import run_of
from claude_invoker.caller import Caller
from claude_invoker.problem import Problem
from claude_invoker.replicas import forwarding, register
from claude_invoker.replicas.forwarding import Forwarder
from claude_invoker.replicas.record import RunRecord
from claude_invoker.replicas.register import Register
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

ALICE = Caller("alice")
SIGNER = Signer("k", b"x" * 32, {"k": b"x" * 32}, issuer="claude-invoker", audience="other")


def request(path: str = "/runs/run_1", **parts: Any) -> Request:
    app = SimpleNamespace(state=SimpleNamespace(services=SimpleNamespace(**parts)))
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
    return Request(scope | {"query_string": b"", "headers": [], "app": app}, _nothing)


async def _nothing() -> Message:
    """What a request without a body brings."""
    return {"type": "http.request", "body": b"", "more_body": False}


# The Redis of the runs


async def test_a_full_redis_that_evicts_takes_no_living_replica_for_gone(own_redis: RedisProcess) -> None:
    """As docs/invoker.md has it set: `volatile-ttl`, which takes what has the shortest life first."""
    async with Register(own_redis.url, "http://10.0.0.1:8100") as one, Register(own_redis.url, "http://b") as other:
        with redis.Redis.from_url(own_redis.url) as full:
            full.set("lease", "as it was", px=int(register.LEASE_S * 1000))
            full.config_set("maxmemory-policy", "volatile-ttl")
            full.config_set("maxmemory", full.info("memory")["used_memory"] + (1 << 20))
            for number in range(400):
                full.set(f"record:{number}", b"x" * 10_000, ex=3600)
            assert full.info("stats")["evicted_keys"] > 100
            assert full.get("lease") is None, "the control: a lease that is a key is the first to go"
        assert await asyncio.wait_for(other.address_of(one.name), 1) == "http://10.0.0.1:8100"


@pytest.mark.parametrize("patient", [True, False])
async def test_a_redis_that_has_lost_its_replicas_gives_no_living_one_up(
    own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    """Away for longer than a lease, or restarted: it has heard nobody. With the control: who does not wait is wrong."""
    with monkeypatch.context() as hurried:
        hurried.setattr(register, "_BEAT_S", 0.2 if patient else 600.0)
        hurried.setattr(register, "_HEARD_S", 2.0 if patient else 0.0)
        async with Register(own_redis.url, "http://a") as one, Register(own_redis.url, "http://b") as other:
            with redis.Redis.from_url(own_redis.url) as known:
                known.delete("claude:{runs}:replicas")
            assert await other.address_of(one.name) == ("http://a" if patient else None)


async def test_a_replica_that_has_left_is_gone_at_once_and_one_that_died_is_swept_away(
    own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hurried:
        hurried.setattr(register, "_BEAT_S", 0.1)
        hurried.setattr(register, "_HEARD_S", 1.0)
        async with Register(own_redis.url, "http://b") as other:
            async with Register(own_redis.url, "http://a") as one:
                assert await other.address_of(one.name) == "http://a"
            assert await other.address_of(one.name) is None
            with redis.Redis.from_url(own_redis.url) as known:
                known.hset("claude:{runs}:replicas", "dead:1:ff", "1.5 http://dead")
                assert await other.address_of("dead:1:ff") is None
                assert not known.hexists("claude:{runs}:replicas", "dead:1:ff")


# Another replica


@dataclass
class Peer:
    """Another replica, which answers each request as it is told."""

    url: str = ""
    answer: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: here\n\n"
    """None: it hangs."""
    dies: bool = False
    """After it has answered so far."""
    asked: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self.answer is not None:
                writer.write(self.answer)
            if not self.dies:
                await reader.read()
        self.open.discard(writer)
        writer.close()

    async def forward(self, forwarder: Forwarder) -> Any:
        peer = forwarding.Peer(self.url, SIGNER, ("jwt-claims",))
        return forwarding.PassedOn(await forwarder.forward(request(), ALICE, peer))


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    found = Peer()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    found = Forwarder(heartbeat_s=15)
    yield found
    await found.close()


async def true_soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("bounded", [False, True])
async def test_who_follows_runs_keeps_nobody_from_cancelling_one(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """With the control: of a pool of a hundred connections the streams take all."""
    with monkeypatch.context() as patched:
        if bounded:
            patched.setattr(httpx, "Limits", lambda **_: httpx._config.Limits(max_connections=100))
            patched.setattr(forwarding, "_HEAD_S", 2.0)
        forwarder = Forwarder(heartbeat_s=15)
        streams = [await peer.forward(forwarder) for _ in range(100)]
        assert len(peer.open) == len(streams)
        if bounded:
            with pytest.raises(Problem, match="does not answer"):
                await peer.forward(forwarder)
        else:
            assert (await peer.forward(forwarder)).status_code == 200
        await forwarder.close()


async def test_a_replica_that_hangs_is_not_waited_for(
    peer: Peer, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.answer = None
    with monkeypatch.context() as hurried:
        hurried.setattr(forwarding, "_HEAD_S", 0.3)
        with pytest.raises(Problem) as refused:
            await asyncio.wait_for(peer.forward(forwarder), HANG_S)
    assert (refused.value.status, peer.asked) == (503, 1)
    await true_soon(lambda: not peer.open)


async def test_that_a_replica_does_not_believe_another_is_no_fault_of_the_caller(
    peer: Peer, forwarder: Forwarder, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that is wrong, a key that was lost: 401 would tell the caller to get another token."""
    peer.answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"
    with pytest.raises(Problem) as refused:
        await peer.forward(forwarder)
    assert refused.value.status == 503
    assert "does not believe this replica" in caplog.text


async def no_more() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_an_answer_that_breaks_off_is_not_completed(
    peer: Peer, forwarder: Forwarder, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client sees that it lacks something, and the log has a line about it."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    for end, whole in ((b"", False), (b"0\r\n\r\n", True)):  # the second is the control
        peer.answer, peer.dies = head + end, True
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        answer = await peer.forward(forwarder)
        await answer({"type": "http", "asgi": {"spec_version": "2.4"}}, no_more, send)
        assert sent[1]["body"] == b"abc"
        assert sent[-1].get("more_body", False) is not whole
        assert ("broke off its answer" in caplog.text) is not whole
        caplog.clear()


async def left(message: Message) -> None:
    raise OSError("the client has left")


@pytest.mark.parametrize("closes", [True, False])
async def test_who_leaves_before_an_answer_begins_keeps_no_connection(
    peer: Peer, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """With the control: an answer that nobody has begun to read is closed by nobody."""
    answer = await peer.forward(forwarder)

    async def receive() -> Message:
        return {"type": "http.request"}

    call: Callable[..., Awaitable[None]] = answer if closes else super(forwarding.PassedOn, answer).__call__
    with pytest.raises(Exception):  # noqa: B017 whatever the framework makes of it
        await call({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, left)
    if closes:
        await true_soon(lambda: not peer.open)
    else:
        await asyncio.sleep(0.2)
        assert len(peer.open) == 1


@dataclass
class Known:
    """In a register's place: it knows one run."""

    record: RunRecord
    name: str = "me"

    async def find(self, run_id: str) -> RunRecord:
        return self.record


async def test_a_replica_never_asks_itself() -> None:
    """A run of its own whose end was not written, and which it does not keep any more: with INVOKER_TRUST=open, where
    no attestation says that it was forwarded, it would have asked itself for ever."""
    known = Known(RunRecord("run_1", "alice", "me", "running", 5.0))
    parts: dict[str, Any] = {"engine": SimpleNamespace(runs={}), "replicas": SimpleNamespace(register=known)}
    with pytest.raises(Problem) as refused:
        await run_of(request(**parts), "run_1", ALICE)
    assert refused.value.status == 404
