"""What changes the price of a request, or runs something at Anthropic: each way to it that somebody has found.

Bodies are as the API's reference of November 2026 has them. Prices are literals from Anthropic's list.
"""

from __future__ import annotations

import json
import logging
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.features import FEATURES
from claude_invoker.metering import allowed, models, request
from claude_invoker.metering.account import Account, Exhausted
from claude_invoker.metering.bill import bill
from claude_invoker.metering.ownprice import OwnPrice
from claude_invoker.metering.prices import Prices, UnknownPrice
from claude_invoker.metering.request import Asked, Refused
from claude_invoker.metering.usage import Meter, Used

PRICES = Prices({"house": OwnPrice(input=Decimal(10), output=Decimal(20))}, "refuse")
OPUS = "claude-opus-5-5"
BODY: dict[str, Any] = {"model": OPUS, "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
BOUND = Used(input=5000, output=900, web_searches=3)


def read(body: dict[str, Any] | bytes, *tools: str, betas: tuple[str, ...] = ()) -> Asked:
    return request.read(body if isinstance(body, bytes) else json.dumps(body).encode(), tools, betas)


def events(*values: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in values)


def start(**usage: Any) -> dict[str, Any]:
    usage = {"input_tokens": 40, "output_tokens": 1} | usage
    return {"type": "message_start", "message": {"model": OPUS, "usage": usage}}


def block(**block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": 0, "content_block": block}


def delta(**delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": delta}


STOP = {"type": "content_block_stop", "index": 0}


def metered(answer: bytes, *, stream: bool = True, end: bool = False, bound: Used = BOUND) -> Meter:
    meter = Meter(stream=stream, bound=bound)
    meter.feed(answer)
    if end:
        meter.end()
    return meter


# A stream that is cut off


@pytest.mark.parametrize(
    ("body", "billed", "held"),
    [
        # Nothing is shown yet: it may be thinking.
        ((start(),), 1, 900),
        ((start(), block(type="thinking", thinking="", signature="")), 1, 900),
        ((start(), block(type="thinking"), delta(type="signature_delta", signature="A" * 300)), 100, 900),
        ((start(), block(type="thinking"), delta(type="signature_delta", signature="A" * 30_000)), 900, 900),
        ((start(), block(type="redacted_thinking", data="A" * 300)), 100, 900),
        ((start(), block(type="thinking"), delta(type="thinking_delta", thinking="x" * 30)), 10, 900),
        ((start(), delta(type="thinking_delta", thinking="x" * 30), block(type="text"), delta(text="x")), 11, 900),
        ((start(), block(type="text"), delta(type="signature_delta", signature="x" * 30)), 10, 900),
        # A kind of block that is not known, or a line that cannot be read, may hide something too.
        ((start(), block(type="riddle"), block(type="text"), delta(text="x" * 30)), 10, 900),
        # All that was put out is shown: a token is a byte at least.
        ((start(), block(type="text", text=""), delta(type="text_delta", text="x" * 30)), 10, 30),
        ((start(), block(type="tool_use", id="toolu_01", name="abc"), delta(partial_json="x" * 30)), 11, 33),
        # Between two blocks it may be thinking again.
        ((start(), block(type="text"), delta(text="x" * 30), STOP), 10, 900),
    ],
)
def test_a_stream_that_is_cut_off(body: tuple[dict[str, Any], ...], billed: int, held: int) -> None:
    meter = metered(events(*body), bound=Used(input=5000, output=900))
    assert (meter.used, meter.most) == (Used(40, billed), Used(40, held))


def test_a_search_in_a_stream_that_is_cut_off() -> None:
    meter = metered(events(start(), block(type="server_tool_use", name="web_search"), STOP))
    assert (meter.used.web_searches, meter.most) == (1, BOUND), "its input is read again, how often was not said"


def test_an_answer_that_was_counted_is_held_at_nothing_more() -> None:
    end = {"type": "message_delta", "usage": {"output_tokens": 700}}
    meter = metered(events(start(), block(type="thinking"), end))
    assert meter.used == meter.most == Used(40, 700)


@pytest.mark.parametrize("weakened", [False, True])
def test_thinking_that_is_cut_off_does_not_pass_the_wall(weakened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are left while the model thinks: 31,000 tokens each that nobody has counted."""
    if weakened:
        monkeypatch.setattr(Meter, "most", Meter.used)
    account = Account(PRICES, Decimal(1))
    asked = read(BODY | {"max_tokens": 32_000, "thinking": {"type": "enabled", "budget_tokens": 31_000}})
    price, charged = PRICES.price(OPUS), Decimal(0)
    for _ in range(200):
        try:
            reservation = account.reserve(asked, price, asked.input_bound(price))
        except Exhausted:
            break
        meter = metered(events(start(), block(type="thinking", thinking="")), bound=reservation.bound)
        account.settle(reservation, bill(reservation, meter, "left", 200, stream=True))
        charged += (reservation.max_tokens - 1) * Decimal("0.00002")
    assert (charged > 1) == weakened
    assert account.spent_usd < Decimal("0.1"), "billed is what was seen"


# What else a request may have in it


@pytest.mark.parametrize(
    "kind",
    [
        "advisor_20260301", "web_search_latest", "web_search", "tool_search_tool_bm25_20251119", "mcp_toolset",
        "code_execution", "code_execution_20250825", "bash_code_execution_20250825", "web_search_20250305_x",
        "x_web_search_20250305", "WEB_SEARCH_20250305", "Bash_20250124", "browser_toolset_20260801", "", "function",
        "web_search_20250305\n", 7, ["custom"], {}, False,
    ],
)  # fmt: skip
def test_a_tool_that_is_not_listed_is_refused_by_its_name(kind: Any) -> None:
    body = BODY | {"tools": [{"type": kind, "name": "x", "max_uses": 1, "allowed_callers": ["direct"]}]}
    with pytest.raises(Refused, match="may not use the API's own tool") as refused:
        read(body, "web_search", "web_fetch")
    assert not isinstance(kind, str) or kind in str(refused.value)


@given(st.text(max_size=40))
def test_no_other_type_of_tool_passes(kind: str) -> None:
    try:
        read(BODY | {"tools": [{"type": kind, "name": "x"}]})
    except Refused:
        return
    assert kind == "custom" or kind.rpartition("_")[0] in ("bash", "text_editor", "computer", "memory")


@pytest.mark.parametrize(
    "kind",
    [
        None, "custom", "bash_20241022", "bash_20250124", "text_editor_20241022", "text_editor_20250728",
        "computer_20250124", "computer_20251124", "memory_20250818",
    ],
)  # fmt: skip
def test_tools_that_the_caller_runs_pass(kind: str | None) -> None:
    asked, price = read(BODY | {"tools": [{"type": kind, "name": "x"}]}), PRICES.price(OPUS)
    described = kind not in (None, "custom")
    assert asked.uses == allowed.Uses(described=int(described))
    # The API tells the model about them in words of its own: up to some 750 tokens for 40 bytes.
    assert asked.input_bound(price) - read(BODY).input_bound(price) > (2000 if described else 1000)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "web_search_20260318"}, "runs code at Anthropic"),
        ({"allowed_callers": ["direct", "code_execution_20260120"]}, "runs code at Anthropic"),
        ({"allowed_callers": None}, "runs code at Anthropic"),
        ({"max_uses": None}, "needs max_uses"),
        ({"max_uses": 0}, "needs max_uses"),
        ({"max_uses": 101}, "needs max_uses"),
        ({"max_uses": 5.0}, "needs max_uses"),
        ({"max_uses": True}, "needs max_uses"),
    ],
)
def test_searches_are_bounded(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read(BODY | {"tools": [SEARCH | change]}, "web_search")
    with pytest.raises(Refused, match="twice"):
        read(BODY | {"tools": [SEARCH, SEARCH]}, "web_search")


MEMBERS: list[tuple[str, Any]] = [
    ("speed", "fast"), ("fast_mode", True), ("inference_geo", "us"), ("container", "x"), ("mcp_servers", [{}]),
    ("fallbacks", "default"), ("fallbacks", [{"model": "claude-fable-5"}]), ("fallback_credit_token", "x"),
    ("compaction", {"type": "summarize"}), ("billing_policy", {"bill_to": "user_profile"}),
    ("thread", {"type": "continue", "previous_message_id": "x"}), ("service_tier", "batch"), ("service_tier", ["auto"]),
    ("context_management", {"edits": [{"type": "compact_20260112"}]}), ("context_management", {"edits": [{}]}),
    ("context_management", {"edits": {"type": "compact_20260112"}}), ("context_management", "compact_20260112"),
    ("context_management", {"edits": [{"type": "clear_thinking_20251015"}, {"type": "new_20270101"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MEMBERS)
def test_a_member_that_changes_the_price_is_refused(name: str, value: Any) -> None:
    with pytest.raises(Refused, match="the request may not"):
        read(BODY | {name: value})


@pytest.mark.parametrize(
    "members",
    [
        # The API's names are case-sensitive: these it does not know, and what it does not know does nothing.
        {"Speed": "fast"},
        {"SERVICE_TIER": "auto"},
        {"whatever": {"comes": ["next"]}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"context_management": {"edits": None}},
        {"context_management": None, "service_tier": None, "speed": None},
        {"service_tier": "auto"},  # what it is without the member
    ],
)
def test_other_members_pass(members: dict[str, Any]) -> None:
    assert json.loads(read(BODY | members).body()) == BODY | members


def test_a_tool_that_is_defined_in_a_message_is_refused() -> None:
    definition = {"type": "tool_definition", "definition": {"type": "advisor_20260301", "model": "claude-fable-5"}}
    content: list[Any] = [{"type": "tool_addition", "tool": definition}]
    with pytest.raises(Refused, match="define tools only in tools"):
        read(BODY | {"messages": [{"role": "user", "content": content}]})
    content = [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "Bash"}}]
    content.append({"type": "text", "text": json.dumps(definition)})
    read(BODY | {"messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize(
    "beta",
    [
        "fast-mode-2026-02-01", "advisor-tool-2026-03-01", "mcp-client-2025-11-20", "code-execution-2025-05-22",
        "compact-2026-01-12", "inline-tools-2026-09-15", "message-threads-2026-08-12", "skills-2025-10-02", "user-profiles-billing-2026-10-01",
        "Fast-Mode-2027-01-01",
    ],
)  # fmt: skip
def test_a_beta_that_changes_the_price_is_refused(beta: str) -> None:
    for betas in ((beta,), (f"claude-code-20250219, {beta}",), ("claude-code-20250219", f"x,{beta},y")):
        with pytest.raises(Refused, match="may not use the beta"):
            read(BODY, betas=betas)


def test_other_betas_pass() -> None:
    """What the CLI sends, and what is not known."""
    known = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,effort-2025-11-24"
    after_refusal = "fallback-credit-2026-06-01,server-side-fallback-2026-07-01"
    more = "mid-conversation-tool-changes-2026-07-01,advanced-tool-use-2025-11-20,comes-next-2027-01-01"
    assert not read(BODY, betas=(known, more, after_refusal)).long_context


@pytest.mark.parametrize(
    ("model", "usd"),
    [
        ("claude-opus-5-5", "4.0"),  # a million tokens are its default, without another price
        ("claude-sonnet-4-5", "6.0"),  # the list has a step
        ("claude-sonnet-4-0", "6.0"),  # it has none: twice the price
    ],
)
def test_a_long_context_is_bounded_at_its_price(model: str, usd: str) -> None:
    body = BODY | {"model": model, "system": "x" * 2_000_000}
    asked = read(body, "context_1m", betas=("context-1m-2025-08-07",))
    assert asked.long_context and asked.price(PRICES) == PRICES.price(model).long_context()
    price = PRICES.price(model).long_context()
    assert asked.input_bound(price) == 1_000_000
    assert asked.input_usd_bound(price, 1_000_000) == Decimal(usd)


# What a tier may allow

OF_FEATURES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("fast_mode", {"speed": "fast"}, ()),
    ("fast_mode", {"speed": "standard"}, ()),
    ("fast_mode", {}, ("fast-mode-2026-02-01",)),
    ("inference_geo", {"inference_geo": "us"}, ()),
    ("inference_geo", {"inference_geo": "global"}, ()),
    ("context_1m", {}, ("context-1m-2025-08-07",)),
    ("context_1m", {}, ("a, Context-1M-2025-08-07",)),
    ("web_search", {"tools": [SEARCH]}, ()),
    ("web_fetch", {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 2}]}, ()),
]


@pytest.mark.parametrize(("feature", "members", "betas"), OF_FEATURES)
def test_what_a_feature_allows_needs_that_feature(
    feature: str, members: dict[str, Any], betas: tuple[str, ...]
) -> None:
    others = [name for name in FEATURES if name != feature]
    with pytest.raises(Refused, match="the request may not"):
        read(BODY | members, *others, betas=betas)
    assert json.loads(read(BODY | members, feature, betas=betas).body()) == BODY | members


@pytest.mark.parametrize(
    "members",
    [
        {"speed": "fastest"}, {"speed": ["fast"]}, {"speed": True}, {"speed": "FAST"}, {"speed": {}},
        {"inference_geo": "eu"}, {"inference_geo": ["us"]}, {"inference_geo": ""}, {"inference_geo": "US"},
        {"fast_mode": True}, {"container": "x"}, {"mcp_servers": [{}]}, {"fallbacks": "default"},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
    ],
)  # fmt: skip
def test_what_has_no_known_price_is_refused_whatever_the_tier_allows(members: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        read(BODY | members, *FEATURES)


def test_of_a_member_that_is_there_twice_the_one_that_is_sent_decides() -> None:
    body = json.dumps(BODY)[:-1] + ', "speed": "standard", "speed": "fast", "inference_geo": "us"}'
    asked = read(body.encode(), *FEATURES)
    assert asked.otherwise == allowed.Otherwise(fast=True, in_us=True)
    assert json.loads(asked.body())["speed"] == "fast" and asked.body().count(b'"speed"') == 1


# US dollars for a million tokens: Opus 5.5 by Anthropic's list, in fast mode by the operator's own price.
FAST = Prices({f"{OPUS}-fast": OwnPrice(input=Decimal(8), output=Decimal(40))}, "refuse")
TOKENS = {"input_tokens": 1_000, "output_tokens": 500, "cache_read_input_tokens": 20_000}
USUAL_USD = (1_000 * Decimal(4) + 500 * Decimal(20) + 20_000 * Decimal("0.2")) / 1_000_000
FAST_USD = (1_000 * Decimal(8) + 500 * Decimal(40) + 20_000 * Decimal("0.8")) / 1_000_000


@pytest.mark.parametrize(
    ("members", "said", "usd"),
    [
        ({}, {}, USUAL_USD),
        ({}, {"speed": "standard", "inference_geo": "global", "service_tier": "priority"}, USUAL_USD),
        ({"speed": "fast"}, {"speed": "fast"}, FAST_USD),
        ({"speed": "fast"}, {}, FAST_USD),  # it does not say: the dearer
        ({"speed": "fast"}, {"speed": "of tomorrow"}, FAST_USD),
        ({"speed": "fast"}, {"speed": "standard"}, USUAL_USD),
        ({"inference_geo": "us"}, {"inference_geo": "us"}, USUAL_USD * Decimal("1.1")),
        ({"inference_geo": "us"}, {}, USUAL_USD * Decimal("1.1")),
        ({"inference_geo": "us"}, {"inference_geo": "global"}, USUAL_USD),
        ({}, {"inference_geo": "us"}, USUAL_USD * Decimal("1.1")),  # as the key's workspace has it
        ({}, {"inference_geo": "not_available"}, USUAL_USD),
        ({}, {"inference_geo": 7, "speed": ["fast"]}, USUAL_USD),
        ({}, {"speed": "fast"}, FAST_USD),
        ({"speed": "fast", "inference_geo": "us"}, {"speed": "fast", "inference_geo": "us"}, FAST_USD * Decimal("1.1")),
        ({"speed": "fast", "inference_geo": "us"}, {"speed": "standard"}, USUAL_USD * Decimal("1.1")),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_costs_what_it_says_that_it_was(
    members: dict[str, Any], said: dict[str, Any], usd: Decimal, stream: bool
) -> None:
    asked = read(BODY | {"system": "x" * 30_000} | members, *FEATURES)
    reservation = Account(FAST, Decimal(10)).reserve(asked, asked.price(FAST), 30_000)
    usage = TOKENS | said
    if stream:
        answer = events(start(**usage), {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 500}})
    else:
        answer = json.dumps({"model": OPUS, "usage": usage}).encode()
    found = bill(reservation, metered(answer, stream=stream, end=True), "complete", 200, stream=stream)
    assert found.usd == found.most_usd == usd
    if not set(said).difference(members) or "us" not in said.values():
        assert found.usd <= reservation.usd


def test_fast_mode_has_no_price_but_the_operators_own() -> None:
    asked = read(BODY | {"speed": "fast"}, "fast_mode")
    for prices in (PRICES, Prices({}, "dearest")):
        with pytest.raises(UnknownPrice, match=f"set one for {OPUS}-fast in INVOKER_PRICES"):
            asked.price(prices)
    dated = read(BODY | {"model": f"{OPUS}-20260922", "speed": "fast"}, "fast_mode")
    assert dated.price(FAST).rates(0).output * 1_000_000 == 40
    # Unasked, and without a price: by the usual one.
    usual = read(BODY)
    reservation = Account(PRICES, Decimal(1)).reserve(usual, usual.price(PRICES), 100)
    answer = json.dumps({"model": OPUS, "usage": {"input_tokens": 10, "output_tokens": 10, "speed": "fast"}}).encode()
    assert bill(reservation, metered(answer, stream=False, end=True), "complete", 200, stream=False).usd == Decimal(
        "0.00024"
    )
    answer = answer.replace(b'"fast"', b'"fast","inference_geo":"us"')
    assert bill(reservation, metered(answer, stream=False, end=True), "complete", 200, stream=False).usd == Decimal(
        "0.000264"
    ), "by all of it that has a price"


@pytest.mark.parametrize(
    "model", [f"{OPUS}-fast", f"{OPUS}-FAST", f"{OPUS}-20260922-fast", f"{OPUS}-fast-20260922", f"{OPUS}-fast-latest"]
)
def test_a_feature_is_not_reached_by_the_name_of_a_model(model: str) -> None:
    """The operator's price of fast mode is there for other tiers, and `opus` allows the whole family."""
    others = [name for name in FEATURES if name != "fast_mode"]
    assert models.permits(("opus",), model)
    with pytest.raises(Refused, match=f"the model {model}: its tier's api_features do not name fast_mode"):
        read(BODY | {"model": model}, *others)
    assert read(BODY | {"model": model}, "fast_mode").model == model
    assert read(BODY | {"model": f"{OPUS}-breakfast"}).model, "it is only the beginning of another name"
    with pytest.raises(Refused, match="context_1m"):
        read(BODY | {"model": "claude-sonnet-4-5[1m]"})


def test_a_workspace_that_keeps_to_the_us_is_reserved_at_its_price() -> None:
    """Once it is known: what the API says of itself was always billed, and passed the wall by a tenth."""
    plain, anywhere = read(BODY), read(BODY | {"inference_geo": "global"}, *FEATURES)
    price = plain.kept_in_us().price(PRICES)
    assert price.rates(0).output == PRICES.price(OPUS).rates(0).output * Decimal("1.1")
    assert anywhere.kept_in_us() == anywhere, "it asks for what it is to have"
    for said, usd in (({"inference_geo": "us"}, "1.1"), ({}, "1.1"), ({"inference_geo": "not_available"}, "1")):
        reservation = Account(PRICES, Decimal(1)).reserve(plain.kept_in_us(), price, 1000)
        answer = json.dumps({"model": OPUS, "usage": TOKENS | said}).encode()
        found = bill(reservation, metered(answer, stream=False, end=True), "complete", 200, stream=False)
        assert found.usd == USUAL_USD * Decimal(usd)


# One after another


def test_the_input_is_read_again_after_each_search() -> None:
    account, house = Account(PRICES, Decimal(100)), PRICES.price("house")
    asked = read(BODY | {"max_tokens": 1000, "tools": [SEARCH], "stream": True}, "web_search")
    # 1,000 of its own, ten times, and 20,000 for each search that was made before: 10,000 + 20,000 * (36 + 8): after a
    # ninth, which the API refuses, the model is asked once more.
    assert asked.read_tokens(house, 1000) == 890_000
    reservation = account.reserve(asked, house, 1000)
    # 890,000 * 10 / 1e6, 8 searches of 0.01, and 1,000 tokens at 20 that are read nine times at 10.
    assert reservation.usd == Decimal("8.90") + Decimal("0.08") + Decimal("0.11")
    assert reservation.bound == Used(899_000, 1000, web_searches=8)
    assert house.cost(reservation.bound) == reservation.usd


def test_an_answer_in_one_piece_may_be_asked_for_again_as_often_as_the_api_does() -> None:
    """Nobody sees how often the model tries to search more than it may."""
    asked = read(BODY | {"tools": [SEARCH | {"max_uses": 2}]}, "web_search")
    # Eleven times 1,000, and the results of one search once, of two nine times.
    assert asked.read_tokens(PRICES.price("house"), 1000) == 11_000 + 20_000 + 9 * 40_000
    assert read(BODY | {"tools": [SEARCH | {"max_uses": 30}]}, "web_search").again() == 31
    assert read(BODY).again() == 0


FOUND = block(type="web_search_tool_result", tool_use_id="srvtoolu_01", content=[])
LOOK = block(type="server_tool_use", name="web_search")


@pytest.mark.parametrize(
    ("blocks", "again"),
    [
        ((LOOK, STOP, FOUND, STOP, block(type="text"), STOP), 1),
        ((LOOK, STOP, LOOK, STOP, FOUND, STOP, FOUND, STOP, block(type="text")), 1),  # two at once
        ((LOOK, STOP, FOUND, STOP, LOOK, STOP, FOUND, STOP, LOOK), 2),
        ((LOOK, STOP, FOUND, STOP, block(type="thinking"), STOP, LOOK, STOP, FOUND), 1),
        ((block(type="text"), STOP, block(type="tool_use", name="x"), STOP), 0),
    ],
)
def test_how_often_the_model_was_asked_again_is_seen_in_its_stream(blocks: tuple[Any, ...], again: int) -> None:
    assert metered(events(start(), *blocks)).again == again


@pytest.mark.parametrize(("cap", "searches"), [("2", 3), ("1.5", 2), ("0.5", 1)])
def test_as_many_searches_are_left_as_the_budget_has(cap: str, searches: int) -> None:
    asked = read(BODY | {"max_tokens": 1000, "tools": [SEARCH], "stream": True}, "web_search")
    reservation = Account(PRICES, Decimal(cap)).reserve(asked, PRICES.price("house"), 1000)
    assert (reservation.asked.uses.searches, reservation.max_tokens) == (searches, 1000)


def test_searches_are_lowered_to_what_is_left() -> None:
    account, house = Account(PRICES, Decimal("1.5")), PRICES.price("house")
    asked = read(BODY | {"max_tokens": 1000, "tools": [{"name": "x"}, SEARCH], "stream": True}, "web_search")
    reservation = account.reserve(asked, house, 1000)
    # Three searches read 5,000 + 180,000 tokens: 1.85. Two read 4,000 + 100,000.
    assert json.loads(reservation.asked.body())["tools"] == [{"name": "x"}, SEARCH | {"max_uses": 2}]
    assert reservation.usd == Decimal("1.04") + Decimal("0.02") + Decimal("0.05")
    with pytest.raises(Exhausted):
        Account(PRICES, Decimal("0.4")).reserve(asked, house, 1000)


def test_a_fetch_is_bounded_by_the_window() -> None:
    fetch = {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 2}
    asked = read(BODY | {"tools": [fetch], "stream": True}, "web_fetch")
    assert asked.uses == allowed.Uses(fetches=2, described=1)
    assert asked.read_tokens(PRICES.price("claude-haiku-4-5"), 1000) == 1000 + 3 * 200_000


@pytest.mark.parametrize(
    ("cap", "max_tokens", "budget"),
    [("2", 32_000, 31_000), ("0.5", 25_000, 24_999), ("0.0206", 1030, 1029), ("0.0205", 1025, 1024), ("0.0204", 0, 0)],
)
def test_thinking_stays_below_a_lowered_answer(cap: str, max_tokens: int, budget: int) -> None:
    """The API refuses a request that may think more than it may say, or less than 1,024 tokens."""
    account, house = Account(PRICES, Decimal(cap)), PRICES.price("house")
    thinking = {"type": "enabled", "budget_tokens": 31_000, "display": "omitted"}
    asked = read(BODY | {"max_tokens": 32_000, "thinking": thinking})
    if not max_tokens:
        with pytest.raises(Exhausted):
            account.reserve(asked, house, 0)
        return
    sent = json.loads(account.reserve(asked, house, 0).asked.body())
    assert (sent["max_tokens"], sent["thinking"]) == (max_tokens, thinking | {"budget_tokens": budget})


@given(st.integers(1, 40_000), st.integers(0, 40_000), st.integers(0, 10**6))
def test_what_is_sent_may_think_less_than_it_may_say(max_tokens: int, budget: int, micro_usd: int) -> None:
    asked = read(BODY | {"max_tokens": max_tokens, "thinking": {"type": "enabled", "budget_tokens": budget}})
    account = Account(PRICES, Decimal(micro_usd) / 1_000_000)
    try:
        reservation = account.reserve(asked, PRICES.price("house"), 0)
    except Exhausted:
        return
    sent = json.loads(reservation.asked.body())
    assert reservation.usd <= account.cap_usd
    if sent["max_tokens"] < max_tokens:
        assert sent["thinking"]["budget_tokens"] == min(budget, sent["max_tokens"] - 1)
        assert sent["max_tokens"] > 1024


THINKS = {"type": "enabled", "budget_tokens": 31_000}


@pytest.mark.parametrize(
    ("members", "enough", "fewest", "searches"),
    [
        ({"max_tokens": 8}, 0, 8, 0),
        ({"max_tokens": 32_000}, 0, 16, 0),
        ({"max_tokens": 32_000}, 8192, 8192, 0),
        ({"max_tokens": 900}, 8192, 900, 0),
        ({"max_tokens": 32_000, "thinking": THINKS}, 0, 1025, 0),
        ({"max_tokens": 32_000, "tools": [SEARCH]}, 0, 16, 1),
        ({"max_tokens": 32_000, "tools": [SEARCH | {"max_uses": 1}]}, 8192, 8192, 1),
    ],
)
def test_the_least_that_a_request_costs_is_what_it_costs_when_it_is_lowered(
    members: dict[str, Any], enough: int, fewest: int, searches: int
) -> None:
    """By it a budget is asked for; what is lowered to it has to fit into what is granted."""
    asked, house = read(BODY | members, "web_search"), PRICES.price("house")
    least = asked.least_usd(house, 1000, enough)
    lowered = asked.lowered(fewest, searches)
    assert (lowered.max_tokens, lowered.uses.searches) == (fewest, searches)
    assert least == lowered.input_usd_bound(house, 1000) + fewest * lowered.output_usd_bound(house, 1000)
    if not searches:
        assert least == (1000 * Decimal(10) + fewest * Decimal(20)) / 1_000_000
    assert least <= Account(PRICES, Decimal(100)).reserve(asked, house, 1000).usd


def test_the_api_counts_what_the_model_reads_and_nothing_else() -> None:
    read_members = {
        **{"system": "s", "tools": [{"name": "x"}], "tool_choice": {"type": "auto"}},
        **{"output_config": {"effort": "low"}, "output_format": {"type": "text"}, "thinking": THINKS},
    }
    counted = json.loads(read(BODY | read_members | {"metadata": {}, "stream": True, "temperature": 1}).counted())
    assert counted == {name: value for name, value in BODY.items() if name != "max_tokens"} | read_members


# Bodies that are written in another way

PLAIN = '{"model":"claude-opus-5-5","max_tokens":10,"messages":[],%s}'


@pytest.mark.parametrize(
    "more",
    [
        '"tools":[{"type":"web_search_20250305","type":null,"name":"web_search"}]',
        '"tools":[{"type":null,"name":"web_search","type":"custom"}]',
        '"tools":[{"name":"x","input_schema":{"a":1,"a":2}}]',
        '"thinking":{"type":"enabled","budget_tokens":1024,"budget_tokens":31000}',
        '"context_management":{"edits":[{"type":"compact_20260112","type":"clear_thinking_20251015"}]}',
        '"context_management":{"edits":[{"type":"compact_20260112"}],"edits":[]}',
    ],
)
def test_a_member_that_is_there_twice_where_it_decides_the_price_is_refused(more: str) -> None:
    with pytest.raises(Refused, match="twice"):
        read((PLAIN % more).encode())


@pytest.mark.parametrize(
    "more",
    [
        '"sp\\u0065ed":"fast"',
        '"tools":[{"\\u0074ype":"web_search_20250305","name":"web_search"}]',
        '"tools":[{"type":"web\\u005Fsearch_20250305","name":"web_search"}]',
        '"system":[{"type":"text","text":"\\\\\\u0061"}]',
    ],
)
def test_letters_that_are_written_by_their_numbers_are_refused(more: str) -> None:
    with pytest.raises(Refused, match="by their numbers"):
        read((PLAIN % more).encode())


@given(st.text())
def test_no_text_is_taken_for_letters_that_are_written_by_their_numbers(text: str) -> None:
    for each in (text, text + "\\u0061", "\\\\u0061" + text):
        for is_ascii in (True, False):
            body = json.dumps(BODY | {"system": each}, ensure_ascii=is_ascii)
            read(body.encode(errors="replace"))


@pytest.mark.parametrize(
    ("spacing", "weakened"), [(b"", False), (b" ", False), (b"\n", False), (b"\t \r", False), (b" ", True)]
)
def test_members_are_bounded_however_they_are_spaced(
    spacing: bytes, weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.8 million members in 30 MB were 457 MB. The control reads them."""
    if weakened:
        monkeypatch.setattr(request, "_MAX_OTHERS", 10**9)
    body = b"{" + b",".join(b'"%x"%b:1' % (number, spacing) for number in range(200_000)) + b"}"
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="not a JSON object with a model" if weakened else "too many values"):
            request.read(body)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (most > 5 * len(body)) == weakened, most


@pytest.mark.parametrize("tool", ['{"a":{}}', "{}", "[]", "1", '""'])
def test_tools_are_bounded_however_they_are_written(tool: str) -> None:
    tools = ",".join([tool] * 210_000)
    with pytest.raises(Refused, match="too large tools"):
        read((PLAIN % f'"tools":[{tools}]').encode())


def test_each_bound_of_a_body_is_what_it_may_have_and_no_more() -> None:
    members = BODY | {str(number): 1 for number in range(10_000 - len(BODY))}
    members["messages"] = [{"a": 1}] * 20_000  # which are not taken apart
    assert read(members).model == OPUS
    with pytest.raises(Refused, match="too many values"):
        read(members | {"more": 1})
    for tools, more in (([1] * 200_000, [1]), (["x" * (4 * 1024 * 1024 - 4)], ["x" * (4 * 1024 * 1024 - 3)])):
        texts = [json.dumps(each, separators=(",", ":")) for each in (tools, more if len(tools) == 1 else tools + more)]
        for text, says in zip(texts, ("not a JSON object", "too large tools"), strict=True):
            with pytest.raises(Refused, match=says):
                read((PLAIN % f'"tools":{text}').encode())
    for name in ("thinking", "service_tier"):
        for size, why in ((65_536, None if name == "thinking" else "may not ask for"), (65_537, "too large a")):
            body = (PLAIN % f'"{name}":"{"x" * (size - 2)}"').encode()
            if why is None:
                read(body)
                continue
            with pytest.raises(Refused, match=why):
                read(body)


@pytest.mark.parametrize("name", ["thinking", "context_management", "service_tier", "speed", "inference_geo"])
@pytest.mark.parametrize("weakened", [False, True])
def test_settings_are_bounded(name: str, weakened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken apart, 32 MB of lists are 860 MB and seconds of the process through which all runs ask."""
    if weakened:
        monkeypatch.setattr(allowed, "_MAX_SETTING", 1 << 30)
    body = json.dumps(BODY)[:-1].encode() + b', "%b": [%b1]}' % (name.encode(), b"[]," * 200_000)
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=None if weakened else "too large a"):
            read(body, *FEATURES)
            raise Refused  # of thinking nothing is looked for
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (taken > 10 * len(body)) == weakened, taken


def test_the_schema_of_the_answer_is_input_too() -> None:
    schema = {"type": "json_schema", "schema": {"description": "x" * 5000}}
    for more in ({"output_format": schema}, {"output_config": {"format": schema}}):
        assert read(BODY | more).input_bound(PRICES.price(OPUS)) > 5000


# What the API says


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        ({"input_tokens": 10, "output_tokens": 5.0}, Used(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5.5}, Used(10, 900)),
        ({"input_tokens": 10, "output_tokens": -5}, Used(10, 900)),
        ({"input_tokens": 10, "output_tokens": "5"}, Used(10, 900)),
        ({"input_tokens": 10, "output_tokens": True}, Used(10, 900)),
        ({"input_tokens": [], "output_tokens": 5}, Used(5000, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": {}}, Used(10, 5, 5000)),
        ({"input_tokens": 10, "output_tokens": 5, "cache_creation": None, "service_tier": 7}, Used(10, 5)),
        # How long it was written for is not known: for an hour, which is dearer.
        (
            {"input_tokens": 10, "output_tokens": 5, "cache_creation": [], "cache_creation_input_tokens": 70},
            Used(10, 5, 0, 0, 70),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "cache_creation": 7}, Used(10, 5, 0, 0, 5000)),
        # What its parts say, and whatever the total has beyond them.
        *(
            (
                {
                    **{"input_tokens": 1, "output_tokens": 5, "cache_creation_input_tokens": total},
                    "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
                },
                Used(1, 5, 0, short, 40),
            )
            for total, short in ((None, 30), (60, 30), (70, 30), (75, 35))
        ),
        (
            {"input_tokens": 1, "output_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": "x"}},
            Used(1, 5, 0, 0, 5000),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "server_tool_use": 2}, Used(10, 5, web_searches=3)),
        (
            {"input_tokens": 1, "output_tokens": 5, "server_tool_use": {"web_search_requests": 1.0}},
            Used(1, 5, 0, 0, 0, 1),
        ),
        # More than any request has: it would be more than a ledger counts in, and a budget of years.
        ({"input_tokens": 10**25, "output_tokens": 1e300}, Used(5000, 900)),
        ({"input_tokens": 1_000_000_000, "output_tokens": 1_000_000_001}, Used(1_000_000_000, 900)),
        ({"input_tokens": 10, "output_tokens": 5, "cache_creation_input_tokens": 2**63}, Used(10, 5, 0, 5000)),
        ([], Used(5000, 900)),
        ("x", Used(5000, 900)),
        ({"input_tokens": 10, "output_tokens": 5, "iterations": 7}, Used(5010, 905)),
        ({"input_tokens": 10, "output_tokens": 5, "iterations": [7]}, Used(5010, 905)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_usage_is_read_field_by_field(usage: Any, used: Used, stream: bool) -> None:
    if stream:
        answer = events({"type": "message_start", "message": {"model": 7}}, {"type": "message_delta", "usage": usage})
    else:
        answer = json.dumps({"model": None, "usage": usage}).encode()
    meter = metered(answer, stream=stream, end=True)
    assert (sum(meter.beside.values(), meter.used), meter.seen) == (used, True)


def test_a_usage_that_cannot_be_read_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    metered(b'{"usage":{"output_tokens":"secret","cache_creation":["secret"]}}', stream=False, end=True)
    assert "output_tokens" in caplog.text and "cache_creation" in caplog.text
    assert "secret" not in caplog.text


ITERATIONS = [
    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
    {"type": "message", "input_tokens": 10, "output_tokens": 5},
    {"type": "advisor_message", "model": "claude-fable-5", "input_tokens": 100_000, "output_tokens": 9000},
]


@pytest.mark.parametrize("stream", [False, True])
def test_every_iteration_is_counted(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """No request may ask for them; if there are any all the same, they are billed and logged."""
    caplog.set_level(logging.WARNING)
    usage = {"input_tokens": 10, "output_tokens": 5, "iterations": ITERATIONS}
    end = {"type": "message_delta", "usage": usage}
    answer = events(start(input_tokens=10), end, end) if stream else json.dumps({"usage": usage}).encode()
    meter = metered(answer, stream=stream, end=True)
    assert meter.used == Used(10, 5)
    assert meter.beside == {"": Used(180_000, 3500), "claude-fable-5": Used(100_000, 9000)}
    assert "'advisor_message' of 'claude-fable-5'" in caplog.text
    reservation = Account(PRICES, Decimal(9)).reserve(read(BODY), PRICES.price(OPUS), 5000)
    final = bill(reservation, meter, "complete", 200, stream=stream)
    # Of Opus 5.5 4 and 20 dollars a million, of Fable 5 10 and 50.
    own, compaction, advice = "0.00014", "0.79", "1.45"
    assert final.usd == final.most_usd == Decimal(own) + Decimal(compaction) + Decimal(advice)
    assert (final.used, final.beside) == (meter.used, meter.beside)


def test_a_model_that_nobody_asked_for_and_nobody_knows_is_billed_as_the_dearest() -> None:
    """It has been used: to refuse it is too late."""
    advice = {"type": "advisor_message", "model": "claude-next-9", "input_tokens": 0, "output_tokens": 1000}
    answer = json.dumps({"usage": {"input_tokens": 0, "output_tokens": 0, "iterations": [advice]}}).encode()
    reservation = Account(PRICES, Decimal(9)).reserve(read(BODY), PRICES.price(OPUS), 5000)
    dearest = Prices({}, "dearest").price("claude-next-9").cost(Used(output=1000))
    assert bill(reservation, metered(answer, stream=False, end=True), "complete", 200, stream=False).usd == dearest
    assert dearest > PRICES.price(OPUS).cost(Used(output=1000))


def test_what_others_have_used_makes_no_request_long() -> None:
    """Beyond 200,000 tokens of input a request is dearer; an advisor's are not its own."""
    advice = {"type": "advisor_message", "model": "claude-sonnet-4-5", "input_tokens": 150_000, "output_tokens": 0}
    usage = {"input_tokens": 150_000, "output_tokens": 0, "iterations": [advice]}
    sonnet = PRICES.price("claude-sonnet-4-5")
    reservation = Account(PRICES, Decimal(9)).reserve(read(BODY | {"model": "claude-sonnet-4-5"}), sonnet, 150_000)
    meter = metered(json.dumps({"usage": usage}).encode(), stream=False, end=True)
    assert bill(reservation, meter, "complete", 200, stream=False).usd == Decimal("0.90")


def test_iterations_of_the_message_are_not_counted_twice() -> None:
    reading = {"type": "message", "input_tokens": 50, "output_tokens": 20}
    usage = {"input_tokens": 100, "output_tokens": 40, "iterations": [reading, reading]}
    for change in ({}, {"input_tokens": 50, "output_tokens": 20}):
        answer = json.dumps({"usage": usage | change}).encode()
        assert metered(answer, stream=False, end=True).used == Used(100, 40)
