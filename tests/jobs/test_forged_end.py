"""A tool that forges its run's end: whatever it says, the job ends, its lease too, and the queue goes on for others."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from claude_contract.attestation import HEADER
from tests.invoker.conftest import (
    Invoker,
    as_root,
    defended_and_without,
    invoker_processes,
    invokers_end_with_their_test,
    program,
    stand_in,
    start_invoker,
    tool,
    wait_for,
    without_boundary,
)
from tests.invoker.test_messages import FORGED, FORGER
from tests.jobs.conftest import SECRET, attestation, lease, slot
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

__all__ = ["invoker_processes", "invokers_end_with_their_test", "stand_in", "start_invoker"]  # fixtures
PLACES = 2


def ask(invoker: Invoker, method: str, path: str, subject: str, body: Any = None, **claims: Any) -> dict[str, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    headers = {HEADER: attestation(method, path, subject, data, **claims), "Content-Type": "application/json"}
    answer = httpx.request(method, invoker.url + path, content=data, headers=headers, timeout=HANG_S)
    assert answer.status_code in (200, 202), answer.text
    return dict(answer.json())


def create(invoker: Invoker, subject: str, body: dict[str, Any]) -> Callable[[], str]:
    """Creates a job; returns what tells its state."""
    claims = {"lease": lease(subject)} | slot(concurrent=PLACES)
    job = ask(invoker, "POST", "/claude/jobs", subject, body, **claims)
    return lambda: str(ask(invoker, "GET", job["links"]["self"], subject)["state"])


@as_root
@pytest.mark.parametrize("without", defended_and_without("anything_the_cli_says"))
def test_a_forged_cost_holds_up_nobody(
    start_invoker: Callable[..., Invoker], redis_server: RedisProcess, without: tuple[str, ...]
) -> None:
    invoker = without_boundary(start_invoker)(
        without=without,
        trust="attested",
        attestation_key=SECRET,
        redis_url=redis_server.url,
        worker="embedded",
        worker_concurrency=PLACES,
        pool_size=0,
        api_timeout_s=30,
        first_output_s=60,
        idle_s=60,
    )
    try:
        said = FORGED.replace('usd": 0', 'usd": -400')
        forging = {"prompt": tool("Bash", command=program(FORGER, f"<<'SAID'\n{said}\nSAID")), "tools": ["Bash"]}
        jobs = [create(invoker, "mallory", forging) for _ in range(PLACES)]
        if not without:
            wait_for(lambda: [state() for state in jobs] == ["failed"] * PLACES, what="the forger's end")
        else:
            wait_for(lambda: [state() for state in jobs] == ["running"] * PLACES, what="the runs")
            wait_for(lambda: not invoker.trees(), what="the end of all that they started")
        other = create(invoker, "bob", {"prompt": "[[say fine]]"})
        if not without:
            wait_for(lambda: other() == "done", what="another tenant's job")
            redis: Any = redis_server.client()
            assert not any(redis.zcard(key) for key in redis.keys("*:leases")), "every lease was given back"
        else:
            time.sleep(8)
            assert [state() for state in jobs] == ["running"] * PLACES
            assert other() == "queued"
    finally:
        os.kill(invoker.pid, signal.SIGKILL)  # it would take other tests' jobs; undefended it could not even stop
