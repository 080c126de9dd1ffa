"""A job whose record nobody can read keeps nobody from looking after the others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from claude_invoker.jobs import queue
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.reconciler import Reconciler
from claude_invoker.jobs.store import PREFIX, Store
from tests.jobs.conftest import job
from tests.jobs.test_webhooks import settings
from tests.rate_tiers.servers import RedisProcess

NESTED = '{"waiting": ' + "[" * 220 + "]" * 220 + "}"


class _Unspent:
    async def spent(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "broken", [{"asks": NESTED}, {"progress": "{"}, {"created_at": "yesterday"}], ids=["asks", "progress", "time"]
)
async def test_others_are_looked_after(
    redis_server: RedisProcess, store: Store, broken: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    queues = queue.open_queues(redis_server.url)
    jobs = [job(), job()]
    for number, each in enumerate(jobs):
        await store.add(each)
        assert await store.claim(f"ticket-{number}", "a worker that died") is not None
    await store.redis.hset(PREFIX + f"job:{jobs[0].id}", mapping=broken)
    for each in jobs:
        await store.redis.hset(PREFIX + f"job:{each.id}", "beat", "1")
    with pytest.raises(ValueError, match=r"recursion limit|EOF|could not convert"):
        await store.get(jobs[0].id)
    ends = Ends(
        settings(on_worker_loss="retry", redis_url="redis://127.0.0.1:1"),
        None,
        cast(Any, _Unspent()),
        store,
        queues,
        cast(Any, None),
    )
    looking = Reconciler(ends, store, queues, Path("/nonexistent"), (), lambda *told: None)
    with caplog.at_level(logging.ERROR):
        await looking._find_orphaned()
        await looking.recover()
    seen, _ = await store.page(None, None, 10)
    assert jobs[1].id in [each.id for each in seen]
    assert (await store.asking())[0] == []
    again = await store.get(jobs[1].id)
    assert again is not None and again.state == "queued"
    assert f"job {jobs[0].id}: its record cannot be read" in caplog.text
    await queues.close()
