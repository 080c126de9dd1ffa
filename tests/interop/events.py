"""How clients read server-sent events: what each takes for the end of a line and of an event."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[str], list[tuple[str, str, str]]]
"""The text of a stream → (id, event, data) of each."""


@dataclass(frozen=True)
class Client:
    """`was`: what it made of 0.1.0's stream, "good" or what was wrong."""

    who: str
    read: Read
    was: str = "good"

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
    def read(text: str) -> list[tuple[str, str, str]]:
        events, block = [], []
        for line in split(text):
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
    def read(text: str) -> list[tuple[str, str, str]]:
        blocks = re.split(separator, text)[:-1]  # what no empty line ends is no event
        return [event for block in blocks if (event := _fields(block.split("\n"))) is not None]

    return read


CLIENTS = (
    Client("EventSource of browsers, okhttp-sse, eventsource of npm", _by_lines(lambda text: re.split("\r\n|\n|\r", text))),
    # encode/httpx: `iter_lines`, and what is built on it; the same in requests' `iter_lines` (sseclient-py).
    Client("httpx, requests: str.splitlines", _by_lines(str.splitlines), was="an answer with U+2028 in it was no JSON"),
    # hey-api/hey-api#3054: knows LF alone.
    Client("generated TypeScript clients: split by two LF", _by_blocks("\n\n")),
    # btubbs/sseclient#28, #70: two ends of lines of any kind, anywhere.
    Client("sseclient: a regular expression over all", _by_blocks("\r\n\r\n|\n\n|\r\r")),
    Client("Go's bufio.Scanner", _by_lines(lambda text: [line.removesuffix("\r") for line in text.split("\n")])),
    Client("Spring WebClient, Guzzle: lines by LF", _by_lines(lambda text: text.split("\n"))),
)  # fmt: skip
