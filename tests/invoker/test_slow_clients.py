"""Requests that never end, or end late: on real sockets, by the protocol that the invoker serves with."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from claude_invoker.api import problems
from claude_invoker.api.limit import BodyLimit, Limits
from claude_invoker.bounded_http import MAX_HEAD, heads_within
from tests.support.waiting import HANG_S, wait_for

SHORT, NEVER = 0.2, 600.0
GOOD = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Ways of serving, by what is limited."""
    with (
        serving(heads_within(SHORT)) as heads,
        serving(heads_within(NEVER), SHORT) as bodies,
        serving(heads_within(NEVER)) as sizes,
        serving(HttpToolsProtocol) as nothing,
    ):
        yield {"heads": heads, "bodies": bodies, "sizes": sizes, "nothing": nothing}


LIMITS = Limits(1_000_000, 2_000_000, re.compile("/large"))


@contextlib.contextmanager
def serving(
    protocol: type[HttpToolsProtocol], body_s: float = NEVER, without: type[Exception] | None = None
) -> Iterator[int]:
    """`without`: whose handler is left out."""
    app = FastAPI()
    problems.install(app)
    if without is not None:
        del app.exception_handlers[without]
    app.add_middleware(BodyLimit, limits=LIMITS, body_s=body_s)

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/never")
    async def never(request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    @app.get("/late")
    async def late() -> str:
        import asyncio

        await asyncio.sleep(4 * SHORT)
        return "late"

    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, log_config=None, timeout_keep_alive=600))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + HANG_S
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def said(port: int, parts: list[bytes], pause_s: float = 0.0, wait_s: float = HANG_S) -> bytes | None:
    """What comes back until the server closes; None where it has not closed within `wait_s`."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(wait_s)
        answer = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
                time.sleep(pause_s)
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except TimeoutError:
            return None
        except ConnectionError:
            pass
        return answer


SLOW: dict[str, list[bytes]] = {
    "nothing": [],
    "half a line": [b"POST /bo"],
    "half a head": [b"POST /body HTTP/1.1\r\nHost: x\r\nX-A: "],
    "a half behind a whole": [GOOD + b"hiPOST /body HTTP/1.1\r\nX-"],
    "a half after a whole": [GOOD + b"hi", b"POST /body HTTP/1.1\r\nX-"],
}


@pytest.mark.parametrize("parts", SLOW.values(), ids=SLOW)
def test_a_head_that_does_not_end_is_closed(ports: dict[str, int], parts: list[bytes]) -> None:
    assert said(ports["heads"], parts) is not None
    assert said(ports["sizes"], parts, wait_s=2 * SHORT) is None  # the control


def test_drops_do_not_lengthen_it(ports: dict[str, int]) -> None:
    drops = [b"POST /body HTTP/1.1\r\n", *(b"X-%d: y\r\n" % n for n in range(20))]
    rest = b"Content-Length: 2\r\nConnection: close\r\n\r\nhi"
    assert said(ports["heads"], [*drops, rest], pause_s=0.05) == b""
    answer = said(ports["sizes"], [*drops, rest], pause_s=0.05)  # the control: a slow client, and an answer
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_not_kept(ports: dict[str, int]) -> None:
    lines = [b"GET /late HTTP/1.1\r\n", *([b"X: " + b"y" * 1000 + b"\r\n"] * (2 * MAX_HEAD // 1000))]
    assert said(ports["sizes"], lines) is not None
    assert said(ports["nothing"], lines, wait_s=2 * SHORT) is None  # the control


def test_a_head_without_end_is_not_kept_while_an_answer_is_under_way(ports: dict[str, int]) -> None:
    """Nobody reads it before that is over, which a run's may be in a quarter of an hour."""
    lines = b"".join(b"X-%d: " % number + b"y" * 1000 + b"\r\n" for number in range(1000))

    def sent(port: int) -> int:
        """Megabytes that are taken of a head behind a request that is never answered."""
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(HANG_S)
            client.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\nGET /late HTTP/1.1\r\n")
            for number in range(60):
                try:
                    client.sendall(lines)
                except ConnectionError:
                    return number
        return 60

    assert sent(ports["sizes"]) < 60
    assert sent(ports["nothing"]) == 60  # the control
    behind = b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"y" * 200_000 + GOOD[:20]
    answer = said(ports["sizes"], [behind, GOOD[20:-2] + b"Connection: close\r\n\r\nhi"])
    assert answer is not None and answer.count(b"HTTP/1.1 ") == 2, "what came before the head does not count"


@pytest.mark.parametrize("behind", [b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
def test_what_stands_behind_a_body_without_end_is_not_kept(ports: dict[str, int], behind: bytes) -> None:
    """Trailers, and one that does not end: also of a request that was refused."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y"

    def sent(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head)
            time.sleep(SHORT / 2)
            for number in range(12):
                try:
                    client.sendall(behind * 1000)
                except ConnectionError:
                    return number
        return 12

    assert sent(ports["sizes"]) < 12
    assert sent(ports["nothing"]) == 12  # the control
    answer = said(
        ports["sizes"], [head.replace(b"nowhere", b"body") + b"\r\n\r\n" + GOOD[:-2] + b"Connection: close\r\n\r\nhi"]
    )
    assert answer is not None and answer.count(b"HTTP/1.1 200 ") == 2, "a trailer that ends is passed over"


def test_long_answers_and_idle_connections_are_let_be(ports: dict[str, int]) -> None:
    """The limit is one on heads: not on what a run takes, nor on a connection between requests."""
    with socket.create_connection(("127.0.0.1", ports["heads"])) as client:
        client.settimeout(HANG_S)
        client.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(3 * SHORT)
        client.sendall(GOOD + b"hi")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", [b"Content-Length: 9", b"Transfer-Encoding: chunked"], ids=["length", "chunked"])
def test_a_body_that_does_not_come_is_408(ports: dict[str, int], head: bytes) -> None:
    request = b"POST /body HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n"
    answer = said(ports["bodies"], [request])
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"INVOKER_REQUEST_BODY_S" in answer
    assert said(ports["sizes"], [request], wait_s=2 * SHORT) is None  # the control


async def test_when_the_body_is_there_nothing_is_timed() -> None:
    """A run's request waits for its client to leave for as long as the run takes."""
    messages: list[Any] = [{"type": "http.request", "body": b"hi"}]
    seen: list[str] = []

    async def receive() -> Any:
        import asyncio

        if messages:
            return messages.pop()
        await asyncio.sleep(3 * SHORT)
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await BodyLimit(app, LIMITS, SHORT)({"type": "http", "path": "/", "headers": []}, receive, send)
    assert seen == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("weakened", [False, True])
def test_who_leaves_while_his_body_comes_is_no_error_of_ours(weakened: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each was a hundred lines in the log, which anybody could write there."""
    with serving(heads_within(NEVER), without=ClientDisconnect if weakened else None) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhi")
            time.sleep(SHORT)
        if weakened:
            wait_for(lambda: "ClientDisconnect" in caplog.text, what="the error")
        else:
            time.sleep(4 * SHORT)
    assert ("ClientDisconnect" in caplog.text) == weakened
