"""What one answer of the Messages API has used, read off the answer on its way: pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

_BYTES_PER_TOKEN = 3
"""Of ASCII that was streamed before an answer broke off, which the API has not counted for us: rather too many tokens.
A byte of any other letter is one."""
_MAX_LINE = 4 * 1024 * 1024
_MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True)
class Used:
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

    @property
    def cache_write(self) -> int:
        return self.cache_write_5m + self.cache_write_1h

    @property
    def all_input(self) -> int:
        return self.input + self.cache_read + self.cache_write


class _Creation(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: int | None = None


class _Usage(msgspec.Struct):
    """https://docs.claude.com/en/api/messages, `usage`. In a stream's `message_delta` each figure is the total so far,
    and those that have not changed may be missing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _Creation | None = None
    server_tool_use: _ServerTools | None = None

    def used(self, before: Used) -> Used:
        """The totals, where before they were `before`."""
        all_writes, parts = self.cache_creation_input_tokens, self.cache_creation
        if parts is not None:
            short, long = parts.ephemeral_5m_input_tokens or 0, parts.ephemeral_1h_input_tokens or 0
            # What is in neither was written for five minutes, as it was before there was another time.
            short = max(short, (all_writes or 0) - long)
        elif all_writes is not None:
            long = before.cache_write_1h
            short = max(0, all_writes - long)
        else:
            short, long = before.cache_write_5m, before.cache_write_1h
        searches = None if self.server_tool_use is None else self.server_tool_use.web_search_requests
        return Used(
            max(before.input, self.input_tokens or 0),
            max(before.output, self.output_tokens or 0),
            max(before.cache_read, self.cache_read_input_tokens or 0),
            max(before.cache_write_5m, short),
            max(before.cache_write_1h, long),
            max(before.web_searches, searches or 0),
        )


class _Message(msgspec.Struct):
    model: str = ""
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    delta: _Delta | None = None


_EVENT = msgspec.json.Decoder(_Event)
_ANSWER = msgspec.json.Decoder(_Message)


class Meter:
    """Reads the body of one answer as it passes, piece by piece.

    `used` is what it has used so far, however the answer ends; `model` the model that answered, empty while unknown.
    Never raises: what cannot be read counts as nothing.
    """

    def __init__(self, *, stream: bool, max_tokens: int = 1 << 20) -> None:
        """`max_tokens`: as many as the answer may have."""
        self._stream = stream
        self._max_tokens = max_tokens
        self._rest = bytearray()
        self._overlong = False
        self._counted = Used()
        self._streamed = 0
        """Thirds of a token."""
        self._bytes = 0
        self._is_hidden = False
        """Whether the model has thought, which need not be shown."""
        self._is_counted = False
        """Whether the API has said how much it has put out."""
        self.seen = False
        """Whether it has said anything about usage."""
        self.model = ""

    @property
    def used(self) -> Used:
        if self._is_counted or not self.seen:
            return self._counted
        streamed = min(-(-self._streamed // _BYTES_PER_TOKEN), self._max_tokens)
        return replace(self._counted, output=max(self._counted.output, streamed))

    @property
    def most(self) -> Used:
        """The most that it can have used so far: a token for each byte, and all that it may have where some are not
        shown."""
        if self._is_counted or not self.seen:
            return self._counted
        shown = self._max_tokens if self._is_hidden else min(self._bytes, self._max_tokens)
        return replace(self._counted, output=max(self._counted.output, shown))

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
                    self._take(bytes(line[5:]))
                self._overlong = False
        if len(self._rest) > _MAX_LINE:
            self._streamed += len(self._rest)
            self._bytes += len(self._rest)
            self._overlong = True
            self._rest.clear()

    def end(self) -> None:
        """The answer is complete."""
        if self._stream:
            self.feed(b"\n")
            return
        try:
            answer = _ANSWER.decode(self._rest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        self._count(answer.usage)
        self._is_counted = self.seen
        self.model = answer.model

    def _take(self, data: bytes) -> None:
        try:
            event = _EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if event.type == "message_start" and event.message is not None:
            self.model = event.message.model
            self._count(event.message.usage)
        elif event.type == "message_delta":
            self._count(event.usage)
            self._is_counted = event.usage is not None and event.usage.output_tokens is not None
        elif event.type == "content_block_delta" and event.delta is not None:
            parts = (event.delta.text, event.delta.partial_json, event.delta.thinking)
            for part in filter(None, parts):
                size = len(part.encode())
                letters = len(part) if part.isascii() else sum(letter < "\x80" for letter in part)
                self._bytes += size
                self._streamed += letters + _BYTES_PER_TOKEN * (size - letters)
        elif event.type == "content_block_start" and event.content_block is not None:
            self._is_hidden |= event.content_block.type in ("thinking", "redacted_thinking")

    def _count(self, usage: _Usage | None) -> None:
        if usage is not None:
            self._counted = usage.used(self._counted)
            self.seen = True
