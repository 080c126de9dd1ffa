"""A run's events, as each client of the table (`events.py`) reads them."""

from __future__ import annotations

import json

import pytest

from claude_invoker.api.stream import HEARTBEAT, RETRY, encode
from claude_invoker.runs.events import EventLog
from tests.interop.events import CLIENTS, Client

ENDS = "\n \r \r\n \n\n \x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029"
TEXTS = [
    "plain",
    "",
    ENDS,
    "data: not a field\n\nevent: forged\ndata: {}\n\n",
    ": no comment",
    "\ufeff",
    "é😀",
    "\\u2028",
]


def stream(heartbeat: bytes = HEARTBEAT) -> bytes:
    """The events of all these texts, with silences, and at last one that was cut off."""
    log = EventLog()
    for text in TEXTS:
        log.append("run.text", {"text": text, text: 1})
    log.append_json("run.done", json.dumps({"text": ENDS}, ensure_ascii=False).encode())
    events = (encode(event.id, event.name, event.data, "/runs/run_1/events") for event in log.since(0))
    return RETRY + heartbeat + b"".join(event + heartbeat for event in events) + b"id: 99\ndata: cut"


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_every_client_reads_the_same_events_wherever_they_are_cut(client: Client, size: int) -> None:
    sent = stream()
    read = client.read(sent[at : at + size] for at in range(0, len(sent), size))
    assert [(number, name) for number, name, _ in read] == [
        *((str(number), "run.text") for number in range(1, len(TEXTS) + 1)),
        (str(len(TEXTS) + 1), "run.done"),
    ]
    assert [json.loads(data)["text"] for _, _, data in read] == [*TEXTS, ENDS]


def test_no_end_of_a_line_can_be_cut_in_two() -> None:
    """CR LF in two pieces are two ends of lines for some readers (rexxars/eventsource-parser#17, ax-llm/ax#622)."""
    assert b"\r" not in stream()


def unread(sent: bytes) -> list[str]:
    found = []
    for client in CLIENTS:
        try:
            for _, _, data in client.read([sent]):
                json.loads(data)
        except ValueError:
            found.append(client.who)
    return found


def test_the_control_not_every_client_reads_what_json_alone_makes() -> None:
    assert unread('id: 1\nevent: run.text\ndata: {"text": "a\u2028b"}\n\n'.encode()) == [
        "httpx, requests: str.splitlines"
    ]


def test_the_control_an_empty_line_behind_a_heartbeat_is_an_event_for_some() -> None:
    assert unread(stream(HEARTBEAT + b"\n")) == ["OpenAI's SDK for Python", "Anthropic's SDK for Python"]
