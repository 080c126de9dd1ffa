"""What the metrics say equals what a client has counted, whatever happens to the requests."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections import Counter

import httpx
import pytest

from tests.metrics.conftest import Stack, Upstream, token
from tests.support.waiting import HANG_S

# The long form: make metrics-long
REQUESTS = int(os.environ.get("METRICS_REQUESTS", "1000"))
KINDS = ("ok", "ok", "ok", "401", "403", "429", "404", "stream", "abort", "odd")


def message(kind: str, tokens: dict[str, str], number: int) -> bytes:
    path, method = "/invoke", "POST"
    who = {"401": None, "403": "roleless", "429": "limited"}.get(kind, "pro")
    if kind in ("stream", "abort"):
        path = "/invoke/stream" if kind == "stream" else f"/invoke/hang?{number}"
    if kind == "odd":
        method, path, who = "BREW", "/plain", None
    if kind == "404":
        path = "/nowhere"
    authorization = f"Authorization: Bearer {tokens[who]}\r\n" if who else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: 2\r\n\r\n{{}}".encode()


async def drive(stack: Stack, kinds: list[str]) -> Counter[tuple[str, str, str]]:
    counted: Counter[tuple[str, str, str]] = Counter()
    tokens = {
        "pro": token("ada"),
        "roleless": token("bob", role="none"),
        "limited": token("greedy", tier="free"),
    }
    waiting = iter(enumerate(kinds))

    async def client() -> None:
        for number, kind in waiting:
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(message(kind, tokens, number))
            if kind == "abort":
                while f"/invoke/hang?{number}".encode() not in Upstream.hung:  # unread, it would be no request
                    await asyncio.sleep(0.01)
                writer.close()
                counted["499", "POST", "invoke"] += 1
                continue
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if kind == "stream":
                await reader.readuntil(b"0\r\n\r\n")
            writer.close()
            method = {"odd": "other"}.get(kind, "POST")
            route = {"odd": "plain", "404": ""}.get(kind, "invoke")
            counted[head.split()[1], method, route] += 1

    await asyncio.gather(*(client() for _ in range(16)))
    return counted


@pytest.mark.timeout(600)
def test_every_request_is_counted_once(stack: Stack) -> None:
    kinds = [KINDS[i % len(KINDS)] for i in range(REQUESTS)]
    random.Random(7).shuffle(kinds)
    counted = asyncio.run(drive(stack, kinds))
    assert sum(counted.values()) == REQUESTS
    assert {status for status, _, _ in counted} == {"200", "401", "403", "429", "404", "499"}
    counted["200", "GET", "plain"] += 1  # the readiness probe
    deadline = time.monotonic() + HANG_S
    while True:
        samples = stack.samples()
        seen = {
            tuple(dict(labels)[n] for n in ("status", "method", "route")): value
            for (name, labels), value in samples.items()
            if name == "claude_requests_total"
        }
        if seen == counted or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert seen == counted
    for (status, method, route), number in counted.items():
        labels = frozenset({"status": status, "method": method, "route": route}.items())
        assert samples["claude_request_duration_seconds_count", labels] == number
    assert samples["claude_active_connections", frozenset()] == 0
    refused = {
        tuple(dict(labels)[n] for n in ("plugin", "reason", "tier")): value
        for (name, labels), value in samples.items()
        if name == "claude_refusals_total" and dict(labels)["route"] == "invoke"
    }
    assert refused[("jwt-claims", "no_token", "none")] == counted["401", "POST", "invoke"]
    assert refused[("rate-tiers", "rate_limited", "free")] == counted["429", "POST", "invoke"]
    assert sum(value for (*_, tier), value in refused.items() if tier == "pro") == counted["403", "POST", "invoke"]
    lines = [json.loads(line) for line in stack.log.read_text().splitlines()]
    who = Counter((line["status"], line["subject"], line["tier"]) for line in lines if line["route"] == "invoke")
    assert {found: number for found, number in who.items() if found[0] in (401, 403, 429)} == {
        (401, "", ""): counted["401", "POST", "invoke"],
        (403, "bob", "pro"): counted["403", "POST", "invoke"],
        (429, "greedy", "free"): counted["429", "POST", "invoke"],
    }
    assert sum(refused.values()) == sum(counted[s, "POST", "invoke"] for s in ("401", "403", "429"))
    # What the service said of its runs: JSON answers of the pro tier and of the free tier before its limit.
    runs = {tier: samples.get(("claude_cost_usd_total", frozenset({"model": "haiku", "tier": tier}.items())), 0) / 0.25
            for tier in ("pro", "free")}  # fmt: skip
    assert runs == {"pro": kinds.count("ok"), "free": kinds.count("429") - counted["429", "POST", "invoke"]}
    spent = frozenset({"model": "haiku", "tier": "pro", "kind": "input"}.items())
    assert samples["claude_tokens_total", spent] == 10 * kinds.count("ok")
    text = stack.text()
    assert "ada" not in text
    assert "greedy" not in text


def hanging(stack: Stack, number: int) -> list[socket.socket]:
    found = []
    for i in range(number):
        client = socket.create_connection(("127.0.0.1", stack.port))
        line = f"POST /invoke/hang HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(f'u{i}')}\r\n"
        client.sendall(f"{line}Content-Length: 2\r\n\r\n{{}}".encode())
        found.append(client)
    return found


def test_the_gauge_counts_what_hangs_and_forgets_what_is_gone(stack: Stack) -> None:
    clients = hanging(stack, 5)
    stack.until("claude_active_connections", 5)
    clients.pop().close()
    stack.until("claude_active_connections", 4)
    reset = clients.pop()
    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    reset.close()
    stack.until("claude_active_connections", 3)
    for _ in range(3):  # a forged attestation ends nobody
        httpx.post(stack.url + "/plain", headers={"X-Claude-Attestation": "e30.eyJqdGkiOiJ4In0.x"})
    assert stack.value("claude_active_connections") == 3
    for client in clients:
        client.close()
    stack.until("claude_active_connections", 0)


def test_the_gauge_after_a_kill_of_the_server(stack: Stack) -> None:
    clients = hanging(stack, 3)
    stack.until("claude_active_connections", 3)
    stack.server().kill()
    deadline = time.monotonic() + HANG_S
    while True:
        try:
            if stack.value("claude_active_connections") == 0:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for client in clients:  # their log phases meet a server that has never heard of them
        client.close()
    time.sleep(0.5)
    assert stack.value("claude_active_connections") == 0
    more = hanging(stack, 1)
    stack.until("claude_active_connections", 1)
    more[0].close()
    stack.until("claude_active_connections", 0)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt install prometheus)")
def test_promtool_finds_nothing_to_say(stack: Stack) -> None:
    httpx.post(stack.url + "/invoke", content=b"{}")
    stack.until("claude_requests_total", 1, status="401", method="POST", route="invoke")
    checked = subprocess.run(["promtool", "check", "metrics"], input=stack.text(), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_what_is_refused_before_any_plugin_ran_is_not_counted_as_one_of_theirs(stack: Stack) -> None:
    """A method that no attestation has room for was counted as refused by jwt-claims, which never saw it."""
    before = stack.value(
        "claude_refusals_total", plugin="jwt-claims", reason="unknown_method", route="invoke", tier="none"
    )
    answered = httpx.request("X" * 40, stack.url + "/invoke", headers={"User-Agent": "forty"})
    assert (answered.status_code, answered.headers["x-claude-refusal"]) == (501, "request/unknown_method")
    stack.until("claude_refusals_total", 1, plugin="request", reason="unknown_method", route="invoke", tier="none")
    assert (
        stack.value("claude_refusals_total", plugin="jwt-claims", reason="unknown_method", route="invoke", tier="none")
        == before
    )
    lines = [json.loads(line) for line in stack.log.read_text().splitlines()]
    assert [line["refusal"] for line in lines if line["http_user_agent"] == "forty"] == ["request/unknown_method"]
