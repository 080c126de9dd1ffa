"""Requests to models themselves: what passes on, what does not, and what they cost. Through the gateway:
`tests/e2e/test_passthrough.py`."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest

from claude_contract import ledger
from claude_contract.attestation import HEADER
from claude_invoker.metering.heads import to_client
from claude_invoker.passthrough import heads
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import KEY, Invoker, wait_for
from tests.invoker.money import proxy_of
from tests.invoker.test_trust import SECRET, attestation
from tests.rate_tiers.servers import RedisProcess
from tests.support.upstream import Upstream, as_json, as_stream, events, message, upstream
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("passthrough")  # its invoker is started once

HAIKU, OPUS = "claude-haiku-4-5", "claude-opus-5-5"
PATH = "/claude/v1/messages"
SLOT = ledger.Slot(concurrent=4, day_micro_usd=1_000_000, ttl_ms=60_000)
NAMES = (f"sub-{number}" for number in itertools.count())
FREE = {"models": ["haiku"], "max_usd": 0.25}


@pytest.fixture(scope="module")
def api() -> Iterator[Upstream]:
    with upstream() as found:
        yield found


@pytest.fixture(scope="module")
def invoker(api: Upstream, shared_redis: RedisProcess, start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(
        trust="attested",
        attestation_key=SECRET,
        redis_url=shared_redis.url,
        anthropic_base_url=api.url,
        pool_size=0,
        prices=json.dumps({f"{HAIKU}-fast": {"input": 6, "output": 30}}),
    )


@pytest.fixture
def redis_server(shared_redis: RedisProcess) -> RedisProcess:
    """That of the invoker here, with nothing in it."""
    shared_redis.client().flushall()
    return shared_redis


@pytest.fixture(autouse=True)
def fresh(api: Upstream, redis_server: RedisProcess) -> None:
    api.asked.clear()
    api.answer = as_json(message())


class Asking:
    """A caller with a subject of his own, and a message of his that the gateway has let in."""

    def __init__(self, invoker: Invoker, redis: RedisProcess, slot: ledger.Slot = SLOT) -> None:
        self.subject = next(NAMES)
        self.invoker = invoker
        self.slot = slot
        self.store = RedisLedger(RedisAddress(redis.url, timeout=HANG_S))

    def head(self, body: bytes, path: str = PATH, *, kind: str = "message", **claims: Any) -> dict[str, str]:
        message = kind == "message"
        lease = ledger.Lease.new(ledger.NAMESPACE, self.subject, 0, message=message)
        assert self.store.acquire(lease, self.slot).admitted
        given: dict[str, Any] = {"sub": self.subject, "tier": "free", "clamp": FREE}
        given |= {"lease": str(lease), "slot": self.slot.claim(), "msg": message or None} | claims
        return {HEADER: attestation("POST", path, body, **given), "content-type": "application/json"}

    def post(self, body: bytes, headers: dict[str, str] | None = None, query: str = "", **more: Any) -> httpx.Response:
        asked = self.head(body, **more) | (headers or {})
        return httpx.post(f"{self.invoker.url}{PATH}{query}", content=body, headers=asked, timeout=HANG_S)

    def usage(self, *, message: bool = True) -> ledger.Usage:
        return self.store.peek(ledger.Peek(ledger.NAMESPACE, self.subject, slot=self.slot, message=message))

    def booked(self) -> int:
        """Micro-USD, once nothing of it runs any more."""
        wait_for(lambda: self.usage().running == 0, what="the end of what the caller has under way")
        return self.usage().spent_day_micro_usd

    def noted(self) -> list[dict[str, Any]]:
        """What the audit log says of his messages."""
        folder = self.invoker.state / "audit"
        lines = [json.loads(line) for path in folder.rglob("*") if path.is_file() for line in _lines(path.read_bytes())]
        mine = {line["seq"] for line in lines if line.get("subject") == self.subject and line["kind"] == "message.end"}
        return [line["details"] for line in lines if line["seq"] in mine and isinstance(line.get("details"), dict)]


def _lines(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines() if line.startswith(b'{"seq":')]


@pytest.fixture
def caller(invoker: Invoker, redis_server: RedisProcess) -> Asking:
    return Asking(invoker, redis_server)


def body_of(model: str = HAIKU, **members: Any) -> bytes:
    given = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps(given | members).encode()


@contextmanager
def begun(api: Upstream, caller: Asking, max_tokens: int) -> Iterator[Iterator[bytes]]:
    """The pieces of an answer that comes slowly and has no end, of which some have come."""

    api.answer = as_stream(lambda: _slowly(itertools.repeat("abc")))
    content = body_of(stream=True, max_tokens=max_tokens)
    url = f"{caller.invoker.url}{PATH}"
    with httpx.stream("POST", url, content=content, headers=caller.head(content), timeout=HANG_S) as answer:
        pieces = answer.iter_raw()
        for _ in range(12):
            next(pieces)
        yield pieces


def in_micro_usd(output: int) -> int:
    """12 tokens of input, by the price list of Haiku 4.5: 1 and 5 dollars for a million."""
    usd = (12 * Decimal(1) + output * Decimal(5)) / 1_000_000
    return int(usd * 1_000_000)


def test_what_nobody_here_knows_passes_unread_and_what_names_the_caller_does_not(api: Upstream, caller: Asking) -> None:
    mine = {
        "anthropic-beta": "some-beta-of-tomorrow-2027-01-01",
        "anthropic-version": "2023-06-01",
        "x-claude-code-session-id": "s-1",
        "x-of-tomorrow": "yes",
        "user-agent": "claude-cli/9.9",
    }
    theirs = {
        "authorization": "Bearer of-the-client",
        "x-api-key": "sk-of-the-client",
        "cookie": "c=of-the-client",
        "idempotency-key": "of-the-client",
        "x-consumer-username": "of-the-client",
        "x-forwarded-for": "192.0.2.1, of-the-client",
    }
    sent = body_of(of_tomorrow={"a": [1, {"b": None}]}, metadata={"user_id": "u"})
    answer = caller.post(sent, mine | theirs, "?beta=true")
    assert (answer.status_code, answer.json()) == (200, message())
    (asked,) = api.messages
    assert asked.target == "/v1/messages?beta=true"
    assert json.loads(asked.body) == json.loads(sent)
    assert {name: asked.headers[name] for name in mine} == {name: [value] for name, value in mine.items()}
    assert asked.headers["x-api-key"] == [KEY]
    everything = repr(asked.headers)
    assert "of-the-client" not in everything and HEADER.lower() not in asked.headers
    assert caller.booked() == in_micro_usd(3)


def test_a_header_of_the_callers_would_go_on_if_it_were_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the one above."""
    for name in (
        b"x-api-key",
        b"cookie",
        b"authorization",
        b"x_api_key",
        b"idempotency-key",
        b"x-claude-attestation",
        b"x-consumer-id",
    ):
        assert heads.to_api([(name, b"1"), (b"accept", b"*/*")]) == [(b"accept", b"*/*")]
        with monkeypatch.context() as patched:
            patched.setattr(heads, "_OF_THE_CALLER", frozenset())
            patched.setattr(heads, "_OF_THE_GATEWAY", ())
            assert (name, b"1") in heads.to_api([(name, b"1")])
    assert heads.to_api([(b"connection", b"X-Hop"), (b"x-hop", b"1")]) == []
    assert to_client([(b"Set-Cookie", b"a"), (b"Retry-After", b"7")]) == [(b"retry-after", b"7")]


