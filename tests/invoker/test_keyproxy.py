"""The key proxy against a run that has its own token: what a tool of it may ask for, and how much at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from claude_invoker.metering import body as bodies
from claude_invoker.metering import proxy as keyproxy
from claude_invoker.metering import request
from claude_invoker.metering.account import Account
from claude_invoker.metering.allowed import Otherwise, Uses
from claude_invoker.metering.control import Metering
from claude_invoker.metering.exchange import Grant
from claude_invoker.metering.journal import CannotWrite
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.proxy import KeyProxy
from claude_invoker.metering.purse import Purse
from claude_invoker.metering.usage import Meter
from claude_invoker.metering.wire import Drawn, Upstream
from claude_invoker.problem import Problem
from claude_invoker.runs import counting
from tests.invoker.conftest import KEY, StandInProcess
from tests.support.waiting import HANG_S

MODEL = b'{"model":"claude-haiku-4-5","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'


class Notes:
    """What was written down about each request, in turn."""

    def __init__(self) -> None:
        self.lines: dict[int, list[Decimal]] = {}

    def send(self, run: str, bound_usd: Decimal) -> int:
        self.lines[len(self.lines) + 1] = [bound_usd]
        return len(self.lines)

    def note(self, run: str, number: int, usd: Decimal) -> None:
        self.lines[number].append(usd)


class Lavish:
    """A ledger that has everything."""

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> Drawn:
        return Drawn(1, most)

    def say(self, run: str, cost: int, under_way: int) -> None:
        pass


@asynccontextmanager
async def started(*urls: str) -> AsyncIterator[Proxy]:
    found = KeyProxy([Upstream(url) for url in urls], KEY)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "api.sock")
        listener.bind(str(path))
        await found.start(listener)
        yield Proxy(found, path)
        await found.stop()


@dataclass
class Proxy:
    key: KeyProxy
    socket: Path


@pytest.fixture
async def proxy(stand_in: StandInProcess) -> AsyncIterator[Proxy]:
    async with started(stand_in.url) as found:
        yield found


def granted(proxy: Proxy, requests: int, cap_usd: str = "1") -> tuple[Grant, dict[str, str]]:
    token = "run-" + secrets.token_hex(8)
    account = Account(Prices({}, "refuse"), Decimal(cap_usd))
    grant = Grant("run", lambda model: "haiku" in model, requests, account, Notes())
    proxy.key.grant(token, grant)
    return grant, {"x-api-key": token, "content-type": "application/json"}


def client_of(proxy: Proxy) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(proxy.socket)), timeout=HANG_S)


async def begin(
    proxy: Proxy, token: str, length: int, sent: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request of which only the beginning is sent."""
    reader, writer = await asyncio.open_unix_connection(proxy.socket)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {token}\r\ncontent-length: {length}\r\n\r\n"
    writer.write(head.encode() + sent)
    await writer.drain()
    return reader, writer


async def status(reader: asyncio.StreamReader) -> int:
    return int((await asyncio.wait_for(reader.readline(), HANG_S)).split()[1])


async def test_a_request_counts_before_its_body_is_read(proxy: Proxy) -> None:
    """Requests that never end are requests."""
    grant, headers = granted(proxy, 3)
    opened = [await begin(proxy, headers["x-api-key"], 1000, b"{") for _ in range(3)]
    while grant.requests_left:
        await asyncio.sleep(0.01)
    reader, writer = await begin(proxy, headers["x-api-key"], 1000, b"")
    assert await status(reader) == 403
    assert grant.refused == "this run has used up its requests"
    for _, each in [*opened, (reader, writer)]:
        each.close()


