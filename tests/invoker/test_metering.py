"""What an answer has used, what that costs, and what a request may cost: the parts without I/O.

Prices here are those of Anthropic's price list, written down by hand: what is tested is not asked for them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from genai_prices import Usage as PublicUsage
from genai_prices import calc_price
from genai_prices.types import ModelPrice, Tier, TieredPrices
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claude_invoker.metering import request
from claude_invoker.metering.account import Account, Exhausted
from claude_invoker.metering.bill import Bill, Reservation, bill
from claude_invoker.metering.bill import heard as billed
from claude_invoker.metering.exchange import NOTED_TOKENS, UNREAD_TOKENS, Sent
from claude_invoker.metering.ownprice import OwnPrice
from claude_invoker.metering.prices import Prices, UnknownPrice, _public_price
from claude_invoker.metering.request import Refused
from claude_invoker.metering.usage import Meter, Used
from tests.support.waiting import HANG_S

PRICES = Prices({"house": OwnPrice(input=Decimal(10), output=Decimal(20), context_window=1000)}, "refuse")
START = {
    "type": "message_start",
    "message": {"model": "claude-haiku-4-5", "usage": {"input_tokens": 12, "output_tokens": 1}},
}


def text(value: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": "text_delta", "text": value}}


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def usage_of_start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"model": "m", "usage": usage}}


@pytest.mark.parametrize(
    ("body", "used"),
    [
        (b"", Used()),
        (stream(START), Used(input=12, output=1)),
        (stream(START, delta(output_tokens=40)), Used(input=12, output=40)),
        # Cut off: what was streamed counts, a token for each three letters begun, for each byte of others.
        (stream(START, text("hello"), text(" you")), Used(input=12, output=3)),
        (stream(START, text("é" * 30)), Used(input=12, output=60)),
        (stream(START, text("abc日本")), Used(input=12, output=7)),
        (stream(START, text("hello"), delta(output_tokens=2)), Used(input=12, output=2)),
        (
            stream(START, {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "x" * 30}}),
            Used(input=12, output=10),
        ),
        (
            stream(
                usage_of_start(
                    input_tokens=1,
                    output_tokens=1,
                    cache_creation_input_tokens=70,
                    cache_read_input_tokens=5,
                    cache_creation={"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
                ),
                delta(output_tokens=9, cache_creation_input_tokens=70, server_tool_use={"web_search_requests": 2}),
            ),
            Used(1, 9, 5, 30, 40, 2),
        ),
        # An API that says only how much was written, not for how long.
        (stream(usage_of_start(input_tokens=1, output_tokens=1, cache_creation_input_tokens=70)), Used(1, 1, 0, 70)),
        # Later figures are totals: those of a server tool's results come at the end.
        (stream(START, delta(input_tokens=5000, output_tokens=9)), Used(5000, 9)),
        (stream(START, {"type": "error", "error": {"type": "overloaded_error"}}), Used(12, 1)),
        (b"data: nonsense\n\n" + stream(START) + b'data: {"type": 7}\n\ndata: [[[', Used(12, 1)),
        (b'data: {"type":"content_block_delta","delta":{"text":"' + b"x" * 5_000_000, Used()),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10**9])
def test_what_a_stream_has_used(body: bytes, used: Used, step: int) -> None:
    if len(body) > 10**6 and step == 1:
        step = 4096
    meter = Meter(stream=True)
    for at in range(0, len(body), step):
        meter.feed(body[at : at + step])
    assert meter.used == used
    assert meter.seen == (used != Used())


@pytest.mark.parametrize(
    ("body", "used"),
    [
        (b'{"model":"m","usage":{"input_tokens":3,"output_tokens":4}}', Used(3, 4)),
        (b'{"model":7,"usage":{"input_tokens":3,"output_tokens":4}}', Used(3, 4)),
        (b'{"type":"error"}', Used()),
        (b'{"usage":null}', Used()),
        (b'{"usage":{"output_tokens":4}}', Used(output=4)),
        (b"[" * 100_000, Used()),
        (b"", Used()),
    ],
)
def test_what_an_answer_in_one_piece_has_used(body: bytes, used: Used) -> None:
    meter = Meter(stream=False)
    meter.feed(body[:5])
    meter.feed(body[5:])
    meter.end()
    assert (meter.used, meter.seen) == (used, used != Used())


@given(st.binary(max_size=300), st.booleans())
def test_no_answer_is_an_error(body: bytes, is_stream: bool) -> None:
    meter = Meter(stream=is_stream)
    meter.feed(b"data: " + body + b"\n")
    meter.end()
    assert meter.used.all_input >= 0


TEXTS = st.text(st.characters() | st.sampled_from('\x00"\\é漢😀'), max_size=20)
DELTAS = st.dictionaries(
    st.sampled_from(["type", "text", "partial_json", "thinking", "id", "more"]),
    st.sampled_from(["text_delta", "input_json_delta", "thinking_delta", "signature_delta"]) | TEXTS | st.none(),
)
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["content_block_delta", "content_block_start", "ping"])},
    optional={"index": st.integers(0, 1 << 70) | st.none(), "delta": DELTAS | st.none(), "content_block": DELTAS},
)


@given(
    st.lists(EVENTS | DELTAS.map(lambda each: {"type": "content_block_delta", "index": 0, "delta": each})), st.data()
)
def test_what_is_read_shortly_counts_as_what_is_read_at_length(
    given: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Most events are pieces of text, and read by their one form; any other form of them counts the same."""
    body = stream(START, TEXT, *given)
    at = data.draw(st.integers(0, len(body)))
    shortly, at_length = Meter(stream=True, bound=Used(10**6, 10**6)), Meter(stream=True, bound=Used(10**6, 10**6))
    at_length._take = at_length._take_any  # type: ignore[method-assign]
    for meter in (shortly, at_length):
        meter.feed(body[:at])
        meter.feed(body[at:])
    assert (shortly.used, shortly.most, shortly.again) == (at_length.used, at_length.most, at_length.again)


