"""docs/clocks.md: workers whose clocks differ, as processes. A job is its worker's for as long as that lives."""

from __future__ import annotations

import pytest

from tests.jobs.test_workers import Scene, kill, running
from tests.jobs.test_workers import scene as scene
from tests.support.waiting import HANG_S


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [3600, -3600], ids=["ahead", "behind"])
async def test_another_workers_clock_ends_no_job(scene: Scene, ahead_s: int) -> None:
    """It looks for jobs of dead workers every five seconds, and is given tickets that it takes for old ones. Such a job
    was `worker-lost`, and its run ended, where two clocks were more than ten seconds apart."""
    job, worker = await running(scene, "job=long sleep=25")
    program = ("tests.support.clocks", str(ahead_s), "claude_invoker")
    scene.stage.start("worker", program, state_dir=scene.stage.folder / "another-machine")
    found = await scene.ended(job, HANG_S)
    assert (found.state, found.attempt) == ("done", 1), found.error
    assert await scene.begun("long") == 1
    # It was there, and works.
    kill(worker)
    mine = await scene.submit("job=short", "subject-1")
    assert (await scene.ended(mine, HANG_S)).state == "done"