def test_a_stream_comes_chunk_by_chunk_neither_merged_nor_late(api: Upstream, caller: Asking) -> None:
    """Each chunk is sent when the one before has arrived: if any were kept back nothing would move any more."""
    gate: queue.Queue[None] = queue.Queue()
    sent = list(events(["One ", "two ", "three."]))

    def gated() -> Iterator[bytes]:
        for piece in sent:
            gate.get(timeout=HANG_S)
            yield piece

    api.answer = as_stream(gated)
    content, got = body_of(stream=True), []
    gate.put(None)
    with httpx.stream(
        "POST", f"{caller.invoker.url}{PATH}", content=content, headers=caller.head(content), timeout=HANG_S
    ) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for chunk in answer.iter_raw():
            got.append(chunk)
            gate.put(None)
    assert got == sent
    assert caller.booked() == in_micro_usd(3)


def test_a_connection_ends_with_the_answer_of_a_process_that_has_had_it(api: Upstream, caller: Asking) -> None:
    """It may be a gateway's, and its next request anybody's: nothing of that is for the process that holds the API's key.
    What came before it is answered in its turn."""
    message, sent = body_of(), b""
    for method, path, content in (("GET", "/healthz", b""), ("POST", PATH, message), ("POST", PATH, message)):
        given = {"host": "x", "content-length": str(len(content)), **(caller.head(content) if content else {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        sent += f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content
    url = httpx.URL(caller.invoker.url)
    with socket.create_connection((url.host, url.port), HANG_S) as client:
        client.sendall(sent)
        came = client.makefile("rb").read()
    probe, answer = came.split(b"HTTP/1.1 200 ")[1:]
    assert b"connection: close" not in probe and b"connection: close" in answer
    assert answer.endswith(b"0\r\n\r\n") and len(api.messages) == 1


def test_what_is_no_request_behind_one_does_not_stand_in_its_answer(api: Upstream, caller: Asking) -> None:
    url, content = httpx.URL(caller.invoker.url), body_of(stream=True, max_tokens=2_000)
    api.answer = as_stream(lambda: _slowly(itertools.repeat("abc")))
    given = {"host": "x", "content-length": str(len(content)), **caller.head(content)}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    with socket.create_connection((url.host, url.port), HANG_S) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content)
        came = client.recv(1 << 16)
        assert came.startswith(b"HTTP/1.1 200 ")
        client.sendall(b"\0no request\r\n\r\n")
        while more := client.recv(1 << 16):
            came += more
    assert came.count(b"HTTP/1.1 ") == 1 and b"Invalid" not in came
    assert caller.booked()


def _slowly(words: Iterable[str]) -> Iterator[bytes]:
    for piece in events(words):
        time.sleep(0.02)
        yield piece


def test_who_closes_as_soon_as_he_has_read_all_has_not_left(caller: Asking) -> None:
    """As Kong does. The invoker may see that before it knows that the answer was over."""
    url, content = httpx.URL(caller.invoker.url), body_of()
    for _ in range(8):
        given = {"host": "x", "content-length": str(len(content)), **caller.head(content)}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        with socket.create_connection((url.host, url.port), HANG_S) as client:
            client.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content)
            came = b""
            while not came.endswith(b"0\r\n\r\n"):
                came += client.recv(1 << 16)
        assert caller.booked()
    wait_for(lambda: len(caller.noted()) == 8, what="the lines of the audit log")
    assert {line["end"] for line in caller.noted()} == {"complete"}


@pytest.mark.parametrize("victim", ["proxy", pytest.param("invoker", marks=pytest.mark.slow)])
def test_whoever_is_killed_the_client_is_told_and_what_was_streamed_is_booked(
    api: Upstream, redis_server: RedisProcess, start_invoker: Callable[..., Invoker], victim: str
) -> None:
    settings: dict[str, Any] = {
        "trust": "attested",
        "attestation_key": SECRET,
        "redis_url": redis_server.url,
        "anthropic_base_url": api.url,
    }
    invoker = start_invoker(**settings)
    caller = Asking(invoker, redis_server)

    with begun(api, caller, max_tokens=20_000) as pieces:
        os.kill(proxy_of(invoker).pid if victim == "proxy" else invoker.pid, signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):  # no end: what came is not the whole answer
            for _ in pieces:
                pass
    assert api.messages[0].left.wait(HANG_S)
    if victim == "invoker":
        invoker = start_invoker(after=invoker, **settings)
    wait_for(lambda: caller.usage().spent_day_micro_usd >= in_micro_usd(10), what="what it has cost")
    assert caller.booked() <= in_micro_usd(10 + 256 + 20)
    api.answer = as_json(message())
    wait_for(invoker.ready, what="the next proxy")
    assert Asking(invoker, redis_server).post(body_of()).status_code == 200


def test_an_error_of_the_api_is_passed_on_as_it_is(api: Upstream, caller: Asking) -> None:
    said = {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "slow down", "new": [1]},
        "request_id": "r",
    }
    api.answer = as_json(said, 429, ("retry-after", "7"), ("request-id", "req_of_the_api"), ("set-cookie", "a=b"))
    answer = caller.post(body_of())
    assert (answer.status_code, answer.content) == (429, json.dumps(said).encode())
    assert (answer.headers["retry-after"], answer.headers["request-id"]) == ("7", "req_of_the_api")
    assert "set-cookie" not in answer.headers
    assert caller.booked() == 0
    wait_for(caller.noted, what="the line of the audit log")
    assert caller.noted()[0]["end"] == "api_429"