@pytest.mark.parametrize("bounded", [True, False])
async def test_a_head_without_end_is_not_kept(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine can connect, before any token is asked for: so can each run. With the control."""
    if not bounded:
        monkeypatch.setattr(keyproxy, "heads_within", lambda seconds: HttpToolsProtocol)
    async with started("http://127.0.0.1:1") as proxy:
        _, writer = await asyncio.open_unix_connection(proxy.socket)
        writer.write(b"POST /v1/messages HTTP/1.1\r\n")
        lines, sent = b"".join(b"x-%d: " % number + b"y" * 1000 + b"\r\n" for number in range(1000)), 0
        with contextlib.suppress(ConnectionError):
            while sent < 10:
                writer.write(lines)
                await writer.drain()
                sent += 1
        assert (sent < 10) == bounded
        writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("bounded", [True, False])
async def test_a_run_has_so_many_connections_and_others_have_theirs(
    bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 250 that are opened at once, with the control."""
    if not bounded:
        monkeypatch.setattr(keyproxy, "few", lambda protocol, most: protocol)
    program = """if True:
        import socket, sys, time
        def opened():
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(sys.argv[1])
            return connection
        def is_answered(connection):
            try:
                connection.sendall(b"HEAD / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
                return connection.recv(9) == b"HTTP/1.1 "
            except ConnectionError:
                return False
        print(sum(map(is_answered, [opened() for _ in range(250)])), flush=True)
        time.sleep(600)
    """
    async with started("http://127.0.0.1:1") as proxy:
        proxy.socket.parent.chmod(0o711)
        proxy.socket.chmod(0o666)
        async with contextlib.AsyncExitStack() as ending:
            for user in (12_001, 12_002):
                asked = await asyncio.create_subprocess_exec(
                    *("/usr/bin/python3", "-c", program, str(proxy.socket)),
                    user=user,
                    group=user,
                    extra_groups=[],
                    stdout=asyncio.subprocess.PIPE,
                )
                ending.push_async_callback(asked.wait)
                ending.callback(asked.kill)
                assert asked.stdout is not None
                said = await asyncio.wait_for(asked.stdout.readline(), HANG_S)
                assert int(said) == (200 if bounded else 250)


async def test_what_a_run_sends_at_once_is_bounded(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_MAX_BODY", 40_000)
    monkeypatch.setattr(bodies, "_MAX_HELD", 100_000)
    grant, headers = granted(proxy, 10)
    opened = [await begin(proxy, headers["x-api-key"], 40_000, b"x" * 30_000) for _ in range(3)]
    while grant.held < 90_000:
        await asyncio.sleep(0.01)
    reader, writer = await begin(proxy, headers["x-api-key"], 20_000, b"x" * 20_000)
    assert await status(reader) == 413
    for _, each in [*opened, (reader, writer)]:
        each.close()
    while grant.held:
        await asyncio.sleep(0.01)
    async with client_of(proxy) as client:
        assert (
            await client.post("http://proxy/v1/messages", content=b"x" * 40_001, headers=headers)
        ).status_code == 413
        assert (await client.post("http://proxy/v1/messages", content=MODEL, headers=headers)).status_code == 200
    while grant.held:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (MODEL.replace(b"haiku", b"opus"), "model claude-opus-4-5 is not allowed here"),
        (b'{"model":"' + b"a" * 100_000 + b'"}', "model " + "a" * 200 + " is not allowed here"),
        (b'{"model":null}', "not a JSON object with a model"),
        (b'{"model":["claude-haiku-4-5"]}', "not a JSON object with a model"),
        (b"[" * 1_000_000, "not a JSON object with a model"),
        (b'{"a":' * 1_000_000, "not a JSON object with a model"),
        (b'{"model":"haiku"', "not a JSON object with a model"),
        (b'{"model":"\xff"}', "not a JSON object with a model"),
        (b'"claude-haiku-4-5"', "not a JSON object with a model"),
        (b"", "not a JSON object with a model"),
    ],
)
async def test_what_is_not_a_request_for_the_runs_model_is_refused(proxy: Proxy, body: bytes, refused: str) -> None:
    grant, headers = granted(proxy, 1)
    async with client_of(proxy) as client:
        answer = await client.post("http://proxy/v1/messages", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"], grant.refused) == (403, refused, refused)
    assert grant.api_status is None, "nothing was sent"


def body_of(prompt: str, *, stream: bool = True, max_tokens: int = 100) -> bytes:
    message = {"role": "user", "content": prompt}
    body = {"model": "claude-haiku-4-5", "max_tokens": max_tokens, "stream": stream, "messages": [message]}
    return json.dumps(body).encode()


async def ask(proxy: Proxy, headers: dict[str, str], body: bytes) -> asyncio.StreamWriter:
    """A request that is sent, and whose answer nobody reads."""
    _, writer = await begin(proxy, headers["x-api-key"], len(body), body)
    return writer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.01)


