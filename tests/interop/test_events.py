"""A run's events, as each client of the table (`events.py`) reads them."""

from __future__ import annotations

import json

import pytest

from claude_invoker.api.stream import encode
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


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_every_client_reads_the_same_events(client: Client) -> None:
    log = EventLog()
    for text in TEXTS:
        log.append("run.text", {"text": text, text: 1})
    log.append_json("run.done", json.dumps({"text": ENDS}, ensure_ascii=False).encode())
    stream = ": heartbeat\n\n" + "".join(encode(event).decode() for event in log.since(0)) + "id: 99\ndata: cut"
    read = client.read(stream)
    assert [(number, name) for number, name, _ in read] == [
        *((str(number), "run.text") for number in range(1, len(TEXTS) + 1)),
        (str(len(TEXTS) + 1), "run.done"),
    ]
    assert [json.loads(data)["text"] for _, _, data in read] == [*TEXTS, ENDS]


def test_the_control_not_every_client_reads_what_json_alone_makes() -> None:
    raw = 'id: 1\nevent: run.text\ndata: {"text": "a\u2028b"}\n\n'
    unread = []
    for client in CLIENTS:
        try:
            json.loads(client.read(raw)[0][2])
        except ValueError:
            unread.append(client.who)
    assert unread == ["httpx, requests: str.splitlines"]
