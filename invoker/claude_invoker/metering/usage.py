"""What one answer of the Messages API has used, read off the answer on its way: pure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

_log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 3
"""Of ASCII that was streamed before an answer broke off, which the API has not counted for us: rather too many tokens.
A byte of any other letter is one."""
_MOST = 1_000_000_000
"""Of one figure. No request has as much, and a larger one would be beyond what ledgers count in."""
_MAX_LINE = 4 * 1024 * 1024
_MAX_BODY = 64 * 1024 * 1024
_SHOWN = ("text", "tool_use", "server_tool_use")
"""Blocks of which all that the model has put out is streamed. Thoughts may be left out, shortened or encrypted."""
_NOT_PUT_OUT = ("type", "id", "tool_use_id")
_INCLUDED = ("message", "fallback_message")
"""Iterations whose tokens are in the totals of `usage`. Those of others (`compaction`, `advisor_message`) are not, and
are billed at their own model's price: https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool."""


class Used(msgspec.Struct, frozen=True):
    """Tokens, and searches that the API made. `input` has none of the cached ones in it."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_write_5m + other.cache_write_5m,
            self.cache_write_1h + other.cache_write_1h,
            self.web_searches + other.web_searches,
        )

    def __or__(self, other: Used) -> Used:
        """The larger of each."""
        return Used(
            max(self.input, other.input),
            max(self.output, other.output),
            max(self.cache_read, other.cache_read),
            max(self.cache_write_5m, other.cache_write_5m),
            max(self.cache_write_1h, other.cache_write_1h),
            max(self.web_searches, other.web_searches),
        )

    @property
    def cache_write(self) -> int:
        return self.cache_write_5m + self.cache_write_1h

    @property
    def all_input(self) -> int:
        return self.input + self.cache_read + self.cache_write


_NOTHING = Used()
ByModel = Mapping[str, Used]
"""What models have used, by name; "": of an iteration that names none, the request's own."""