def notes_of(grant: Grant) -> dict[int, list[Decimal]]:
    assert isinstance(grant.notes, Notes)
    return grant.notes.lines


async def test_a_request_that_waits_is_not_sent_for_who_has_left(proxy: Proxy, stand_in: StandInProcess) -> None:
    """A budget for one of them at a time: the second one's client leaves before it is its turn."""
    grant, headers = granted(proxy, 10, "0.0006")
    first = await ask(proxy, headers, body_of("[[delay 300]] the first one has its turn"))
    await until(lambda: grant.account.under_way)
    second = await ask(proxy, headers, body_of("the second one leaves"))
    await until(lambda: grant.requests_left == 8)
    await asyncio.sleep(0.2)
    second.close()
    third = await ask(proxy, headers, body_of("the third one waits"))
    await until(lambda: len(notes_of(grant)) == 2 and grant.account.under_way == 0)
    asked = str([line["messages"] for line in stand_in.lines() if line["path"] == "/v1/messages"])
    assert "the first one has" in asked and "the third one waits" in asked
    assert "the second one leaves" not in asked
    for each in (first, third):
        each.close()


async def test_no_request_that_waits_is_sent_once_the_run_has_ended(proxy: Proxy) -> None:
    grant, headers = granted(proxy, 10, "0.0006")
    first = await ask(proxy, headers, body_of("[[delay 200]] one two three"))
    await until(lambda: grant.account.under_way)
    second = await ask(proxy, headers, body_of("waits"))
    await until(lambda: grant.requests_left == 8)
    await asyncio.sleep(0.2)
    proxy.key.revoke(headers["x-api-key"])
    await until(lambda: grant.account.under_way == 0)
    await asyncio.sleep(0.2)
    assert len(notes_of(grant)) == 1
    for each in (first, second):
        each.close()