@pytest.mark.parametrize(
    ("members", "headers", "said"),
    [
        ({"model": OPUS}, {}, "claude-opus-5-5 is not allowed here"),
        ({"speed": "fast"}, {}, "speed"),
        ({"service_tier": "batch"}, {}, "service tier"),
        ({"inference_geo": "us"}, {}, "inference_geo"),
        ({"mcp_servers": [{"type": "url", "url": "https://x.test"}]}, {}, "mcp_servers"),
        ({}, {"anthropic-beta": "a-2026-01-01, fast-mode-2026-02-01"}, "fast-mode"),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, {}, "code_execution"),
    ],
)
def test_what_the_tier_does_not_allow_is_never_sent(
    api: Upstream, caller: Asking, members: dict[str, Any], headers: dict[str, str], said: str
) -> None:
    answer = caller.post(body_of() if not members else body_of(**members), headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (403, "permission_error") and said in error["message"]
    assert api.messages == [] and caller.booked() == 0


def test_what_the_tier_allows_is_sent(api: Upstream, caller: Asking) -> None:
    """The control of the one above: the same, where the tier has it, or it costs nothing."""
    assert caller.post(body_of(OPUS), clamp={"models": ["opus"], "max_usd": 1}).status_code == 200
    assert caller.post(body_of(), {"anthropic-beta": "a-2026-01-01"}).status_code == 200
    assert caller.post(body_of(service_tier="auto")).status_code == 200
    assert len(api.messages) == 3


ALL = FREE | {"features": ["context_1m", "fast_mode", "inference_geo", "web_fetch", "web_search"]}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 1}


