"""docs/upgrade.md, *Back*: the release before, as its own program, goes on with the Redis and the directory that this one has
left; and this one again with what that has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import Invoker, as_root, wait_for
from tests.jobs.conftest import SECRET, lease, slot
from tests.permissions.test_jobs import create, ended
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.replicas.test_backup import spent
from tests.replicas.test_replicas import client
from tests.support.recorded import recorded

ROOT = Path(__file__).resolve().parents[2]
COMMIT = recorded(ROOT / "tests" / "jobs" / "data" / "release-0.1.0.json")["commit"]
pytestmark = [as_root, pytest.mark.slow, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of 0.1.0, out of the history."""
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the history has no {COMMIT}")
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture
def redis() -> Iterator[RedisProcess]:
    one_server("0.1.0 knows no Cluster")
    with closing(RedisProcess()) as server:
        yield server


def queued(of: Invoker, prompt: str) -> str:
    with client(of, lease=lease("alice"), **slot(4), v=None) as alice:
        return create(alice, prompt)


def test_the_release_before_goes_on_and_this_one_after_it(
    start_invoker: Callable[..., Invoker], before: Path, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attestations are as the gateway of 0.1.0 makes them: it goes back first, and comes last."""
    settings: dict[str, Any] = {"attestation_key": SECRET, "trust": "attested", "redis_url": redis.url}

    # This release: something done, a session, money; then something that waits.
    first = start_invoker(worker="embedded", **settings)
    with client(first, v=None) as alice:
        done = queued(first, "[[say first]]")
        assert ended(alice, done)["state"] == "done"
        ours = asked(alice, "[[say one]]", session="new").json()["session"]
        wait_for(lambda: spent(redis), what="its money")
    first.stop()
    taking = start_invoker(after=first, worker="none", **settings)
    with client(taking, v=None) as alice:
        waits = queued(taking, "[[say second]]")
        assert alice.get(waits).json()["state"] == "queued"
    taking.stop()
    money = spent(redis)

    # The one before, on the same Redis and directory.
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{before}/invoker:{before}/plugins")
        old = start_invoker(after=first, worker="embedded", **settings)
    assert b"claude_invoker.metering" not in old.log.read_bytes(), "it is the one before"
    with client(old, v=None) as alice:
        assert ended(alice, waits)["result"]["result"] == "second"
        assert alice.get(done).json()["result"]["result"] == "first"
        assert {job["id"] for job in alice.get("/claude/jobs").json()["jobs"]} == {id_of(done), id_of(waits)}
        assert asked(alice, "[[say two]]", session=ours).status_code == 404, "sessions of this release"
        theirs = asked(alice, "[[say one]]", session="new").json()["session"]
        wait_for(lambda: spent(redis) > money, what="what its job has cost, counted on")
    # What this release's gateway signs it takes where it knows each bound, and refuses else.
    for clamp, status in (({"tools": ["Read"]}, 200), ({"tools": ["Read"], "ask": ["Bash"]}, 401)):
        with client(old, clamp=clamp) as alice:
            assert asked(alice, "[[say one]]").status_code == status
    old.stop()

    # And this one again.
    again = start_invoker(after=first, worker="embedded", **settings)
    with client(again, v=None) as alice:
        for job, word in ((done, "first"), (waits, "second")):
            assert alice.get(job).json()["result"]["result"] == word
        for session in (ours, theirs):
            answer = asked(alice, "[[say two]]", session=session)
            assert answer.status_code == 200, answer.text
        third = queued(again, "[[say third]]")
        costs = [round(ended(alice, job)["cost_usd"] * 1_000_000) for job in (done, waits, third)]
        wait_for(lambda: spent(redis) >= sum(costs), what="their money")
        assert spent(redis) == sum(costs), "of each job once, whichever release has run it"
    again.stop()
    environment = {"PATH": os.environ["PATH"], "INVOKER_AUDIT_DIR": str(again.state / "audit")}
    environment["INVOKER_REDIS_URL"] = redis.url  # where its anchors are
    verify = [str(Path(sys.executable).parent / "claude-invoker"), "audit", "verify"]
    verified = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def asked(alice: httpx.Client, prompt: str, **more: Any) -> httpx.Response:
    return alice.post("/claude/invoke", json={"prompt": prompt} | more)


def id_of(job: str) -> str:
    return job.rpartition("/")[2]
