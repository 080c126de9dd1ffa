"""Requests that are handed over with their client's connection: what is written there, by whom, and what is slow."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, cast

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_invoker.metering import handing, wire
from claude_invoker.metering.books import Books
from claude_invoker.metering.handing import Arrived, Connection, Hands, Lost, NotHanded, Request
from claude_invoker.metering.journal import CannotWrite, Journal
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.proxy import KeyProxy
from claude_invoker.metering.wire import MAX_PACKET, Answered, Handed, Open, Upstream
from tests.support.waiting import HANG_S

LARGE = [(b"x", b"1" * 30_000)]


def account(number: int = 1) -> Open:
    return Open(number, f"msg_{number}", "token", "lease", Decimal("0.25"), ("haiku",), 1, (), True)


def request(connection: int, body: bytes = b"", **members: Any) -> Request:
    given = {"path": "/v1/messages", "query": b"beta=true", "headers": [(b"x", b"\xe9")]}
    return Request(body=body, connection=connection, **{"request_id": "", **given, **members})


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of a client's connection: where it is answered, and the client's own."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        accepted.setblocking(False)
        client.settimeout(HANG_S)
        with accepted:
            yield accepted, client


def connection(to: socket.socket, **members: Any) -> Connection:
    """As another process has it: a descriptor of its own."""
    return Connection(to.dup(), Handed(account(), "/v1/messages", b"", (), **members))


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Hands, socket.socket]]:
    ours, theirs = handing.pair()
    with theirs:
        hands = Hands(ours)
        yield hands, theirs
        hands.lost()


async def taken(theirs: socket.socket, count: int) -> list[Arrived]:
    found: list[Arrived] = []
    enough = asyncio.Event()

    def refused(message: Handed) -> None:
        raise AssertionError(message)

    def take(one: Arrived) -> None:
        found.append(one)
        if len(found) == count:
            enough.set()

    handing.take(theirs, take, refused)
    await asyncio.wait_for(enough.wait(), HANG_S)
    return found


async def test_what_is_handed_over_arrives_as_it_is(
    pair: tuple[Hands, socket.socket], ends: tuple[socket.socket, socket.socket]
) -> None:
    hands, theirs = pair
    asked = request(ends[0].fileno(), bytes(range(256)) * (20 << 10), request_id="r")
    answered = await hands.give(account(), asked)
    (one,) = await taken(theirs, 1)
    expected = Handed(account(), asked.path, asked.query, ((b"x", b"\xe9"),), "r")
    assert (one.message, one.body) == (expected, asked.body)
    await one.connection.send({"type": "http.response.start", "status": 200, "headers": []})
    assert ends[1].recv(100).startswith(b"HTTP/1.1 200 ")
    assert not one.connection.close() and not answered.done()
    hands.heard(Answered(2, "complete"))  # of another
    hands.heard(Answered(1, "left"))
    assert answered.result().end == "left"


async def test_what_is_said_by_the_other_way_waits_until_it_is_taken(
    pair: tuple[Hands, socket.socket], ends: tuple[socket.socket, socket.socket]
) -> None:
    """Else the proxy would be told of the end of a request that it does not know yet, and then ask the API for it."""
    hands, _ = pair
    given = [await hands.give(account(number), request(ends[0].fileno())) for number in (1, 2)]
    saying = [asyncio.create_task(hands.until_taken(f"msg_{number}")) for number in (1, 2, 3)]
    await asyncio.sleep(0.05)
    assert [each.done() for each in saying] == [False, False, True]
    hands.taken("msg_1")
    await asyncio.sleep(0.05)
    assert [each.done() for each in saying] == [True, False, True]
    hands.lost()
    await asyncio.wait_for(saying[1], HANG_S)
    assert isinstance(given[1].exception(), Lost)


async def test_many_at_once_wait_until_they_are_taken(
    pair: tuple[Hands, socket.socket], ends: tuple[socket.socket, socket.socket]
) -> None:
    hands, theirs = pair
    giving = [
        asyncio.create_task(hands.give(account(number), request(ends[0].fileno(), b"%d" % number, headers=LARGE)))
        for number in range(50)
    ]
    await asyncio.sleep(0.05)  # more than the kernel keeps: the others wait
    found = await taken(theirs, 50)
    assert [int(one.body) for one in found] == list(range(50))
    for one in found:
        one.connection.close()
        hands.heard(Answered(one.message.open.id, "complete"))
    assert {each.result().end for each in await asyncio.gather(*giving)} == {"complete"}


async def test_what_no_proxy_takes_is_not_handed_over_and_what_one_has_taken_is_lost(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = handing.pair()
    hands, there = Hands(ours), ends[0].fileno()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotHanded):
        await hands.give(account(), request(there, headers=[(b"x", b"1" * MAX_PACKET)]))
    full = [asyncio.create_task(hands.give(account(number), request(there, headers=LARGE))) for number in range(50)]
    await asyncio.sleep(0.05)
    theirs.close()
    hands.lost()
    given = await asyncio.wait_for(asyncio.gather(*full, return_exceptions=True), HANG_S)
    assert {type(each if isinstance(each, BaseException) else each.exception()) for each in given} == {Lost, NotHanded}
    with pytest.raises(NotHanded):
        await hands.give(account(), request(there))
    assert len(os.listdir("/proc/self/fd")) == before - 2


@pytest.mark.parametrize("room", [0, 1])
async def test_what_comes_without_its_connection_is_refused(
    pair: tuple[Hands, socket.socket], ends: tuple[socket.socket, socket.socket], room: int
) -> None:
    """Where as many are open as may be the kernel leaves out what has no place. Nobody would ever have answered it, and
    its place of its caller's would have been held for as long."""
    hands, theirs = pair
    said: list[Any] = []
    books = Books(
        cast(Journal, None), Prices({}, "refuse"), KeyProxy([Upstream("http://127.0.0.1:1")], "key"), said.append
    )

    def take(one: Arrived) -> None:
        raise AssertionError(one)

    await hands.give(account(), request(ends[0].fileno(), b"{}"))
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(ends[0].fileno())
    os.close(free)
    handing.take(theirs, take, books.refuse)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, limits[1]))
    try:
        async with asyncio.timeout(HANG_S):
            while not said:
                await asyncio.sleep(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert said == [wire.Taken("msg_1"), Answered(1, refused="too many requests are under way")]
    assert len(os.listdir("/proc/self/fd")) == before
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):  # the invoker's own descriptor is open: it answers
        ends[1].recv(1)