@pytest.mark.parametrize(
    ("members", "headers", "usage", "micro_usd"),
    [
        ({"speed": "fast"}, {"anthropic-beta": "fast-mode-2026-02-01"}, {"speed": "fast"}, 12 * 6 + 3 * 30),
        ({"speed": "fast"}, {}, {"speed": "standard"}, 12 * 1 + 3 * 5),
        ({"inference_geo": "us"}, {}, {"inference_geo": "us"}, 30),  # 29.7
        ({"tools": [SEARCH]}, {}, {"server_tool_use": {"web_search_requests": 1}}, 10_000 + 12 * 1 + 3 * 5),
        ({"tools": [FETCH]}, {}, {}, 12 * 1 + 3 * 5),
        ({}, {"anthropic-beta": "context-1m-2025-08-07"}, {}, 12 * 1 + 3 * 5),
    ],
)
def test_what_the_tier_allows_beside_tokens_is_sent_and_costs_what_the_list_says(
    api: Upstream,
    caller: Asking,
    members: dict[str, Any],
    headers: dict[str, str],
    usage: dict[str, Any],
    micro_usd: int,
) -> None:
    caller.slot = ledger.Slot(concurrent=4, day_micro_usd=9_000_000, ttl_ms=60_000)  # a fetch may find a whole window
    none = caller.post(body_of(**members), headers, clamp=FREE | {"features": []})
    assert (none.status_code, none.json()["error"]["type"]) == (403, "permission_error") and api.messages == []
    answered = message()
    api.answer = as_json(answered | {"usage": answered["usage"] | usage})
    answer = caller.post(body_of(**members), headers, clamp=ALL | {"max_usd": 5})
    assert answer.status_code == 200, answer.text
    (asked,) = api.messages
    assert members.items() <= json.loads(asked.body).items()
    assert caller.booked() == micro_usd


def twice(first: str, last: str) -> bytes:
    return b'{"model": "%s", "max_tokens": 9, "messages": [], "model": "%s"}' % (first.encode(), last.encode())


def test_of_two_models_in_a_body_all_readers_take_the_same(api: Upstream, caller: Asking) -> None:
    assert caller.post(twice(HAIKU, OPUS)).status_code == 403
    # If the API took the first it would answer as a model that the tier does not allow: it is sent one.
    assert caller.post(twice(OPUS, HAIKU)).status_code == 200
    (asked,) = api.messages
    assert asked.body.count(b'"model"') == 1 and json.loads(asked.body)["model"] == HAIKU


def test_what_was_counted_as_a_message_starts_no_run_and_the_reverse(api: Upstream, caller: Asking) -> None:
    for content, kind in ((twice(HAIKU, "claude-code"), "message"), (body_of("claude-code"), "message")):
        answer = caller.post(content, kind=kind)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
    assert caller.post(body_of(), kind="run").status_code == 403
    assert api.messages == []
    # What was counted as a run is read as one: the control, which gets as far as what a run cannot honour.
    named = caller.post(body_of("claude-code", temperature=0.5), kind="run")
    assert named.status_code == 400 and "temperature" in named.json()["error"]["message"]
    assert caller.usage().running == caller.usage(message=False).running == 0


