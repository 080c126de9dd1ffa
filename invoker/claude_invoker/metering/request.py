"""A request to the Messages API, as far as it says what it may cost: pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import msgspec

from claude_contract.features import of_model
from claude_invoker.metering.allowed import (
    Otherwise,
    Uses,
    check_betas,
    check_members,
    check_tools,
    needs,
    once,
    with_searches,
)
from claude_invoker.metering.allowed import (
    Refused as Refused,
)
from claude_invoker.metering.prices import Price, Prices, Rates
from claude_invoker.metering.usage import Used

_MAX_OTHERS = 10_000
"""Values of names that are not known here, at any depth: each may be an object here, the known ones are not."""
_MAX_TOOLS = 4 * 1024 * 1024
_MAX_PARTS_OF_TOOLS = 200_000
_IMAGE_TOKENS = 5_000
"""The most that an image is, whatever its size: https://docs.claude.com/en/docs/build-with-claude/vision."""
_TOOLS_TOKENS = 1_000
"""What the API says to the model about tools in general, and about each that it describes itself:
https://platform.claude.com/docs/en/about-claude/pricing#tool-use-pricing."""
_SEARCH_TOKENS = 20_000
"""What the results of one web search add to the input."""
_ROUNDS = 10
"""How often the API asks the model again for one request before it pauses the turn (`pause_turn`), where it may use its
tools less often than that: https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons."""
_FEWEST_TOKENS = 16
"""An answer that may not be longer is no answer."""
_FEWEST_THOUGHTS = 1024
"""The API refuses a smaller `budget_tokens`, and one that is not below `max_tokens`."""
_WHITESPACE = b" \t\r\n"
_SPELLED = re.compile(rb"\\u00(?:3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")
"""A letter, digit or underscore that is written by its number, which no encoder does: words could not be looked for."""
_IN_US = Decimal("1.1")
"""By what tokens are dearer with `inference_geo: us`, cached ones too:
https://platform.claude.com/docs/en/manage-claude/data-residency."""
_READ = ("system", "messages", "tools", "tool_choice", "output_config", "output_format")
_COUNTED = ("model", *_READ, "thinking")
"""What the API's count of tokens takes."""
MAX_COUNTED = 1 << 16
"""Bytes of its answer to that which are read: it is a number."""
_ASSUMED_MAX_TOKENS = 1 << 20


class _Large(msgspec.Struct):
    """The members that have many values; they are not taken apart."""

    system: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    output_config: msgspec.Raw = msgspec.Raw()
    output_format: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True)
class Asked:
    """A body, taken apart only at its first level. Each member is there once: of several of one name the last."""

    members: dict[str, bytes]
    model: str
    max_tokens: int
    uses: Uses
    """How often the API may search and fetch for it."""
    images: int
    size: int
    """Bytes of what the model reads."""
    thinking: dict[str, Any] | None
    """Where it says how many tokens of the answer may be thoughts (`budget_tokens`)."""
    long_context: bool
    """Whether it may have more input than its model takes by default."""
    stream: bool
    """Whether the answer is asked for as a stream."""
    otherwise: Otherwise

    def price(self, prices: Prices, otherwise: Otherwise | None = None) -> Price:
        """What its tokens cost. `otherwise`: if it had them so. Raises UnknownPrice."""
        wanted = self.otherwise if otherwise is None else otherwise
        price = prices.fast(self.model) if wanted.fast else prices.price(self.model)
        price = price.long_context() if self.long_context else price
        return price.times(_IN_US) if wanted.in_us else price

    @property
    def names_geo(self) -> bool:
        """Whether it says where it is to be answered, be it anywhere."""
        return self.members.get("inference_geo", b"null") != b"null"

    def kept_in_us(self) -> Asked:
        """The same, of a key whose workspace keeps in the US what does not say where."""
        return self if self.names_geo else replace(self, otherwise=replace(self.otherwise, in_us=True))

    def lowered(self, max_tokens: int, searches: int) -> Asked:
        """With a shorter answer and fewer searches. `max_tokens` is `fewest_tokens` at least, `searches` 1 where there
        are any."""
        members, thinking = dict(self.members), self.thinking
        if max_tokens < self.max_tokens:
            members["max_tokens"] = b"%d" % max_tokens
            if thinking is not None and thinking["budget_tokens"] >= max_tokens:
                thinking = thinking | {"budget_tokens": max_tokens - 1}
                members["thinking"] = msgspec.json.encode(thinking)
        if searches < self.uses.searches:
            members["tools"] = msgspec.json.encode(with_searches(once(members["tools"]), searches))
        uses = replace(self.uses, searches=searches)
        return replace(self, members=members, max_tokens=max_tokens, uses=uses, thinking=thinking)

    def body(self) -> bytes:
        """The body to send, with each member once."""
        return msgspec.json.encode({name: msgspec.Raw(value) for name, value in self.members.items()})

    def counted(self) -> bytes:
        """The body that asks the API for the number of input tokens."""
        found = {name: msgspec.Raw(self.members[name]) for name in _COUNTED if name in self.members}
        return msgspec.json.encode(found)

    @property
    def fewest_tokens(self) -> int:
        """The shortest answer to which it may be lowered."""
        thoughts = 0 if self.thinking is None else _FEWEST_THOUGHTS + 1
        return min(self.max_tokens, max(_FEWEST_TOKENS, thoughts))

    def least_usd(self, price: Price, tokens: int, enough: int = 0) -> Decimal:
        """The most that it can cost if it is lowered as far as it may be, where it has `tokens` of its own; its answer
        not below `enough`, if it asks for as much."""
        searches = min(self.uses.searches, 1)
        fewest = max(self.fewest_tokens, min(enough, self.max_tokens))
        output = fewest * self.output_usd_bound(price, tokens, searches)
        return self.input_usd_bound(price, tokens, searches) + output

    def input_bound(self, price: Price) -> int:
        """The most input tokens it can have when it is first read: a token is a byte at least, and no request has more
        than the window."""
        tools = self.uses.described + (self.members.get("tools", b"null") not in (b"null", b"[]"))
        tokens = self.size + self.images * _IMAGE_TOKENS + tools * _TOOLS_TOKENS
        messages = self.members.get("messages", b"")
        if b'"document"' in messages or b'"file_id"' in messages:
            tokens = price.context_window  # a page may be a few bytes, and a file is not even here
        return min(tokens, price.context_window)

    def read_tokens(self, price: Price, tokens: int, searches: int | None = None) -> int:
        """The most input tokens that it is billed for, where it has `tokens` of its own: after each use of a tool the
        API reads all of it again, with what was found so far. `searches`: if they were so many."""
        uses = (self.uses.searches if searches is None else searches) + self.uses.fetches
        found = price.context_window if self.uses.fetches else _SEARCH_TOKENS
        return sum(
            max(tokens, min(tokens + min(number, uses) * found, price.context_window))
            for number in range(self.again(searches) + 1)
        )

    def again(self, searches: int | None = None) -> int:
        """How often the API may read it again: after each use of its tools, and where the model tries to use them more
        often, which the API refuses, and asks it again. Of a stream that is once: then it is broken off."""
        uses = (self.uses.searches if searches is None else searches) + self.uses.fetches
        if not uses:
            return 0
        return uses + 1 if self.stream else max(uses + 1, _ROUNDS)

    def input_usd_bound(self, price: Price, tokens: int, searches: int | None = None) -> Decimal:
        """The most that its input can cost, with its searches, where it has `tokens` of its own. US dollars."""
        searches = self.uses.searches if searches is None else searches
        read = self.read_tokens(price, tokens, searches)
        rates = price.rates(read)
        return rates.cost(Used(web_searches=searches)) + read * self._input_rate(rates)

    def output_usd_bound(self, price: Price, tokens: int, searches: int | None = None) -> Decimal:
        """The most that a token of the answer can cost: it is read again too. US dollars."""
        searches = self.uses.searches if searches is None else searches
        rates = price.rates(self.read_tokens(price, tokens, searches))
        return rates.output + self.again(searches) * self._input_rate(rates)

    def _input_rate(self, rates: Rates) -> Decimal:
        writes = {"none": rates.input, "5m": rates.cache_write_5m, "1h": rates.cache_write_1h}
        return max(rates.input, writes[self._cached_for])

    @cached_property
    def _cached_for(self) -> Literal["none", "5m", "1h"]:
        """The longest time for which the API may be asked to keep input; found once, bodies are megabytes."""

        def mentions(word: bytes) -> bool:
            return any(word in member for member in self.members.values())

        if "cache_control" not in self.members and not mentions(b'"cache_control"'):
            return "none"
        return "1h" if mentions(b'"1h"') else "5m"