MTOK = 1_000_000
AUTUMN = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("model", "used", "usd"),
    [
        ("claude-haiku-4-5", Used(input=MTOK), "1"),
        ("claude-haiku-4-5-20251001", Used(output=MTOK), "5"),
        ("claude-opus-5-5", Used(input=MTOK), "4"),
        ("claude-opus-5-5", Used(output=1), "0.00002"),
        ("claude-sonnet-4-5", Used(cache_read=100_000), "0.03"),
        ("claude-sonnet-4-5", Used(cache_write_5m=100_000), "0.375"),
        ("claude-sonnet-4-5", Used(cache_write_1h=100_000), "0.6"),
        # Beyond 200,000 tokens of input, cached ones included, all of the request is dearer.
        ("claude-sonnet-4-5", Used(input=200_000), "0.6"),
        ("claude-sonnet-4-5", Used(input=200_000, cache_read=1, output=100), "1.2022506"),
        ("claude-haiku-4-5", Used(web_searches=3), "0.03"),
        ("claude-opus-4-20250514", Used(input=MTOK), "15"),
        ("house", Used(input=MTOK, cache_read=MTOK, cache_write_5m=MTOK, cache_write_1h=MTOK), "43.5"),
    ],
)
def test_prices(model: str, used: Used, usd: str) -> None:
    assert PRICES.price(model, AUTUMN).cost(used) == Decimal(usd)


@pytest.mark.parametrize(
    "model", ["gpt-4", "claude-opus-4-6-fast", "claude-haiku-4-5-x", "claude-opus-99", "opus", "", "house-2"]
)
def test_a_model_without_a_price(model: str) -> None:
    with pytest.raises(UnknownPrice, match="INVOKER_PRICES"):
        PRICES.price(model)
    dearest = Prices({}, "dearest").price(model).cost(Used(output=MTOK))
    assert dearest >= 75