# US dollars for a token of claude-haiku-4-5, from Anthropic's price list.
INPUT, OUTPUT = Decimal("0.000001"), Decimal("0.000005")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_left_before_anything_was_heard_is_billed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Of an API that says nothing in time: of a stream the bound of its input, of other answers all that was reserved."""
    monkeypatch.setattr(keyproxy, "_LAST_WORD_S", 0.3)
    grant, headers = granted(proxy, 10)
    writer = await ask(proxy, headers, body_of("[[hang]]", stream=stream))
    await until(lambda: notes_of(grant))
    (lines,) = notes_of(grant).values()
    writer.close()
    await until(lambda: grant.account.under_way == 0)
    bound = len(json.dumps([{"role": "user", "content": "[[hang]]"}])) * INPUT + (0 if stream else 100 * OUTPUT)
    assert lines == [bound, bound], "and before it was sent it was written down"
    assert grant.account.spent_usd == bound


@pytest.mark.parametrize("reads", [False, True])
async def test_what_has_not_left_whole_is_billed_to_nobody(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """A proxy that is killed before the last byte of a request has left has asked for nothing: its journal must not say so.
    The API that reads all of it and says nothing is the control."""
    monkeypatch.setattr(keyproxy, "_LAST_WORD_S", 0.3)
    came, ends = asyncio.Event(), asyncio.Event()

    async def api(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        came.set()
        if reads:
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        await ends.wait()
        writer.transport.abort()

    async with await asyncio.start_server(api, "127.0.0.1", 0, limit=1 << 10) as server:
        async with started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
            grant, headers = granted(proxy, 10, "1000")
            # More than the sockets' buffers hold.
            writer = await ask(proxy, headers, body_of("x" * (24 << 20), stream=True))
            await asyncio.wait_for(came.wait(), 30)
            if reads:
                await until(lambda: notes_of(grant))
            else:
                await asyncio.sleep(0.3)
                assert grant.account.under_way == 1
                assert not notes_of(grant)
            writer.close()
            await until(lambda: grant.account.under_way == 0)
            assert (grant.account.spent_usd > 0) is reads
            assert bool(notes_of(grant)) is reads
            ends.set()


async def test_what_cannot_be_written_down_is_not_asked(proxy: Proxy, stand_in: StandInProcess) -> None:
    """The disk is full: the API never has the whole of the request."""

    class Full(Notes):
        def send(self, run: str, bound_usd: Decimal) -> int:
            raise CannotWrite

    grant, headers = granted(proxy, 10)
    grant.notes = Full()
    async with client_of(proxy) as client:
        answer = await client.post("http://proxy/v1/messages", content=body_of("a full disk"), headers=headers)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert "disk is full" in answer.json()["error"]["message"] and "disk is full" in (grant.held_back or "")
        await until(lambda: grant.account.under_way == 0)
        assert grant.account.spent_usd == grant.account.reserved_usd == 0
        grant.notes = Notes()
        assert (
            await client.post("http://proxy/v1/messages", content=body_of("room again"), headers=headers)
        ).is_success
    asked = str([line["messages"] for line in stand_in.lines()])
    assert "room again" in asked and "a full disk" not in asked


async def test_a_run_that_leaves_is_billed_what_the_api_says_later(proxy: Proxy) -> None:
    """An answer in one piece is there only at its end: it is waited for."""
    grant, headers = granted(proxy, 10)
    usage = '[[delay 300]] [[usage {"input_tokens": 1000, "output_tokens": 50}]]'
    writer = await ask(proxy, headers, body_of(usage, stream=False))
    await until(lambda: notes_of(grant))  # before that nothing is sent, and nothing is billed
    writer.close()
    await until(lambda: grant.account.under_way == 0)
    assert grant.account.spent_usd == 1000 * INPUT + 50 * OUTPUT


async def test_what_was_streamed_is_written_down_before_the_run_has_it(proxy: Proxy) -> None:
    grant, headers = granted(proxy, 10)
    body = body_of("[[delay 20]] [[say aaaaaaaaaaa bbbbbbbbbbb ccccccccccc]]")
    reader, writer = await begin(proxy, headers["x-api-key"], len(body), body)
    seen = b""
    while b"bbbbb" not in seen:
        seen += await reader.read(1 << 16)
        (lines,) = notes_of(grant).values()
        counted = b"message_delta" in seen  # all may come at once: then it is what the API says
        tokens = 9 if counted else -(-12 * seen.count(b"text_delta") // 3)
        assert lines[-1] >= 12 * INPUT + max(tokens, 1) * OUTPUT
    writer.close()
    await until(lambda: grant.account.under_way == 0)


async def test_who_holds_back_says_why(proxy: Proxy) -> None:
    proxy.key.hold = "the ledger is away"
    grant, headers = granted(proxy, 10)
    grant.purse = Purse("", grant.account, Lavish())
    async with client_of(proxy) as client:
        answer = await client.post("http://proxy/v1/messages", content=MODEL, headers=headers)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert answer.json()["error"]["message"] == "the ledger is away" == grant.held_back
        grant.purse = None
        assert (await client.post("http://proxy/v1/messages", content=MODEL, headers=headers)).status_code == 200


@asynccontextmanager
async def endless() -> AsyncIterator[tuple[Proxy, list[int]]]:
    """A proxy of an API whose answers have no end, and the sizes of what that has got rid of."""
    sent: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" " * 65_536)
                await writer.drain()
                sent.append(65_536)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        async with started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
            yield proxy, sent


ENOUGH = 16 << 20
"""Bytes. Of what nobody reads the kernel takes some, too."""


@pytest.mark.parametrize("weakened", [False, True])
async def test_an_api_that_counts_without_end_is_not_listened_to(
    weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the proxy, which asks how large a request is for which there may not be enough left."""
    if weakened:
        monkeypatch.setattr(request, "MAX_COUNTED", ENOUGH)
    async with endless() as (proxy, sent), client_of(proxy) as client:
        _, headers = granted(proxy, 1, cap_usd="0.000001")
        answer = await client.post("http://proxy/v1/messages", content=MODEL, headers=headers)
    assert answer.status_code == 403 and "more than is left" in answer.json()["error"]["message"]
    assert (sum(sent) >= ENOUGH) == weakened


