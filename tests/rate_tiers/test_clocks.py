"""docs/clocks.md: a Redis whose clock is not the gateway's, as a process of its own (libfaketime)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest

from claude_contract.ledger import Admit, Budget, Lease, Peek, Renewal, Slot, Terms, Window, Windows
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.rate_tiers.test_model import DOLLAR
from tests.rate_tiers.test_pools import TEAM
from tests.support.clocks import FAKETIME, shifted
from tests.support.waiting import HANG_S

DAY_S = 86_400
pytestmark = pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")


@pytest.fixture
def redis_ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], RedisProcess]:
    def started(ahead_s: int) -> RedisProcess:
        with monkeypatch.context() as patch:
            for name, value in shifted(ahead_s).items():
                patch.setenv(name, value)
            return RedisProcess()

    return started


@pytest.mark.parametrize("ahead_s", [-400 * DAY_S, -3600, 3600, 40 * DAY_S])
def test_limits_go_by_the_clock_of_redis_alone(redis_ahead: Callable[[int], RedisProcess], ahead_s: int) -> None:
    one_server("it is about one Redis")
    with closing(redis_ahead(ahead_s)) as server:
        seconds, _ = server.client().time()  # type: ignore[misc]
        assert abs(seconds - time.time() - ahead_s) < HANG_S
        store = RedisLedger(Settings(server.url, timeout=HANG_S))
        lease = Lease.new("claude", "ada", DOLLAR, TEAM)
        slot = Slot(2, DOLLAR, pools=(Terms(None, (Budget(2 * DOLLAR, "month"),)), Terms()))
        windows = Windows((Window("day", 1),))
        first = store.admit(Admit("claude", "ada", windows, lease, slot, shared=TEAM))
        assert first.admitted
        second = Lease.new("claude", "ada", DOLLAR, TEAM)
        assert store.admit(Admit("claude", "ada", windows, second, slot, shared=TEAM)).exceeded == "day"
        assert store.renew(lease, 60_000) is Renewal.EXTENDED
        store.settle(lease, DOLLAR // 2)
        usage = store.peek(Peek("claude", "ada", windows, slot=slot, shared=TEAM))
        ((spent,),) = (pool.spent for pool in usage.pools if pool.spent)
        assert (spent.micro_usd, usage.own.running) == (DOLLAR // 2, 0)
        assert spent.start_ms <= seconds * 1000 <= spent.end_ms, "the month that it is there"
