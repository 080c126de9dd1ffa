"""Several addresses of the API: where one is away the next is asked, and what the first may have billed is booked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal

import httpx
import pytest

from claude_invoker.metering.upstreams import Upstreams
from claude_invoker.metering.wire import Told, line
from claude_invoker.settings import Settings
from tests.invoker.conftest import free_port
from tests.invoker.test_keyproxy import INPUT, MODEL, OUTPUT, Proxy, client_of, granted, notes_of, started, until

ANSWER = json.dumps(
    {"model": "claude-haiku-4-5", "content": [], "usage": {"input_tokens": 12, "output_tokens": 1}}
).encode()
PAID = 12 * INPUT + OUTPUT
"""What that answer costs."""
BOUND = len(MODEL.partition(b'"messages":')[2][:-1]) * INPUT + OUTPUT
"""The most that the request may cost."""


@dataclass
class Api:
    """One that answers each request with these bytes, once it has read it, and closes."""

    answer: bytes
    url: str = ""
    asked: list[bytes] = field(default_factory=list)


def saying(status: int, body: bytes = ANSWER, length: int | None = None) -> bytes:
    body = body if status == 200 else b'{"type":"error"}'
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d x\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n%b" % (status, size, body)


GOOD, BROKEN_OFF, NOTHING = saying(200), saying(200, ANSWER[:20], 1000), b""


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[Api]:
    api = Api(answer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if length := head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]:
            await reader.readexactly(int(length))
        api.asked.append(head)
        writer.write(api.answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield api


@asynccontextmanager
async def proxied(*answers: bytes | None) -> AsyncIterator[tuple[Proxy, list[Api]]]:
    """A proxy of APIs with these answers; None: nobody listens there."""
    async with AsyncExitStack() as stack:
        apis = [
            Api(b"", f"http://127.0.0.1:{free_port()}")
            if each is None
            else await stack.enter_async_context(serving(each))
            for each in answers
        ]
        yield await stack.enter_async_context(started(*(api.url for api in apis))), apis


async def asked(proxy: Proxy, headers: dict[str, str], path: str = "", body: bytes = MODEL) -> httpx.Response:
    async with client_of(proxy) as client:
        return await client.post(f"http://proxy/v1/messages{path}", content=body, headers=headers)


@pytest.mark.parametrize(
    ("first", "booked"),
    [
        pytest.param(None, 0, id="nobody listens"),
        pytest.param(NOTHING, BOUND, id="has read all, and says nothing"),
        *(pytest.param(saying(status), 0, id=str(status)) for status in (502, 503, 504, 529)),
    ],
)
async def test_the_next_is_asked_where_one_is_away(first: bytes | None, booked: Decimal | int) -> None:
    """What the first may have begun to work on, and bill, is paid for, too: an answer in one piece by all of it."""
    async with proxied(first, GOOD) as (proxy, (_, second)):
        grant, headers = granted(proxy, 3)
        answer = await asked(proxy, headers)
        assert (answer.status_code, answer.content) == (200, ANSWER)
        await until(lambda: grant.account.under_way == 0)
        assert grant.account.spent_usd == booked + PAID
        assert grant.account.unknown_usd == grant.account.reserved_usd == 0
        lines = [line[-1] for line in notes_of(grant).values()]
        assert sum(lines) == grant.account.spent_usd, "and the journal says the same"
        assert grant.requests_left == 2, "for its run it is one request"
        assert len(second.asked) == 1 and (grant.api_status, grant.unreachable) == (200, False)


async def test_of_a_stream_the_first_may_have_read_the_input() -> None:
    body = MODEL.replace(b"{", b'{"stream":true,', 1)
    async with proxied(NOTHING, GOOD) as (proxy, _):
        grant, headers = granted(proxy, 1)
        assert (await asked(proxy, headers, body=body)).status_code == 200
        await until(lambda: grant.account.under_way == 0)
        assert grant.account.spent_usd == BOUND - OUTPUT + PAID
        assert grant.account.unknown_usd == OUTPUT, "the rest counts against the run's own bound"


@pytest.mark.parametrize(
    "first", [pytest.param(saying(status), id=str(status)) for status in (200, 400, 401, 403, 404, 408, 429, 500)]
)
async def test_an_answer_is_an_answer(first: bytes) -> None:
    """What it says of the request, or of the key, the next would say as well."""
    async with proxied(first, GOOD) as (proxy, (_, second)):
        _, headers = granted(proxy, 1)
        answer = await asked(proxy, headers)
        assert (str(answer.status_code).encode(), answer.headers["retry-after"]) == (first.split()[1], "7")
        assert not second.asked


@pytest.mark.parametrize("said", ["7", "\xff\xfe", "²", "٣", "soon", "-1", "", "7" * 60_000])
async def test_of_when_to_come_again_seconds_are_told_and_nothing_else(said: str) -> None:
    """The proxy tells the invoker as JSON, which has no bytes but UTF-8's, and the invoker its client in a header."""
    header = said.encode("latin-1" if said.startswith("\xff") else "utf-8")
    async with proxied(saying(429).replace(b"after: 7", b"after: " + header)) as (proxy, _):
        grant, headers = granted(proxy, 1)
        told: list[bytes] = []
        grant.changed = lambda model, used: told.append(line(Told("run", Decimal(0), 0, retry_after=grant.retry_after)))
        with suppress(httpx.HTTPError):  # of a head that is too long
            assert (await asked(proxy, headers)).status_code in (429, 502)
        assert told and grant.retry_after == (said if said == "7" else None)