TIERED = TieredPrices(base=Decimal(1), tiers=[Tier(start=100, price=Decimal(3)), Tier(start=200, price=Decimal(5))])
LISTED: list[tuple[dict[str, Any], list[tuple[Used, str]] | None]] = [
    # The prices of a model in the list → US dollars for what was used, or none where they are not known.
    ({}, None),
    ({"input_mtok": Decimal(1)}, None),
    ({"output_mtok": Decimal(1)}, None),
    ({"input_mtok": Decimal(0), "output_mtok": Decimal(0)}, [(Used(MTOK, MTOK, MTOK, MTOK, MTOK), "0")]),
    (
        {"input_mtok": Decimal(10), "output_mtok": Decimal(20)},
        [
            (Used(input=MTOK), "10"),
            (Used(output=MTOK), "20"),
            (Used(cache_read=MTOK), "1"),
            (Used(cache_write_5m=MTOK), "12.5"),
            (Used(cache_write_1h=MTOK), "20"),
            (Used(web_searches=1000), "10"),
        ],
    ),
    (
        {
            **{"input_mtok": Decimal(10), "output_mtok": Decimal(20), "cache_read_mtok": Decimal(2)},
            **{"cache_write_mtok": Decimal(3), "cache_write_1h_mtok": Decimal(4), "web_searches_kcount": Decimal(5)},
        },
        [(Used(cache_read=MTOK, cache_write_5m=MTOK, cache_write_1h=MTOK, web_searches=1000), "14")],
    ),
    (
        {"input_mtok": TIERED, "output_mtok": Decimal(0)},
        [(Used(input=100), "0.0001"), (Used(input=101), "0.000303"), (Used(200), "0.0006"), (Used(201), "0.001005")],
    ),
    ({"input_mtok": Decimal(0), "output_mtok": TIERED}, [(Used(100, 10), "0.00001"), (Used(101, 10), "0.00003")]),
]


@pytest.mark.parametrize(("listed", "costs"), LISTED)
def test_prices_as_the_list_has_them(listed: dict[str, Any], costs: list[tuple[Used, str]] | None) -> None:
    """Where it does not say what input and output cost that is not nothing: no price is known."""
    found = _public_price(ModelPrice(**listed), 1234)
    assert (None if found is None else [str(found.cost(used).normalize()) for used, _ in costs or ()]) == (
        None if costs is None else [str(Decimal(usd).normalize()) for _, usd in costs]
    )
    for window, most in ((1234, 1234), (None, 1_000_000)):
        price = _public_price(ModelPrice(**listed), window)
        assert price is None or price.context_window == most


RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "web_search")


@pytest.mark.parametrize("name", RATES)
def test_a_price_of_the_operators_is_what_is_billed_and_may_be_nothing(name: str) -> None:
    given = dict.fromkeys(RATES, Decimal(0))
    own = OwnPrice.model_validate(given | {name: Decimal("0.5")})
    price = Prices({"house": own}, "refuse").price("house")
    used = Used(**dict.fromkeys(RATES[:5], 1000), web_searches=1000)
    assert price.cost(used) == Decimal("0.5") / (1 if name == "web_search" else 1000)
    with pytest.raises(ValidationError):
        OwnPrice.model_validate(given | {name: Decimal("-0.1")})


def test_an_operators_price_is_of_a_window_of_a_token_at_least() -> None:
    given = {"input": Decimal(1), "output": Decimal(1)}
    assert OwnPrice.model_validate(given | {"context_window": 1}).context_window == 1
    for wrong in ({"context_window": 0}, {"cache": 1}):
        with pytest.raises(ValidationError):
            OwnPrice.model_validate(given | wrong)


KNOWN = sorted(model.id for model in PRICES._public.models if "claude-v1" not in model.id and model.id != "claude-2")
TOKENS = st.integers(0, 400_000)


@given(st.sampled_from(KNOWN), TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 10**6))
def test_the_public_list_agrees(model: str, fresh: int, read: int, short: int, long: int, output: int) -> None:
    ours = PRICES.price(model, AUTUMN).cost(Used(fresh, output, read, short, long))
    usage = PublicUsage(
        input_tokens=fresh + read + short + long,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=short + long,
        cache_write_1h_tokens=long,
    )
    theirs = calc_price(usage, model_ref=model, provider_id="anthropic", genai_request_timestamp=AUTUMN)
    assert ours == theirs.total_price