@pytest.mark.parametrize("weakened", [False, True])
async def test_nor_by_the_invoker_for_a_caller(weakened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if weakened:
        monkeypatch.setattr(counting, "MAX_COUNTED", ENOUGH)
    async with endless() as (proxy, sent):

        async def opened(key: str, token: str, *_: object) -> None:
            proxy.key.grant(
                token, Grant(key, lambda model: True, 1, Account(Prices({}, "refuse"), Decimal(0)), Notes())
            )

        async def closed(key: str, booked: int) -> None:
            pass

        metering = SimpleNamespace(issue=lambda: "token", open=opened, close=closed, socket=proxy.socket)
        with pytest.raises(Problem, match="the model API answered 200") as failed:
            await counting.count(cast(Metering, metering), "haiku", None, [{"type": "text", "text": "hi"}])
    assert failed.value.status == 502
    assert (sum(sent) >= ENOUGH) == weakened


@pytest.mark.parametrize("parser", ["request.read(body)", "orjson.loads(body)"])
def test_a_body_costs_little_more_than_its_size(parser: str) -> None:
    """Of 32 MB that are ten million lists, the control makes ten million objects."""
    program = (
        "import orjson\nfrom claude_invoker.metering import request\n"
        "body = b'{\"model\":\"claude-haiku-4-5\",\"messages\":[' + b'[],' * 10_000_000 + b'1]}'\n"
        # Not ru_maxrss: that begins with what the process that started this one has.
        f"{parser}\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 500_000) == (parser == "orjson.loads(body)")


@asynccontextmanager
async def answering(
    *answer: bytes, goes_on: bool = False
) -> AsyncIterator[tuple[Proxy, list[tuple[dict[str, str], dict[str, Any]]]]]:
    """A proxy of an API that answers each request with the beginning of a stream, in these pieces, and is gone, or
    says no more (`goes_on`); and what it was asked."""
    asked: list[tuple[dict[str, str], dict[str, Any]]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        if "max_tokens" in body:  # the others ask for a count of tokens
            asked.append((headers, body))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in answer))
        await writer.drain()
        if not goes_on:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
        yield proxy, asked
    server.close()


ASKED = {"model": "claude-haiku-4-5", "max_tokens": 64_000, "stream": True, "messages": []}
THINKING = b"""event: message_start
data: {"type":"message_start","message":{"model":"claude-haiku-4-5","usage":{"input_tokens":40,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

"""


@pytest.mark.parametrize("weakened", [False, True])
async def test_thinking_that_is_cut_off_counts_against_the_cap(weakened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that thinks nothing is heard for a while: who leaves then, again and again, has nearly nothing billed."""
    if weakened:
        monkeypatch.setattr(Meter, "most", Meter.used)
    body = json.loads(MODEL) | {"max_tokens": 64_000, "stream": True}
    async with answering(THINKING) as (proxy, asked), client_of(proxy) as client:
        grant, headers = granted(proxy, 10)  # a dollar: three answers of 0.32
        for _ in range(10):
            try:
                await client.post("http://proxy/v1/messages", json=body, headers=headers)
            except httpx.HTTPError:
                continue  # the answer breaks off here too
    assert (len(asked) == 10) == weakened, len(asked)
    charged = sum(each["max_tokens"] for _, each in asked) * Decimal("0.000005")
    assert (charged > 1) == weakened
    assert 0 < grant.account.spent_usd < Decimal("0.001")


@pytest.mark.parametrize("weakened", [False, True])
async def test_who_leaves_without_reading_pays_for_what_has_come(
    weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads nothing, of an answer that is there to its last event but one."""
    if weakened:
        monkeypatch.setattr(keyproxy, "_hear_out", lambda *_: None)
    piece = b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"%b"}}\n\n' % (b"abc" * 100)
    arrived, left = asyncio.Event(), asyncio.Event()
    given: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(ASKED).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            arrived.set()
            await asyncio.Event().wait()

    async with answering(THINKING.replace(b"thinking", b"text"), *50 * [piece], goes_on=True) as (proxy, _):
        grant, headers = granted(proxy, 1)
        sent_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/messages", "headers": sent_headers, "query_string": b""}
        asking = asyncio.create_task(proxy.key._application(scope, receive, send))
        await arrived.wait()
        await asyncio.sleep(0.3)  # the rest comes, and is read by nobody
        left.set()
        await asyncio.wait_for(asking, HANG_S)
    output = (grant.account.spent_usd - 40 * INPUT) / OUTPUT
    assert (output == 50 * 100) != weakened, output


