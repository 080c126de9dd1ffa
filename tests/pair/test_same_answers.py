"""The pair and single calls: whatever is asked, the answer, what reaches the upstream and what is logged are the same."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pair.cases import BRIEF, HTTP2, PIPELINED, REQUESTS, ROUTES, ask, kong_yml
from tests.pair.gateways import UNCOUNTED, Gateway, both
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("pair")  # the two gateways are started once
Pair = tuple[Gateway, Gateway]
WAITING = ask(b"User-Agent: " + UNCOUNTED.encode()).replace(b"@PATH@", b"/report")


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with both(kong_yml(), tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.mark.parametrize("route", ROUTES)
def test_same_answers(gateways: Pair, route: str) -> None:
    """Twice: what the first one asks comes with the second one's event."""
    for _ in range(2):
        for name in BRIEF:
            same(gateways, route, name)


@pytest.mark.parametrize("route", ["body", "apart"])
def test_same_answers_to_all(gateways: Pair, route: str) -> None:
    for name in REQUESTS:
        same(gateways, route, name)


@pytest.mark.skipif("KONG" not in os.environ, reason="minikong has no HTTP/2")
@pytest.mark.parametrize("route", ["body", "apart", "query"])
@pytest.mark.parametrize("length", [True, False], ids=["with-length", "without-length"])
def test_same_answers_over_http2(gateways: Pair, route: str, length: bool) -> None:
    """Where a body need not say how long it is, and names of headers are in lower case."""
    for name in ("good", *HTTP2):
        sent = REQUESTS[name].replace(b"@PATH@", b"/" + route.encode())
        for _ in range(50):  # both as often, since both count
            answers = [gateway.send_http2(route, sent, length) for gateway in gateways]
            if None not in answers:
                break
        by_single, by_pair = [lines(answer) for answer in answers if answer is not None]
        assert by_pair == by_single, name


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_same_answers_to_all_everywhere(gateways: Pair, route: str) -> None:
    for name in REQUESTS:
        same(gateways, route, name)


def test_same_answers_to_requests_that_do_not_wait(gateways: Pair) -> None:
    single, pair = gateways
    sent = PIPELINED.replace(b"@PATH@", b"/body")
    assert lines(pair.send("pipelined", sent, 3)) == lines(single.send("pipelined", sent, 3))


def test_same_lines_in_the_log(gateways: Pair) -> None:
    """What claude-metrics writes about all of the above: who, in which tier, refused by whom."""
    single, pair = gateways
    for _ in range(3):
        for name in BRIEF:
            same(gateways, "apart", name)
    assert logged(pair.log) == logged(single.log)


@pytest.mark.parametrize("route", ["attested", "added"])
def test_a_pass_takes_no_call(gateways: Pair, route: str) -> None:
    """The control is the single calls."""
    sent = REQUESTS["good"].replace(b"@PATH@", b"/" + route.encode())
    made = []
    for gateway in gateways:
        gateway.send(route, sent)
        before = gateway.events("claude-gateway", "access")[1]
        for _ in range(5):
            gateway.send(route, sent)
        made.append(gateway.events("claude-gateway", "access")[1] - before)
    single, pair = made
    assert single >= 20
    assert pair == 0


@pytest.mark.skipif("KONG" not in os.environ, reason="minikong starts events of the log phase without asking Lua")
def test_the_log_phase_takes_no_call(gateways: Pair) -> None:
    """claude-metrics asks what Kong has serialized: with the pair that comes with its event, but for the first. The
    control is the single calls."""
    for gateway in gateways:
        for _ in range(6):
            gateway.send("body", REQUESTS["good"].replace(b"@PATH@", b"/body"))
    (single_events, single), (pair_events, pair) = (six_logged(gateway) for gateway in gateways)
    assert single == single_events
    assert 1 <= pair < pair_events / 2, "the first ones of an instance make it, until one is answered"


def six_logged(gateway: Gateway) -> tuple[int, int]:
    """Events of claude-metrics and their calls, as soon as there are six."""
    stop = time.monotonic() + HANG_S
    while (found := gateway.events("claude-metrics", "log"))[0] < 6:
        assert time.monotonic() < stop, "the requests are not logged"
        time.sleep(0.1)
    return found


def same(gateways: Pair, route: str, name: str) -> None:
    single, pair = gateways
    if route == "report":  # tells of leases, and those of requests to other routes end in the log phase
        ended(single)
        ended(pair)
    sent = REQUESTS[name].replace(b"@PATH@", b"/" + route.encode())
    assert lines(pair.send(route, sent)) == lines(single.send(route, sent)), name


def ended(gateway: Gateway) -> None:
    """Waits until no run is counted any more."""
    stop = time.monotonic() + HANG_S
    while running := gateway.send("report", WAITING)[0]["body"]["concurrent"]["running"]:
        assert time.monotonic() < stop, f"{running} leases are left over"
        time.sleep(0.1)


def logged(path: Path) -> list[str]:
    """Lines without what is another one for every request. They are written after the answer: so waits until all are."""
    stop, before = time.monotonic() + HANG_S, -1
    while time.monotonic() < stop and (size := path.stat().st_size) != before:
        before = size
        time.sleep(0.5)
    found = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["http_user_agent"] == UNCOUNTED:
            continue
        for new in ("time", "time_local", "request_time", "request_id", "upstream_latency", "body_bytes_sent"):
            entry.pop(new)
        found.append(json.dumps(entry, sort_keys=True))
    return sorted(found)


def lines(found: list[dict[str, Any]]) -> list[str]:
    """One line a fact, so that a difference can be read."""
    return [f"{part}: {fact}"[:2000] for one in found for part, facts in one.items() for fact in listed(facts)]


def listed(facts: Any) -> list[Any]:
    if isinstance(facts, dict):
        return [f"{name}: {fact}" for name, inner in sorted(facts.items()) for fact in listed(inner)]
    return facts if isinstance(facts, list) else [facts]
