"""A request to the Messages API, as far as it says what it may cost: pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Literal

import msgspec

from claude_invoker.metering.prices import Price
from claude_invoker.metering.usage import Used

_MAX_MEMBERS = 1_000_000
"""Of all objects in a body together, by a cheap count that may be too high: each of its own would be an object here."""
_MAX_TOOLS = 4 * 1024 * 1024
_IMAGE_TOKENS = 5_000
"""The most that an image is, whatever its size: https://docs.claude.com/en/docs/build-with-claude/vision."""
_SEARCH_TOKENS = 20_000
"""What the results of one web search add to the input."""
_PRICED_OTHERWISE = ("speed", "inference_geo", "container", "mcp_servers")
"""Members by which a request costs something else than its model's tokens, or runs something at Anthropic."""
_SPELLED = re.compile(rb"\\u00[2-7]")
_SERVER_TOOL = re.compile(r"(web_search|web_fetch|code_execution)_\d{8}$")
_COUNTED = ("model", "system", "messages", "tools", "tool_choice", "thinking")
"""What the API's count of tokens takes."""
_ASSUMED_MAX_TOKENS = 1 << 20


class Refused(Exception):
    """The run may not send this."""


class _Tool(msgspec.Struct):
    type: str | None = None
    max_uses: int | None = None


@dataclass(frozen=True)
class Asked:
    """A body, taken apart only at its first level. Each member is there once: of several of one name the last."""

    members: dict[str, bytes]
    model: str
    max_tokens: int
    searches: int
    """How many web searches the API may make for it."""
    images: int
    size: int
    """Bytes of what the model reads."""
    stream: bool = False
    """Whether the answer is asked for as a stream."""

    def with_max_tokens(self, count: int) -> bytes:
        """The body to send."""
        return replace(self, members=self.members | {"max_tokens": b"%d" % count}).body()

    def body(self) -> bytes:
        """The body to send as it was asked for, with each member once."""
        return msgspec.json.encode({name: msgspec.Raw(value) for name, value in self.members.items()})

    def counted(self) -> bytes:
        """The body that asks the API for the number of input tokens."""
        found = {name: msgspec.Raw(self.members[name]) for name in _COUNTED if name in self.members}
        return msgspec.json.encode(found)

    @property
    def search_tokens(self) -> int:
        return self.searches * _SEARCH_TOKENS

    def input_bound(self, price: Price) -> int:
        """The most input tokens it can have: a token is a byte at least, and no request has more than the window."""
        tokens = self.size + self.images * _IMAGE_TOKENS + self.search_tokens
        if self._is_spelled or b'"document"' in self.members.get("messages", b""):
            tokens = price.context_window  # a page may be a few bytes
        return min(tokens, price.context_window)

    def input_usd_bound(self, price: Price, tokens: int) -> Decimal:
        """The most that so many input tokens can cost, with its searches. US dollars."""
        rates = price.rates(tokens)
        writes = {"none": rates.input, "5m": rates.cache_write_5m, "1h": rates.cache_write_1h}[self._cached_for]
        return rates.cost(Used(web_searches=self.searches)) + tokens * max(rates.input, writes)

    @cached_property
    def _is_spelled(self) -> bool:
        """Whether a letter may be written by its number, which no encoder does: no word could be looked for then."""
        return any(_SPELLED.search(member) for member in self.members.values())

    @cached_property
    def _cached_for(self) -> Literal["none", "5m", "1h"]:
        """The longest time for which the API may be asked to keep input; found once, bodies are megabytes."""

        def mentions(word: bytes) -> bool:
            return any(word in member for member in self.members.values())

        if self._is_spelled:
            return "1h"
        if "cache_control" not in self.members and not mentions(b'"cache_control"'):
            return "none"
        return "1h" if mentions(b'"1h"') else "5m"


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(body: bytes, server_tools: Collection[str] = ()) -> Asked:
    """`server_tools`: the tools of the API's own that the run may use, such as `web_search`. Raises Refused."""
    if body.count(b'":') > _MAX_MEMBERS:
        raise Refused("the request has too many values")
    try:
        members = {name: bytes(value) for name, value in _MEMBERS.decode(body).items()}
        model = msgspec.json.decode(members["model"], type=str)
        max_tokens = msgspec.json.decode(members.get("max_tokens", b"null"), type=int | None)
        raw_tools = members.get("tools", b"null")
        if len(raw_tools) > _MAX_TOOLS:
            raise Refused("the request has too large tools")
        tools = msgspec.json.decode(raw_tools, type=list[_Tool] | None) or []
        tier = msgspec.json.decode(members.get("service_tier", b"null"), type=str | None)
        stream = msgspec.json.decode(members.get("stream", b"null"), type=bool | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise Refused("not a JSON object with a model") from None
    if max_tokens is not None and max_tokens < 1:
        raise Refused("max_tokens is not a number of tokens")
    for name in _PRICED_OTHERWISE:
        if members.get(name, b"null") != b"null":
            raise Refused(f"a run may not send {name}")
    if tier not in (None, "standard_only"):
        raise Refused("a run may not ask for a service tier")
    return Asked(
        members,
        model,
        _ASSUMED_MAX_TOKENS if max_tokens is None else max_tokens,
        _searches(tools, server_tools),
        members.get("messages", b"").count(b'"image"'),
        sum(len(members.get(name, b"")) for name in ("system", "messages", "tools", "tool_choice")),
        bool(stream),
    )


def _searches(tools: list[_Tool], allowed: Collection[str]) -> int:
    count = 0
    for tool in tools:
        found = _SERVER_TOOL.match(tool.type or "")
        if found is None:
            continue
        if found[1] not in allowed:
            raise Refused(f"this run may not use the API's own tool {found[1]}")
        if tool.max_uses is None or not 0 <= tool.max_uses <= 100:
            raise Refused(f"the API's own tool {found[1]} needs max_uses, at most 100")
        count += tool.max_uses
    return count