BODY: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"speed": "fast"}, "may not use speed: its tier's api_features do not name fast_mode"),
        ({"inference_geo": "us"}, "may not use inference_geo: "),
        ({"container": {"id": "x"}}, "may not have container"),
        ({"mcp_servers": [{"type": "url"}]}, "may not have mcp_servers"),
        ({"service_tier": "batch"}, "service tier"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "tool code_execution"),
        ({"tools": [{"type": "web_fetch_20250910", "max_uses": 1}]}, "tool web_fetch"),
        ({"tools": [{"type": "web_search_20250305"}]}, "needs max_uses"),
        ({"tools": [{"type": "web_search_20250305", "max_uses": 101}]}, "needs max_uses"),
        ({"tools": [{"type": "web_search_20250305", "max_uses": -1}]}, "needs max_uses"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "not a JSON object"),
        ({"max_tokens": "9"}, "not a JSON object"),
        ({"tools": "x"}, "not a JSON object"),
        ({"model": None}, "not a JSON object"),
    ],
)
def test_requests_that_cost_something_else_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        request.read(json.dumps(BODY | change).encode(), {"web_search"})


@pytest.mark.parametrize(
    "change",
    [
        {"speed": None, "service_tier": "standard_only", "tools": None},
        {"tools": [{"name": "Bash", "input_schema": {}}, {"type": "custom", "name": "x"}, {"type": "bash_20250124"}]},
        {"whatever": {"comes": ["next"]}},
        {"tools": [{"type": "web_search_20250305", "max_uses": 8}]},
    ],
)
def test_requests_that_pass(change: dict[str, Any]) -> None:
    body = BODY | change
    asked = request.read(json.dumps(body).encode(), {"web_search"})
    assert json.loads(asked.body()) == body
    assert json.loads(asked.lowered(7, asked.uses.searches).body()) == body | {"max_tokens": 7}
    with_search = any("web_search" in str(tool) for tool in body.get("tools") or [])
    assert asked.uses.searches == (8 if with_search else 0)
    if with_search:
        with pytest.raises(Refused, match="web_search"):
            request.read(json.dumps(body).encode())


def test_a_member_that_is_there_twice_is_sent_once() -> None:
    """Which of them the API takes is its own matter: it gets the one that was looked at."""
    asked = request.read(b'{"model":"claude-opus-5-5","max_tokens":9,"model":"claude-haiku-4-5"}')
    assert asked.model == "claude-haiku-4-5"
    assert asked.body().count(b"model") == 1


def bound(change: dict[str, Any], model: str = "claude-haiku-4-5") -> int:
    return request.read(json.dumps(BODY | change).encode(), {"web_search"}).input_bound(PRICES.price(model))


def test_the_bound_of_the_input() -> None:
    plain = bound({})
    assert len("hi") <= plain < 100
    assert bound({"system": "x" * 1000}) - plain == len('"' + "x" * 1000 + '"')
    image = {"type": "image", "source": {"type": "url", "url": "https://x"}}
    assert bound({"messages": [{"role": "user", "content": [image]}]}) > 5000
    for block in ({"type": "document", "source": {"type": "base64", "data": "x"}}, {"source": {"file_id": "x"}}):
        assert bound({"messages": [{"role": "user", "content": [block]}]}) == 200_000
    assert bound({"system": "x" * 10**6}) == 200_000
    assert bound({"system": "x" * 10**6}, "house") == 1000


@pytest.mark.parametrize(
    ("system", "usd"),
    [
        ("x", "10"),
        ([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], "12.5"),
        ([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}], "20"),
    ],
)
def test_input_is_bounded_at_what_it_may_be_billed_as(system: Any, usd: str) -> None:
    asked = request.read(json.dumps(BODY | {"system": system}).encode())
    assert asked.input_usd_bound(PRICES.price("house"), MTOK) == Decimal(usd)


def asked_for(max_tokens: int) -> request.Asked:
    return request.read(msgspec.json.encode({"model": "house", "max_tokens": max_tokens}))


