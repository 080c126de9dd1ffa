"""One connection for all greenlets: everybody gets the answer to their own question, or an error, in time.

What a single caller meets (Redis killed, frozen, emptied, failed over) is in test_faults, for both transports.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from claude_contract.ledger import Admission, Admit, LedgerUnavailable, Window, Windows
from kong_claude.rate_tiers import redis_ledger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from kong_claude.rate_tiers.redis_pipe import Pipe, Shared
from tests.rate_tiers.servers import REACHED_BY, RedisProcess, one_server
from tests.support.waiting import HANG_S

LATE = 0.25


@pytest.fixture(autouse=True)
def greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    one_server("what is tried is the one connection to a server")
    if REACHED_BY == "tls":
        pytest.skip("not over TLS: there each caller has a connection")
    monkeypatch.setattr(redis_ledger, "in_greenlets", lambda: True)


@pytest.fixture
def ledger(redis_server: RedisProcess) -> Iterator[RedisLedger]:
    made = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    yield made
    made.close()


def admit(ledger: RedisLedger, subject: str, limit: int = 1000) -> Admission:
    return ledger.admit(Admit("claude", subject, Windows((Window("minute", limit),))))


def pipe_of(ledger: RedisLedger) -> Pipe:
    transport = ledger._transport
    assert isinstance(transport, Shared) and transport._pipe is not None
    return transport._pipe


def connections(redis: RedisProcess) -> int:
    found: Any = redis.client().client_list(_type="normal")
    return len([c for c in found if c["cmd"].startswith("eval")])


def test_everybody_gets_their_own_answer_on_one_connection(own_redis: RedisProcess) -> None:
    ledger = RedisLedger(Settings(own_redis.url, timeout=HANG_S))

    def ask(number: int) -> list[int]:
        return [admit(ledger, f"s{number}", 1000 + number).own.quotas[0].remaining for _ in range(20)]

    greenlets = [gevent.spawn(ask, number) for number in range(50)]
    gevent.joinall(greenlets, timeout=HANG_S, raise_error=True)
    for number, greenlet in enumerate(greenlets):
        assert greenlet.value == [999 + number - n for n in range(20)]
    assert connections(own_redis) == 1
    ledger.close()


@contextmanager
def frozen(redis: RedisProcess) -> Iterator[None]:
    """Whatever fails meanwhile: a Redis that stayed so would keep every test behind this one waiting."""
    redis.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.signal(signal.SIGCONT)


def killed_while_it_waits(ledger: RedisLedger, redis: RedisProcess, *, forget: bool) -> int:
    """What bob is told after alice, who asked before him, was ended before her answer came."""
    admit(ledger, "warm")
    with frozen(redis):
        alice = gevent.spawn(admit, ledger, "alice", 10)
        bob = gevent.spawn(admit, ledger, "bob", 500)
        gevent.sleep(0.05)
        alice.kill()
        if forget:
            pipe_of(ledger)._asked.popleft()
    bob.join(HANG_S)
    assert isinstance(bob.value, Admission)
    return bob.value.own.quotas[0].remaining


def test_the_answer_for_one_who_has_gone_is_nobody_elses(ledger: RedisLedger, redis_server: RedisProcess) -> None:
    assert killed_while_it_waits(ledger, redis_server, forget=False) == 499
    assert admit(ledger, "carol", 7).own.quotas[0].remaining == 6


def test_control_were_the_question_forgotten_the_answer_would_be(
    ledger: RedisLedger, redis_server: RedisProcess
) -> None:
    assert killed_while_it_waits(ledger, redis_server, forget=True) == 9


def test_a_switch_that_is_no_answer_is_not_taken_for_one(ledger: RedisLedger, redis_server: RedisProcess) -> None:
    admit(ledger, "warm")
    with frozen(redis_server):
        waiting = gevent.spawn(admit, ledger, "alice")
        gevent.sleep(0.05)
        gevent.get_hub().loop.run_callback(waiting.switch, [0] * 9)
        gevent.sleep(0.05)
    waiting.join(HANG_S)
    assert waiting.value.admitted


def test_a_frozen_redis_is_late_for_all_and_forgotten_by_the_next(own_redis: RedisProcess) -> None:
    ledger = RedisLedger(Settings(own_redis.url, timeout=LATE))
    admit(ledger, "warm")
    late = pipe_of(ledger)
    own_redis.signal(signal.SIGSTOP)

    def ask(delay: float) -> Any:
        gevent.sleep(delay)
        try:
            return admit(ledger, "alice")
        except LedgerUnavailable as error:
            return str(error)

    greenlets = [gevent.spawn(ask, delay) for delay in (0.0, 0.0, LATE / 2)]
    gevent.joinall(greenlets, timeout=HANG_S, raise_error=True)
    assert [g.value for g in greenlets] == ["TimeoutError: no answer in time"] * 3
    assert late.retired and late._closed
    own_redis.signal(signal.SIGCONT)
    deadline = time.monotonic() + HANG_S
    while isinstance(ask(0.05), str):
        assert time.monotonic() < deadline
    assert admit(ledger, "bob", 7).own.quotas[0].remaining == 6
    ledger.close()


def test_a_lost_connection_is_replaced_once_for_all_who_waited(own_redis: RedisProcess) -> None:
    ledger = RedisLedger(Settings(own_redis.url, timeout=HANG_S))
    admit(ledger, "warm")
    own_redis.client().client_pause(100, all=True)
    greenlets = [gevent.spawn(admit, ledger, f"s{number}") for number in range(20)]
    gevent.sleep(0)
    lost = pipe_of(ledger)
    gevent.get_hub().loop.run_callback(lost._fail, "as when Redis restarts")
    gevent.joinall(greenlets, timeout=HANG_S, raise_error=True)
    assert all(greenlet.value.admitted for greenlet in greenlets)
    assert pipe_of(ledger) is not lost
    assert connections(own_redis) == 1
    ledger.close()


def test_who_connects_may_be_ended_and_nobody_waits_for_ever(own_redis: RedisProcess) -> None:
    ledger = RedisLedger(Settings(own_redis.url, timeout=HANG_S))
    transport = ledger._transport
    assert isinstance(transport, Shared)
    connect = transport._connect

    def slowly() -> Any:
        gevent.sleep(0.1)
        return connect()

    transport._connect = slowly
    first, second = gevent.spawn(admit, ledger, "alice"), gevent.spawn(admit, ledger, "bob")
    gevent.sleep(0.02)
    first.kill()
    second.join(HANG_S)
    assert isinstance(second.exception, LedgerUnavailable)
    assert admit(ledger, "carol").admitted
    ledger.close()


def test_closed_while_somebody_waits_it_still_answers(ledger: RedisLedger, redis_server: RedisProcess) -> None:
    admit(ledger, "warm")
    with frozen(redis_server):
        waiting = gevent.spawn(admit, ledger, "alice")
        gevent.sleep(0.05)
        pipe = pipe_of(ledger)
        ledger.close()
    waiting.join(HANG_S)
    assert waiting.value.admitted
    gevent.sleep(0)
    assert pipe._closed