_LARGE = msgspec.json.Decoder(_Large)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(body: bytes, features: Collection[str] = (), betas: Iterable[str] = ()) -> Asked:
    """`features`: what the run may use beside tokens of its models, see `claude_contract.features`. `betas`: the values
    of the header `anthropic-beta`. Raises Refused."""
    long_context = check_betas(betas, features)
    # A backslash before a backslash is text. What is left of `\u` is a number.
    if b"\\u00" in body and _SPELLED.search(body.replace(b"\\\\", b"  ")):
        raise Refused("the request writes letters by their numbers (\\u0061)")
    try:
        members = _members(body)
        otherwise = check_members(members, features)
        model = msgspec.json.decode(members["model"], type=str)
        max_tokens = msgspec.json.decode(members.get("max_tokens", b"null"), type=int | None)
        stream = msgspec.json.decode(members.get("stream", b"null"), type=bool | None)
        uses = check_tools(once(members.get("tools", b"null")), features)
        thinking = once(members.get("thinking", b"null"))
    except (ValueError, RecursionError, KeyError):
        raise Refused("not a JSON object with a model") from None
    if max_tokens is not None and max_tokens < 1:
        raise Refused("max_tokens is not a number of tokens")
    for feature in of_model(model):
        if feature not in features:
            raise Refused(needs(f"the model {model[:100]}", feature))
    has_budget = isinstance(thinking, dict) and type(thinking.get("budget_tokens")) is int
    return Asked(
        members,
        model,
        _ASSUMED_MAX_TOKENS if max_tokens is None else max_tokens,
        uses,
        members.get("messages", b"").count(b'"image"'),
        sum(len(members.get(name, b"")) for name in _READ),
        thinking if has_budget else None,
        long_context,
        bool(stream),
        otherwise,
    )


def _members(body: bytes) -> dict[str, bytes]:
    """Raises Refused, ValueError, RecursionError."""
    large = _LARGE.decode(body)
    known = (large.system, large.messages, large.tools, large.output_config, large.output_format)
    # No member without a colon: of most bodies nothing has to be looked for among texts of megabytes.
    if body.count(b":") > _MAX_OTHERS and _names(body) - sum(_names(bytes(value)) for value in known) > _MAX_OTHERS:
        raise Refused("the request has too many values")
    tools = bytes(large.tools)
    if len(tools) > _MAX_TOOLS or sum(tools.count(part) for part in (b",", b"{", b"[")) > _MAX_PARTS_OF_TOOLS:
        raise Refused("the request has too large tools")
    return {name: bytes(value) for name, value in _MEMBERS.decode(body).items()}


def _names(value: bytes) -> int:
    """How many members the objects in it have, at most; however it is spaced."""
    return value.translate(None, _WHITESPACE).count(b'":')