def test_an_answer_is_shortened_to_what_is_left() -> None:
    house = PRICES.price("house")
    account = Account(PRICES, Decimal("0.01"))  # 10 USD for a million in, 20 out
    first = account.reserve(asked_for(200), house, 100)
    assert (first.max_tokens, first.usd) == (200, Decimal("0.005"))
    second = account.reserve(asked_for(64_000), house, 100)
    assert (second.max_tokens, account.left_usd) == (200, Decimal(0))
    with pytest.raises(Exhausted):
        account.reserve(asked_for(1), house, 0)
    for _ in range(2):  # once, however often it is called
        account.settle(second, Bill(Decimal("0.0025"), Decimal("0.0025")))
    account.settle(first, Bill(most_usd=first.usd))
    assert (account.spent_usd, account.reserved_usd, account.left_usd) == (
        Decimal("0.0025"),
        Decimal(0),
        Decimal("0.0025"),
    )
    assert account.under_way == 0


def test_what_the_ledger_has_taken_is_what_was_drawn_and_what_others_may_have_cost() -> None:
    account = Account(PRICES, Decimal(1))
    first, second = (account.reserve(asked_for(100), PRICES.price("house"), 100) for _ in range(2))
    assert (account.has_drawn, account.drawn_usd, account.under_way) == (False, Decimal(0), 2)
    second.is_drawn = True
    assert (account.has_drawn, account.drawn_usd) == (True, second.usd)
    account.settle(first, Bill(Decimal(0), Decimal("0.5")))
    assert (account.has_drawn, account.drawn_usd) == (True, second.usd + Decimal("0.5"))
    account.settle(second, Bill())
    assert (account.has_drawn, account.drawn_usd) == (False, Decimal("0.5"))


def test_what_costs_nothing_needs_no_budget() -> None:
    free = Prices({"house": OwnPrice(input=Decimal(0), output=Decimal(0))}, "refuse")
    account = Account(free, Decimal(0))
    reservation = account.reserve(asked_for(200), free.price("house"), 100)
    assert reservation.max_tokens == 200 and reservation.usd == account.left_usd == 0
    with pytest.raises(Exhausted):
        Account(PRICES, Decimal(0)).reserve(asked_for(200), PRICES.price("house"), 0)


def test_an_answer_of_any_length_is_bounded_by_the_budget_alone() -> None:
    asked = request.read(b'{"model": "house"}')
    assert asked.max_tokens == 1 << 20
    reservation = Account(PRICES, Decimal("0.01")).reserve(asked, PRICES.price("house"), 100)
    assert json.loads(reservation.asked.body()) == {"model": "house", "max_tokens": 450}


async def test_a_request_waits_for_what_others_do_not_use() -> None:
    """Subagents ask at the same time: each reserves more than it uses."""
    house = PRICES.price("house")
    account = Account(PRICES, Decimal("0.01"))
    assert not await account.others_settled()
    first = account.reserve(asked_for(64_000), house, 100)
    assert not account.suffices(asked_for(100), house, 100)
    waiting = asyncio.create_task(account.others_settled())
    await asyncio.sleep(0)
    assert not waiting.done()
    account.settle(first, Bill())
    assert await waiting
    assert account.suffices(asked_for(100), house, 100)
    assert account.reserve(asked_for(100), house, 100).max_tokens == 100
    assert not await account.settled(0.01)


async def test_an_account_is_settled_when_all_its_requests_are() -> None:
    house, account = PRICES.price("house"), Account(PRICES, Decimal("0.01"))
    assert await account.settled(HANG_S) is True
    reservations = [account.reserve(asked_for(100), house, 0) for _ in range(2)]
    waiting = asyncio.create_task(account.settled(HANG_S))
    for reservation in reservations:
        for _ in range(5):  # whoever is to hear of the one before has its turn
            await asyncio.sleep(0)
        assert not waiting.done()
        account.settle(reservation, Bill())
    assert await waiting is True


