"""The key proxy against a run that has its own token: what a tool of it may ask for, and how much at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from claude_invoker.cli import keyproxy
from claude_invoker.cli.keyproxy import Grant, KeyProxy
from claude_invoker.metering.account import Account
from claude_invoker.metering.prices import Prices
from tests.invoker.conftest import KEY, StandInProcess

MODEL = b'{"model":"claude-haiku-4-5","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'


@pytest.fixture
async def proxy(stand_in: StandInProcess) -> AsyncIterator[KeyProxy]:
    found = KeyProxy(stand_in.url, KEY)
    with tempfile.TemporaryDirectory() as folder:
        await found.start(Path(folder, "api.sock"))
        yield found
        await found.stop()


def granted(proxy: KeyProxy, requests: int) -> tuple[Grant, dict[str, str]]:
    token = proxy.issue()
    grant = Grant(lambda model: "haiku" in model, requests, Account(Prices({}, "refuse"), Decimal(1)))
    proxy.grant(token, grant)
    return grant, {"x-api-key": token, "content-type": "application/json"}


def client_of(proxy: KeyProxy) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(proxy.socket)), timeout=30)


async def begin(
    proxy: KeyProxy, token: str, length: int, sent: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request of which only the beginning is sent."""
    reader, writer = await asyncio.open_unix_connection(proxy.socket)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {token}\r\ncontent-length: {length}\r\n\r\n"
    writer.write(head.encode() + sent)
    await writer.drain()
    return reader, writer


async def status(reader: asyncio.StreamReader) -> int:
    return int((await asyncio.wait_for(reader.readline(), 30)).split()[1])


async def test_a_request_counts_before_its_body_is_read(proxy: KeyProxy) -> None:
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


async def test_what_a_run_sends_at_once_is_bounded(proxy: KeyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyproxy, "_MAX_BODY", 40_000)
    monkeypatch.setattr(keyproxy, "_MAX_HELD", 100_000)
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
        (MODEL.replace(b"haiku", b"opus"), "this run may not use model claude-opus-4-5"),
        (b'{"model":"' + b"a" * 100_000 + b'"}', "this run may not use model " + "a" * 200),
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
async def test_what_is_not_a_request_for_the_runs_model_is_refused(proxy: KeyProxy, body: bytes, refused: str) -> None:
    grant, headers = granted(proxy, 1)
    async with client_of(proxy) as client:
        answer = await client.post("http://proxy/v1/messages", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"], grant.refused) == (403, refused, refused)
    assert grant.api_status is None, "nothing was sent"


@pytest.mark.parametrize("parser", ["request.read(body)", "orjson.loads(body)"])
def test_a_body_costs_little_more_than_its_size(parser: str) -> None:
    """Of 32 MB that are ten million lists, the control makes ten million objects."""
    program = (
        "import orjson, resource\nfrom claude_invoker.metering import request\n"
        "body = b'{\"model\":\"claude-haiku-4-5\",\"messages\":[' + b'[],' * 10_000_000 + b'1]}'\n"
        f"{parser}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 500_000) == (parser == "orjson.loads(body)")