def test_a_client_that_leaves_ends_the_request_at_the_api_and_pays_for_what_was_streamed(
    api: Upstream, caller: Asking
) -> None:
    def endless() -> Iterator[bytes]:
        return events(itertools.repeat("abc"))

    api.answer = as_stream(endless)
    content = body_of(stream=True, max_tokens=1000)
    headers = caller.head(content) | {"x-claude-code-session-id": "s-1", "x-claude-code-agent-id": "a-1"}
    with httpx.stream(
        "POST", f"{caller.invoker.url}{PATH}", content=content, headers=headers, timeout=HANG_S
    ) as answer:
        pieces = answer.iter_raw()
        for _ in range(12):
            next(pieces)
    (asked,) = api.messages
    assert asked.left.wait(HANG_S)
    booked = caller.booked()
    assert in_micro_usd(10) <= booked <= in_micro_usd(1000)
    wait_for(caller.noted, what="the line of the audit log")
    (noted,) = caller.noted()
    assert (noted["end"], noted["session"], noted["agent"], noted["parent_agent"]) == ("left", "s-1", "a-1", None)
    assert round(noted["cost_usd"] * 1_000_000) == booked


def test_who_leaves_before_the_proxy_has_the_request_is_not_forgotten(api: Upstream, caller: Asking) -> None:
    """The proxy reads that he has left by another way than the request itself; what is sent all the same is booked."""
    proxy = proxy_of(caller.invoker)
    proxy.suspend()
    try:
        content = body_of(max_tokens=1000)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{caller.invoker.url}{PATH}", content=content, headers=caller.head(content), timeout=1)
        time.sleep(0.3)  # the invoker has seen it
    finally:
        proxy.resume()
    booked = caller.booked()
    assert booked == (in_micro_usd(3) if api.messages else 0)
    wait_for(caller.noted, what="the line of the audit log")
    assert caller.noted()[0]["end"] == "left"


def test_who_does_not_read_holds_the_api_back_and_has_all_of_it_when_he_reads(api: Upstream, caller: Asking) -> None:
    piece, count, sent = b": " + b"x" * 65_000 + b"\n\n", 400, 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(count):
            yield piece
            sent += 1
        yield from events(["Well."])

    api.answer = as_stream(pieces)
    content = body_of(stream=True)
    with httpx.stream(
        "POST", f"{caller.invoker.url}{PATH}", content=content, headers=caller.head(content), timeout=HANG_S
    ) as answer:
        before = -1
        while before != sent:
            before = sent
            time.sleep(0.3)
        assert sent < count
        came = sum(len(each) for each in answer.iter_raw())
    assert came == count * len(piece) + len(b"".join(events(["Well."])))
    assert caller.booked() == in_micro_usd(1)


@pytest.mark.slow  # an invoker of its own
def test_an_invoker_that_stops_books_what_was_streamed(
    api: Upstream, redis_server: RedisProcess, start_invoker: Callable[..., Invoker]
) -> None:
    invoker = start_invoker(
        trust="attested",
        attestation_key=SECRET,
        redis_url=redis_server.url,
        anthropic_base_url=api.url,
        pool_size=0,
    )
    caller = Asking(invoker, redis_server)

    with begun(api, caller, max_tokens=50_000) as pieces:
        invoker.stop()  # after its grace, for it waits for an answer as it waits for a run
        with pytest.raises(httpx.HTTPError):
            for _ in pieces:
                pass
    assert api.messages[0].left.wait(HANG_S)
    wait_for(lambda: caller.booked() >= in_micro_usd(10), what="what it has cost")
    wait_for(caller.noted, what="the line of the audit log")
    assert caller.noted()[0]["end"] == "left"


def test_a_request_that_the_budget_has_no_room_for_is_refused_and_holds_nothing(
    api: Upstream, invoker: Invoker, redis_server: RedisProcess
) -> None:
    poor = Asking(invoker, redis_server, ledger.Slot(day_micro_usd=20, ttl_ms=60_000))
    refused = poor.post(body_of())
    assert refused.status_code == 403 and "usd_per_day is used up" in refused.json()["error"]["message"]
    assert api.messages == [] and poor.booked() == 0
    rich = Asking(invoker, redis_server, ledger.Slot(day_micro_usd=2_000, ttl_ms=60_000))
    assert rich.post(body_of()).status_code == 200


def test_tokens_are_counted_for_nothing(api: Upstream, caller: Asking) -> None:
    path = f"{PATH}/count_tokens"
    content = body_of(OPUS)
    header = {HEADER: attestation("POST", path, content, sub=caller.subject)}
    answer = httpx.post(f"{caller.invoker.url}{path}", content=content, headers=header, timeout=HANG_S)
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 10})
    assert api.asked[0].headers["x-api-key"] == [KEY] and caller.noted() == []