async def test_after_the_head_nobody_else_is_asked() -> None:
    async with proxied(BROKEN_OFF, GOOD) as (proxy, (_, second)):
        _, headers = granted(proxy, 1)
        with pytest.raises(httpx.HTTPError):
            await asked(proxy, headers)
        assert not second.asked


async def test_what_becomes_no_http_is_broken_off_as_well() -> None:
    came = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await came.wait()
        writer.write(b"zz\r\nabc\r\n")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, serving(GOOD) as second:
        async with started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", second.url) as proxy:
            grant, headers = granted(proxy, 1)
            seen = b""
            with pytest.raises(httpx.HTTPError):
                async with client_of(proxy) as client:
                    async with client.stream("POST", "http://x/v1/messages", content=MODEL, headers=headers) as answer:
                        async for part in answer.aiter_bytes():
                            seen += part
                            came.set()
            await until(lambda: grant.account.under_way == 0)
    assert seen == b"abc" and not second.asked
    assert grant.account.spent_usd == 0 and grant.account.unknown_usd == BOUND, "as of an API that broke off"


@pytest.mark.parametrize(
    ("last", "status"), [(saying(503), 503), (NOTHING, 502), (None, 502)], ids=["503", "nothing", "nobody"]
)
async def test_the_last_one_s_answer_is_the_answer(last: bytes | None, status: int) -> None:
    async with proxied(None, last) as (proxy, _):
        grant, headers = granted(proxy, 1)
        answer = await asked(proxy, headers)
        assert answer.status_code == status
        await until(lambda: grant.account.under_way == 0)
        assert grant.account.spent_usd == 0, "as of an only one"


async def test_what_is_not_there_for_a_second_request_is_not_spent() -> None:
    async with proxied(NOTHING, GOOD) as (proxy, (_, second)):
        grant, headers = granted(proxy, 1, str(BOUND * Decimal("1.5")))
        answer = await asked(proxy, headers)
        assert answer.status_code == 403 and grant.account.exhausted
        assert not [head for head in second.asked if b"count_tokens" not in head]
        assert grant.account.spent_usd == BOUND


async def test_who_has_left_asks_nobody_else() -> None:
    ends = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await ends.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as silent, serving(GOOD) as second:
        async with started(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", second.url) as proxy:
            grant, headers = granted(proxy, 1)
            asking = asyncio.create_task(asked(proxy, headers))
            await until(lambda: notes_of(grant))
            asking.cancel()
            await asyncio.sleep(0.1)
            ends.set()
            await until(lambda: grant.account.under_way == 0)
            assert grant.account.spent_usd == BOUND and not second.asked


async def test_counting_goes_on_too_and_costs_nothing() -> None:
    async with proxied(saying(529), GOOD) as (proxy, (first, second)):
        grant, headers = granted(proxy, 1)
        assert (await asked(proxy, headers, "/count_tokens")).status_code == 200
        assert (len(first.asked), len(second.asked)) == (1, 1) and grant.account.spent_usd == 0


async def test_one_that_was_away_is_asked_last_for_a_while() -> None:
    async with proxied(saying(503), GOOD) as (proxy, (first, second)):
        _, headers = granted(proxy, 3)
        for _ in range(3):
            assert (await asked(proxy, headers)).status_code == 200
        assert (len(first.asked), len(second.asked)) == (1, 3)


def test_the_order() -> None:
    now = 0.0
    found = Upstreams(("a/", "b", "c"), lambda: now)
    order: Callable[[], list[tuple[str, bool]]] = lambda: list(found.in_turn())  # noqa: E731
    assert order() == [("a", False), ("b", False), ("c", True)]
    found.failed("a")
    assert [url for url, _ in order()] == ["b", "c", "a"]
    found.failed("b")
    found.failed("c")
    assert [url for url, _ in order()] == ["a", "b", "c"], "all of them are away: as it was set"
    found.answered("c")
    assert order() == [("c", False), ("a", False), ("b", True)]
    now = 30.0
    assert [url for url, _ in order()] == ["a", "b", "c"]
    assert list(Upstreams(("only",)).in_turn()) == [("only", True)]


@pytest.mark.parametrize(
    "given",
    ["", "api.anthropic.com", "ftp://x", "https://", "https://me:secret@x", "https://a,https://a/", "https://a?b"],
)
def test_addresses_that_cannot_be_asked(given: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Settings(anthropic_base_url=given)  # type: ignore[arg-type]  # as a variable gives it


def test_addresses_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKER_ANTHROPIC_BASE_URL", "https://a, https://b/api")
    assert Settings().anthropic_base_url == ("https://a", "https://b/api")