class _Message(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    delta: msgspec.Raw = msgspec.Raw()
    content_block: msgspec.Raw = msgspec.Raw()


class _Text(msgspec.Struct, tag_field="type", tag="text_delta", forbid_unknown_fields=True):
    text: str


class _Input(msgspec.Struct, tag_field="type", tag="input_json_delta", forbid_unknown_fields=True):
    partial_json: str


class _Put(msgspec.Struct, tag_field="type", tag="content_block_delta", forbid_unknown_fields=True):
    """Nearly all events of a stream. One that has anything else in it is read as any other."""

    delta: _Text | _Input
    index: int = 0


_PUT = msgspec.json.Decoder(_Put)
_EVENT = msgspec.json.Decoder(_Event)
_MESSAGE = msgspec.json.Decoder(_Message)


_UNREADABLE: dict[str, Any] = {"input_tokens": (), "output_tokens": ()}


class _Usage:
    """https://platform.claude.com/docs/en/api/messages, `usage`. In a stream's `message_delta` each figure is the total
    so far, and those that have not changed may be missing. A figure that cannot be read counts at its bound: the
    others are read all the same."""

    def __init__(self, value: object, bound: Used) -> None:
        self._bound = bound
        self._values = value if isinstance(value, dict) else _UNREADABLE

    def used(self, before: Used) -> Used:
        """The totals, where before they were `before`; without the iterations that are not in them."""
        inside = (
            _Usage(each, self._bound).used(_NOTHING) for kind, each in self._each_iteration() if kind in _INCLUDED
        )
        return before | self._totals(before) | sum(inside, _NOTHING)

    @property
    def beside(self) -> ByModel:
        """What iterations have used that are not in the totals."""
        found: dict[str, Used] = {}
        for kind, each in self._each_iteration():
            if kind not in _INCLUDED:
                name = each.get("model") if isinstance(each, dict) else None
                model = name if isinstance(name, str) else ""
                _log.warning("the API has used a model beside the request's: %.50r of %.100r", kind, name)
                found[model] = found.get(model, _NOTHING) + _Usage(each, self._bound).used(_NOTHING)
        if not isinstance(self._values.get("iterations"), list | None):
            _log.warning("the API's usage has iterations that cannot be read: counted at their bound")
            found[""] = replace(self._bound, web_searches=0)
        return found

    @property
    def has_output(self) -> bool:
        return self._values.get("output_tokens") is not None

    def _totals(self, before: Used) -> Used:
        short, long = self._writes(before)
        tools = self._part("server_tool_use")
        bound = self._bound
        return Used(
            _number(self._values, "input_tokens", bound.input) or 0,
            _number(self._values, "output_tokens", bound.output) or 0,
            _number(self._values, "cache_read_input_tokens", bound.input) or 0,
            short,
            long,
            bound.web_searches if tools is None else _number(tools, "web_search_requests", bound.web_searches) or 0,
        )

    def _writes(self, before: Used) -> tuple[int, int]:
        """Tokens written to the cache for five minutes, and for an hour."""
        total = _number(self._values, "cache_creation_input_tokens", self._bound.input)
        parts = self._part("cache_creation")
        if parts is None:
            return 0, self._bound.input if total is None else total  # for how long is not known: the dearer
        if not parts:
            # What is in neither was written for five minutes, as it was before there was another time.
            return max(0, (total or 0) - before.cache_write_1h), before.cache_write_1h
        long = _number(parts, "ephemeral_1h_input_tokens", self._bound.input) or 0
        short = _number(parts, "ephemeral_5m_input_tokens", self._bound.input) or 0
        return max(short, (total or 0) - long), long

    def _part(self, name: str) -> dict[str, Any] | None:
        """None where it is there and cannot be read."""
        part = self._values.get(name)
        if part is None or isinstance(part, dict):
            return part or {}
        _log.warning("the API's usage has a %s that cannot be read: counted at its bound", name)
        return None

    def _each_iteration(self) -> Iterator[tuple[object, object]]:
        """Its kind, and what it has used."""
        found = self._values.get("iterations")
        for each in found if isinstance(found, list) else []:
            yield (each.get("type") if isinstance(each, dict) else None), each


def _number(values: dict[str, Any], name: str, bound: int) -> int | None:
    """None where it is not there."""
    value = values.get(name)
    if value is None:
        return None
    if type(value) in (int, float) and 0 <= value <= _MOST and value == int(value):
        return int(value)
    _log.warning("the API's usage has %s that are no number, or none that can be: counted as %d", name, bound)
    return bound


def _text(values: dict[str, Any], name: str, before: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else before


_ANYTHING = Used(output=1 << 20)


class Meter:
    """Reads the body of one answer as it passes, piece by piece.

    `used` is what it has used so far, however the answer ends, to the best of our knowledge; `most` what it may have
    used; `beside` what is in neither; `model` the model that answered, empty while unknown. Never raises: what cannot
    be read of a usage counts at its bound.
    """

    def __init__(self, *, stream: bool, bound: Used = _ANYTHING) -> None:
        """`bound`: the most that the request may use."""
        self._stream = stream
        self._bound = bound
        self._rest = bytearray()
        self._overlong = False
        self._counted = Used()
        self._beside: dict[str, Used] = {}
        self._thirds = 0
        """Of a token, put out."""
        self._bytes = 0
        self.others = 0
        """Events that were no piece of text or of a tool's input."""
        self._searches = 0
        self._has_found = False
        """Whether what one of the API's tools has found came last."""
        self.again = 0
        """How often the model was asked again after that."""
        self._is_shown = False
        """Whether a block is being put out of which all is streamed, as all before it was."""
        self._was_hidden = False
        self._is_counted = False
        """Whether the API has said how much it has put out."""
        self.seen = False
        """Whether it has said anything about usage."""
        self.speed = ""
        self.geo = ""
        """How fast and where the API says that it has answered (`speed`, `inference_geo`); empty while it does not."""
        self.model = ""

    @property
    def beside(self) -> ByModel:
        """What it has used beside `used`, by other models, or before the model had the request."""
        return self._beside

    @property
    def is_counted(self) -> bool:
        """Whether the API has said how much it has put out."""
        return self._is_counted

    @property
    def put_out(self) -> int:
        """Tokens that were streamed, by their letters."""
        return -(-self._thirds // _BYTES_PER_TOKEN)

    @property
    def used(self) -> Used:
        if self._is_counted or not self.seen:
            return self._counted
        output = min(self.put_out, self._bound.output)
        searches = min(self._searches, self._bound.web_searches)
        return self._counted | Used(output=output, web_searches=searches)

    @property
    def most(self) -> Used:
        """Of an answer that is cut off: a token for each byte, or all that it may have where some of it may not have
        been shown, be it only because nothing was shown yet."""
        if self._is_counted or not self.seen:
            return self._counted
        shown = self._is_shown and not self._was_hidden
        most = Used(output=min(self._bytes, self._bound.output) if shown else self._bound.output)
        if self._bound.web_searches:
            most = replace(most, input=self._bound.input, web_searches=self._bound.web_searches)
        return self.used | most

    def feed(self, chunk: bytes) -> None:
        self._rest += chunk
        if not self._stream:
            if len(self._rest) > _MAX_BODY:
                self._rest.clear()
            return
        if b"\n" in chunk:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if not self._overlong and line.startswith(b"data:"):
                    self._take(line[5:])
                self._overlong = False
        if len(self._rest) > _MAX_LINE:
            self._put_out(self._rest.decode(errors="replace"))
            self._was_hidden = True
            self._overlong = True
            self._rest.clear()

    def end(self) -> None:
        """The answer is complete."""
        if self._stream:
            self.feed(b"\n")
            return
        self._message(bytes(self._rest))
        self._is_counted = self.seen

    def _take(self, data: bytearray) -> None:
        try:
            delta = _PUT.decode(data).delta
        except (ValueError, RecursionError):
            self._take_any(data)
        else:
            self._put_out(delta.text if isinstance(delta, _Text) else delta.partial_json)

    def _take_any(self, data: bytearray) -> None:
        self.others += 1
        try:
            event = _EVENT.decode(data)
        except (ValueError, RecursionError):
            self._was_hidden = True
            return
        kind = _value(event.type)
        if kind == "message_start":
            self._message(event.message)
        elif kind == "message_delta":
            self._count(event.usage)
        elif kind == "content_block_start":
            self._begin(_value(event.content_block))
        elif kind == "content_block_delta":
            self._strings(_value(event.delta))
        elif kind == "content_block_stop":
            self._is_shown = False

    def _message(self, data: bytes | msgspec.Raw) -> None:
        try:
            message = _MESSAGE.decode(data)
        except (ValueError, RecursionError):
            return
        model = _value(message.model)
        self.model = model if isinstance(model, str) else ""
        self._count(message.usage, final=False)

    def _begin(self, block: object) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        self._is_shown = kind in _SHOWN
        has_found = str(kind).endswith("_tool_result")
        self.again += self._has_found and not has_found
        self._has_found = has_found
        self._was_hidden |= not self._is_shown and not has_found
        self._searches += isinstance(block, dict) and kind == "server_tool_use" and block.get("name") == "web_search"
        self._strings(block)

    def _strings(self, part: object) -> None:
        if not isinstance(part, dict):
            return
        if part.get("type") in ("thinking_delta", "signature_delta"):
            self._was_hidden = True
        for name, value in part.items():
            if isinstance(value, str) and name not in _NOT_PUT_OUT:
                self._put_out(value)

    def _put_out(self, value: str) -> None:
        letters = size = len(value)
        if not value.isascii():
            size, letters = len(value.encode(errors="surrogatepass")), len(value.encode("ascii", "ignore"))
        self._bytes += size
        self._thirds += letters + _BYTES_PER_TOKEN * (size - letters)

    def _count(self, raw: msgspec.Raw, *, final: bool = True) -> None:
        value = _value(raw)
        if value is None:
            return
        usage = _Usage(value, self._bound)
        self._counted = usage.used(self._counted)
        for name, used in usage.beside.items():
            self._beside[name] = self._beside.get(name, _NOTHING) | used
        if isinstance(value, dict):
            self.speed, self.geo = _text(value, "speed", self.speed), _text(value, "inference_geo", self.geo)
        self.seen = True
        self._is_counted = final and usage.has_output


def _value(raw: msgspec.Raw) -> Any:
    """None where it is not there or not to be read."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (ValueError, RecursionError):
        return None
