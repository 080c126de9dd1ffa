"""Clients that leave: while they send their body, or while their run goes on. Their place is free within seconds, and so is
what they held, but for what a request that the API has may still cost."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Gateway

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
TEAM = ("--tier", "team")
SOON_S = 40.0  # a bound for hanging: less than a run's lease lives, 60 s
SETTLED_S = 150.0  # the same, for 60 s in which the API is asked for its last word


def connect(gateway: Gateway) -> socket.socket:
    where = urlsplit(gateway.url)
    return socket.create_connection((where.hostname, where.port), 10)


def request(token: str, length: int, body: bytes) -> bytes:
    head = f"POST /claude/invoke HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


def used(gateway: Gateway, subject: str) -> dict[str, Any]:
    with gateway.client(subject, *TEAM) as client:
        report: dict[str, Any] = client.get("/claude/limits").json()
    return {"running": report["concurrent"]["running"], "reserved": report["usd"]["reserved"]}


def until(gateway: Gateway, subject: str, within_s: float = SOON_S, **expected: float) -> None:
    bound = time.monotonic() + within_s
    while expected.items() - (found := used(gateway, subject)).items():
        assert time.monotonic() < bound, found
        time.sleep(0.2)


@pytest.mark.parametrize("how", ["reset", pytest.param("closed", marks=pytest.mark.slow)])
def test_who_leaves_while_it_sends_its_body_holds_nothing_for_long(gateway: Gateway, how: str) -> None:
    """54 of them took 16 of 16 places and $80 for a minute: every other after 1 KB, every other after 400 KB."""
    subject = f"leaver-{how}"
    token = gateway.token(subject, *TEAM)
    for number in range(54):
        with connect(gateway) as client:
            client.sendall(request(token, 1_000_000, b'{"prompt": "' + b"x" * (400_000 if number % 2 else 1000)))
            if number < 4:
                time.sleep(0.3)  # it is admitted for sure
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(gateway, subject, running=0, reserved=0)
    with gateway.client(subject, *TEAM) as client:
        assert client.post("/claude/invoke", json={"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    ("size", "to_its_end"),
    [(400_000, False), *(pytest.param(size, True, marks=pytest.mark.slow) for size in (1000, 400_000))],
)
def test_who_leaves_its_run_ends_it_however_long_the_prompt_was(gateway: Gateway, size: int, to_its_end: bool) -> None:
    subject = f"gone-{size}-{to_its_end}"
    token = gateway.token(subject, *TEAM)
    body = json.dumps({"prompt": "x" * size + " [[hang]]"}).encode()
    with connect(gateway) as client:
        client.sendall(request(token, len(body), body))
        until(gateway, subject, running=1)
    until(gateway, subject, running=0)
    if to_its_end:  # until then the API, which hangs here, may bill what it has been sent
        until(gateway, subject, SETTLED_S, running=0, reserved=0)