@given(st.data())
def test_no_interleaving_spends_more_than_the_cap(data: st.DataObject) -> None:
    """Requests that begin and end in any order, each of which uses at most what it may."""
    house = PRICES.price("house")
    account = Account(PRICES, Decimal(data.draw(st.integers(0, 40_000))) / MTOK)
    under_way: list[tuple[Reservation, int]] = []
    billed = Decimal(0)
    for _ in range(data.draw(st.integers(0, 30))):
        if data.draw(st.booleans()) and under_way:
            reservation, tokens = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            used = Used(data.draw(st.integers(0, tokens)), data.draw(st.integers(0, reservation.max_tokens)))
            known = data.draw(st.booleans())
            cost = house.cost(used)
            account.settle(reservation, Bill(cost, cost) if known else Bill(most_usd=reservation.usd))
            billed += cost
        else:
            tokens = data.draw(st.integers(0, 1000))
            try:
                under_way.append((account.reserve(asked_for(data.draw(st.integers(1, 1000))), house, tokens), tokens))
            except Exhausted:
                assert account.exhausted
        assert account.left_usd >= 0
        assert billed <= account.cap_usd
        assert account.reserved_usd == sum(reservation.usd for reservation, _ in under_way)


def heard(*events: dict[str, Any]) -> Meter:
    meter = Meter(stream=True, bound=Used(1000, 100))
    meter.feed(stream(*events))
    return meter


RESERVED = Reservation(  # 1,000 in, 100 out
    PRICES.price("house"),
    PRICES,
    Decimal("0.0120"),
    Decimal("0.0100"),
    request.read(b'{"model": "house", "max_tokens": 100}'),
    Used(1000, 100),
)
TEXT = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
THOUGHT = {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}


@pytest.mark.parametrize(
    ("meter", "ending", "status", "is_stream", "usd", "most_usd"),
    [
        # 10 USD for a million tokens in, 20 out; the API has counted 12 in.
        (heard(START, delta(output_tokens=9)), "complete", 200, True, "0.0003", "0.0003"),
        (heard(START, delta(output_tokens=9)), "left", 200, True, "0.0003", "0.0003"),
        (heard(START, TEXT, text("x" * 30)), "left", 200, True, "0.00032", "0.00072"),
        (heard(START, TEXT, text("x" * 30)), "failed", 200, True, "0.00032", "0.00072"),
        (heard(START, text("x" * 900)), "left", 200, True, "0.00212", "0.00212"),  # no more than it may have
        (heard(START, THOUGHT, text("x" * 3)), "left", 200, True, "0.00014", "0.00212"),  # that need not be shown
        (heard(), "left", None, True, "0.01", "0.012"),  # a stream begins with its start: nothing is out yet
        (heard(), "left", 200, True, "0.01", "0.012"),
        (heard(), "left", None, False, "0.012", "0.012"),
        (heard(), "complete", 200, False, "0.012", "0.012"),  # an answer without a count
        (heard(), "complete", 529, True, "0", "0"),
        (heard(), "left", 429, True, "0", "0"),
        (heard(START), "complete", 500, True, "0.00014", "0.00212"),
        (heard(), "failed", None, True, "0", "0.012"),
        (heard(), "failed", 200, True, "0", "0.012"),
        (heard(), "not sent", None, True, "0", "0"),
    ],
)
def test_what_a_request_is_billed_however_it_ends(
    meter: Meter, ending: Any, status: int | None, is_stream: bool, usd: str, most_usd: str
) -> None:
    found = bill(RESERVED, meter, ending, status, stream=is_stream)
    assert (found.usd, found.most_usd) == (Decimal(usd), Decimal(most_usd))


@given(st.lists(st.integers(0, 900), max_size=40))
def test_what_is_written_down_on_the_way_is_never_less_than_what_has_passed(letters: list[int]) -> None:
    """Nor more than it by what may lie unread; whoever is killed in between is billed by the last line."""
    reserved = replace(RESERVED, bound=Used(1000, 100_000))
    sent, lines = Sent(reserved, True, Meter(stream=True, bound=reserved.bound), number=1), list[Decimal]()
    for each in (START, TEXT, *(text("x" * count) for count in letters)):
        sent.meter.feed(stream(each))
        if sent.is_news():
            lines.append(sent.cut_off_usd)
        passed = sent.meter.used
        assert billed(reserved, sent.meter, passed) <= lines[-1]
        assert lines[-1] <= billed(reserved, sent.meter, passed + Used(output=UNREAD_TOKENS))
    assert len(lines) <= 2 + sum(letters) // (3 * NOTED_TOKENS - 3), "and not at every piece"