ROUND = b"""data: {"type":"content_block_start","content_block":{"type":"server_tool_use","name":"web_search"}}

data: {"type":"content_block_start","content_block":{"type":"web_search_tool_result"}}

"""


@pytest.mark.parametrize("weakened", [False, True])
async def test_an_answer_that_searches_more_often_than_it_may_is_broken_off(
    weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API refuses such a search and asks the model again, by the whole input: that was in no bound."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    body = json.loads(MODEL) | {"stream": True, "tools": [search]}
    async with answering(THINKING + 50 * ROUND) as (proxy, asked), client_of(proxy) as client:
        grant, headers = granted(proxy, 1)
        grant.features = frozenset({"web_search"})
        if weakened:
            monkeypatch.setattr(Meter, "again", property(lambda _: 0, lambda *_: None), raising=False)
        seen = b""
        with pytest.raises(httpx.HTTPError):
            async with client.stream("POST", "http://proxy/v1/messages", json=body, headers=headers) as answer:
                async for part in answer.aiter_bytes():
                    seen += part
        await until(lambda: grant.account.under_way == 0)
    assert len(asked) == 1 and (seen.count(b"_tool_result") == 50 if weakened else seen.count(b"_tool_result") <= 4)
    assert 0 < grant.account.spent_usd <= grant.account.cap_usd - grant.account.left_usd <= grant.account.cap_usd


OTHERWISE: list[dict[str, Any]] = [
    {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-fable-5"}]},
    {"tools": [{"type": "web_search_latest", "name": "web_search"}]},
    {"fallbacks": [{"model": "claude-fable-5"}]},
    {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    {"speed": "fast"},
]


@pytest.mark.parametrize("weakened", [False, True])
async def test_nothing_that_is_priced_otherwise_reaches_the_api(
    proxy: Proxy, stand_in: StandInProcess, weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weakened:
        monkeypatch.setattr(request, "check_members", lambda members, features: Otherwise())
        monkeypatch.setattr(request, "check_tools", lambda tools, allowed: Uses())
    before = len(stand_in.lines())
    _, headers = granted(proxy, len(OTHERWISE))
    async with client_of(proxy) as client:
        for more in OTHERWISE:
            answer = await client.post("http://proxy/v1/messages", json=json.loads(MODEL) | more, headers=headers)
            assert answer.status_code == (200 if weakened else 403), answer.text
    assert len(stand_in.lines()) - before == (len(OTHERWISE) if weakened else 0)


async def test_betas_and_other_purses(proxy: Proxy) -> None:
    grant, headers = granted(proxy, 2)
    async with client_of(proxy) as client:
        more = {"anthropic-beta": "claude-code-20250219,fast-mode-2026-02-01"}
        answer = await client.post("http://proxy/v1/messages", content=MODEL, headers=headers | more)
        assert (answer.status_code, grant.refused) == (
            403,
            "the request may not use the beta fast-mode-2026-02-01: its tier's api_features do not name fast_mode",
        )
    async with answering(THINKING) as (other, asked), client_of(other) as client:
        grant, headers = granted(other, 1)
        grant.features = frozenset({"context_1m"})
        purses = {"Anthropic-Workspace-Id": "wrkspc_x", "anthropic-user-profile-id": "x"}
        more = purses | {"anthropic-beta": "context-1m-2025-08-07"}
        with pytest.raises(httpx.HTTPError):
            await client.post("http://proxy/v1/messages", content=MODEL, headers=headers | more)
        assert asked[0][0]["anthropic-beta"] == "context-1m-2025-08-07"
        assert not {name.lower() for name in purses} & set(asked[0][0])


@pytest.mark.parametrize("weakened", [False, True])
async def test_no_header_asks_for_what_the_body_was_not_read_as(
    weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another charset the same bytes are another request; and a name with `_` is one with `-` to some servers."""
    if weakened:
        monkeypatch.setattr(keyproxy, "_DROPPED", frozenset((b"x-api-key", b"content-length", b"host")))
    hidden = "hi+ACI-}],+ACI-speed+ACI-:+ACI-fast+ACI-,+ACI-x+ACI-:[{+ACI-y+ACI-:+ACI-"
    body = json.loads(MODEL) | {"messages": [{"role": "user", "content": hidden}]}
    named = {
        "content-type": "application/json; charset=utf-7",
        "content-encoding": "x-utf-7",
        "te": "trailers",
        "expect": "200-ok",
        "idempotency-key": "one-of-all-runs",
        "anthropic_beta": "fast-mode-2026-02-01",
        "x_api_key": "sk-x",
        "anthropic_workspace_id": "wrkspc_x",
    }
    async with answering(THINKING) as (proxy, asked), client_of(proxy) as client:
        _, headers = granted(proxy, 1)
        with pytest.raises(httpx.HTTPError):
            await client.post("http://proxy/v1/messages", content=json.dumps(body), headers=headers | named)
    found = asked[0][0]
    assert not [name for name in found if "_" in name]
    if weakened:
        assert found["expect"] == "200-ok"
    else:
        assert found["content-type"] == "application/json" and not found.keys() & (named.keys() - {"content-type"})


ABROAD = THINKING.replace(b'"output_tokens":1', b'"output_tokens":1,"inference_geo":"us"')


async def test_a_key_whose_workspace_keeps_to_the_us_is_reserved_for_as_it_is_billed() -> None:
    async with answering(ABROAD) as (proxy, asked), client_of(proxy) as client:
        for geo, length in ((None, 64_000), (None, 58_000), ("global", 64_000)):
            grant, headers = granted(proxy, 1, "0.32006")
            grant.features = frozenset({"inference_geo"})
            more = {"max_tokens": 64_000, "stream": True} | ({} if geo is None else {"inference_geo": geo})
            with pytest.raises(httpx.HTTPError):
                await client.post("http://proxy/v1/messages", json=json.loads(MODEL) | more, headers=headers)
            assert 0 <= asked[-1][1]["max_tokens"] - length < 1000, asked[-1][1]["max_tokens"]


async def test_a_lowered_answer_leaves_room_beside_its_thoughts() -> None:
    body = json.loads(MODEL) | {"max_tokens": 64_000, "thinking": {"type": "enabled", "budget_tokens": 63_000}}
    async with answering(THINKING) as (proxy, asked), client_of(proxy) as client:
        grant, headers = granted(proxy, 1)
        grant.account.cap_usd = Decimal("0.1")
        with pytest.raises(httpx.HTTPError):
            await client.post("http://proxy/v1/messages", json=body, headers=headers)
    ((_, sent),) = asked
    assert 1024 < sent["max_tokens"] < 20_000
    assert sent["thinking"]["budget_tokens"] == sent["max_tokens"] - 1