async def test_a_request_whose_cost_cannot_be_written_down_is_left_to_the_invoker(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    class Full:
        def begin(self, run: str, lease: str | None) -> None:
            raise CannotWrite

    said: list[Any] = []
    books = Books(
        cast(Journal, Full()), Prices({}, "refuse"), KeyProxy([Upstream("http://127.0.0.1:1")], "key"), said.append
    )
    books.answer(Arrived(Handed(account(), "/v1/messages", b"", ()), connection(ends[0]), b"{}"))
    while len(said) < 2:
        await asyncio.sleep(0)
    assert said == [
        wire.Taken("msg_1"),
        Answered(1, refused="what runs cost cannot be written down: the disk is full?"),
    ]
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing was written, and the invoker's own descriptor is open
        ends[1].recv(1)


class Answer:
    """What a client reads, by a parser of HTTP."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.over = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> Answer:
        self._parser.feed_data(data)
        self.status = self._parser.get_status_code()
        return self

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.over += 1


@pytest.mark.parametrize(
    "headers, members, expected",
    [
        ([], {}, [(b"transfer-encoding", b"chunked")]),
        ([(b"Content-Length", b"2")], {}, [(b"content-length", b"2")]),
        ([], {"request_id": "of-ours"}, [(b"transfer-encoding", b"chunked"), (b"request-id", b"of-ours")]),
        (
            [(b"Request-Id", b"1")],
            {"request_id": "of-ours"},
            [(b"request-id", b"1"), (b"transfer-encoding", b"chunked")],
        ),
        ([(b"set-cookie", b"a"), (b"connection", b"x"), (b"x", b"1")], {}, [(b"transfer-encoding", b"chunked")]),
        ([(b"x", b"1\r\nset-cookie: 2"), (b"y\n", b"1"), (b"z", b"\0")], {}, [(b"transfer-encoding", b"chunked")]),
    ],
)
async def test_heads(
    ends: tuple[socket.socket, socket.socket],
    headers: list[tuple[bytes, bytes]],
    members: dict[str, Any],
    expected: list[tuple[bytes, bytes]],
) -> None:
    on = connection(ends[0], **members)
    await on.send({"type": "http.response.start", "status": 429, "headers": headers})
    await on.send({"type": "http.response.body", "body": b"{}"})
    assert on.close()
    answer = Answer().feed(ends[1].recv(1 << 16))
    assert (answer.status, answer.pieces, answer.over) == (429, [b"{}"], 1)
    assert answer.headers == [*expected, (b"connection", b"close")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=2_000), max_size=20))
def test_pieces_come_as_they_were(pieces: list[bytes]) -> None:
    async def answer(to: socket.socket) -> None:
        on = connection(to)
        await on.send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in pieces:
            await on.send({"type": "http.response.body", "body": piece, "more_body": True})
        await on.send({"type": "http.response.body"})
        assert on.close()

    ours, client = socket.socketpair()
    with ours, client:
        ours.setblocking(False)
        asyncio.run(answer(ours))
        found = Answer()
        while not found.over:
            found.feed(client.recv(100))
        assert b"".join(found.pieces) == b"".join(pieces)


async def test_who_does_not_read_is_waited_for_and_who_leaves_is_not(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, client = ends
    on, sent = connection(ours), 0

    async def answer() -> None:
        nonlocal sent
        await on.send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await on.send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent += 65_536

    answering, before = asyncio.create_task(answer()), -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.2)
    assert 0 < sent < 20 << 20 and not answering.done(), "of 26 MB"
    while before == sent:  # the control: who reads has more
        await asyncio.to_thread(client.recv, 1 << 20)
    client.close()
    await asyncio.wait_for(answering, HANG_S)
    assert on.gone.done() and not on.close()
