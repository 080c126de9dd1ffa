"""How clients read server-sent events: what each takes for the end of a line and of an event."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from anthropic._streaming import SSEDecoder as OfAnthropic
from openai._streaming import SSEDecoder as OfOpenAI

Read = Callable[[Iterable[bytes]], list[tuple[str, str, str]]]
"""The pieces of a stream, cut anywhere → (id, event, data) of each event."""


@dataclass(frozen=True)
class Client:
    """`was`: what it made of 0.1.0's stream, "good" or what was wrong. `source` and `reported`: see the README."""

    who: str
    read: Read
    was: str = "good"
    source: str = ""
    reported: bool = False

    def __str__(self) -> str:
        return self.who


def _fields(block: list[str]) -> tuple[str, str, str] | None:
    found: dict[str, list[str]] = {"id": [""], "event": ["message"], "data": []}
    for line in block:
        name, _, value = line.partition(":")
        if name in found:
            found[name].append(value.removeprefix(" "))
    return (found["id"][-1], found["event"][-1], "\n".join(found["data"])) if found["data"] else None


def _by_lines(split: Callable[[str], list[str]]) -> Read:
    def read(pieces: Iterable[bytes]) -> list[tuple[str, str, str]]:
        events, block = [], []
        for line in split(b"".join(pieces).decode()):
            if line:
                block.append(line)
            elif (event := _fields(block)) is not None:
                events.append(event)
                block = []
            else:
                block = []
        return events

    return read


def _by_blocks(separator: str) -> Read:
    def read(pieces: Iterable[bytes]) -> list[tuple[str, str, str]]:
        blocks = re.split(separator, b"".join(pieces).decode())[:-1]  # what no empty line ends is no event
        return [event for block in blocks if (event := _fields(block.split("\n"))) is not None]

    return read


class _Event(Protocol):
    @property
    def id(self) -> str | None: ...
    @property
    def event(self) -> str | None: ...
    @property
    def data(self) -> str: ...


class _Decoder(Protocol):
    def iter_bytes(self, iterator: Iterator[bytes], /) -> Iterator[_Event]: ...


def _by_sdk(decoder: Callable[[], _Decoder]) -> Read:
    """An SDK's own decoder. An empty line is an event for it as soon as there was an id or a `retry`."""

    def read(pieces: Iterable[bytes]) -> list[tuple[str, str, str]]:
        events = decoder().iter_bytes(iter(pieces))
        return [(event.id or "", event.event or "message", event.data) for event in events]

    return read


EMPTY = "each heartbeat, and the beginning, an event without data, which is no JSON"
CLIENTS = (
    Client("EventSource of browsers, okhttp-sse, eventsource of npm", _by_lines(lambda text: re.split("\r\n|\n|\r", text)), source="WHATWG HTML 9.2"),
    # `iter_lines`, and what is built on it; the same in requests' `iter_lines` (sseclient-py).
    Client("httpx, requests: str.splitlines", _by_lines(str.splitlines), was="an answer with U+2028 in it was no JSON", source="mpetazzoni/sseclient#9"),
    Client("generated TypeScript clients: split by two LF", _by_blocks("\n\n"), source="hey-api/hey-api#3054"),
    # Two ends of lines of any kind, anywhere.
    Client("sseclient: a regular expression over all", _by_blocks("\r\n\r\n|\n\n|\r\r"), source="btubbs/sseclient#28, #70"),
    Client("Go's bufio.Scanner", _by_lines(lambda text: [line.removesuffix("\r") for line in text.split("\n")])),
    Client("Spring WebClient, Guzzle: lines by LF", _by_lines(lambda text: text.split("\n"))),
    Client("OpenAI's SDK for Python", _by_sdk(OfOpenAI), was=EMPTY, source="openai/openai-python#2722, theopenco/llmgateway#2334"),
    Client("Anthropic's SDK for Python", _by_sdk(OfAnthropic), was=EMPTY, source="modelcontextprotocol/python-sdk#1670, openai/openai-go#651"),
)  # fmt: skip
