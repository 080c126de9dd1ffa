"""A disk of 200 MB, real runs that would fill it, and what is still there afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_invoker.cli import usage
from tests.invoker.conftest import Invoker, StandInProcess, as_root, bash, wait_for
from tests.jobs.conftest import SECRET
from tests.replicas.test_replicas import client
from tests.support.disk import disk

pytestmark = [as_root, pytest.mark.timeout(300)]
MB = 1 << 20
BOUNDS = {
    "trees_per_subject": 60 * MB,
    "trees_in_all": 100 * MB,
    "sessions_per_subject": 40 * MB,
    "sessions_in_all": 80 * MB,
    "artifacts_per_subject": 25 * MB,
    "artifacts_in_all": 50 * MB,
    "artifact_max_bytes": 20 * MB,
    "disk_reserve": 20 * MB,
}


@pytest.fixture
def small() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    folder.chmod(0o711)
    with disk(folder / "d", "200m") as found:
        yield found


def written(size: int, name: str) -> str:
    return f"mkdir -p $(dirname {name}); head -c {size * MB} /dev/urandom > {name}; echo written"


def size_of(path: Path) -> int:
    return usage.files(path, usage.Files(1 << 63, 1 << 63)).bytes


def answered(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_who_fills_the_disk_meets_his_own_bounds_and_nobody_else_notices(
    start_invoker: Callable[..., Invoker], small: Path
) -> None:
    invoker = start_invoker(state_dir=small / "state", trust="attested", attestation_key=SECRET, **BOUNDS)
    with client(invoker, "alice") as alice, client(invoker, "bob") as bob:
        # Sessions: not in a directory whose files are artifacts.
        of_bob = answered(bash(bob, written(5, "node_modules/f"), session="new"))["session"]
        of_alice = [answered(bash(alice, written(15, "node_modules/f"), session="new"))["session"] for _ in range(4)]
        trees = invoker.state / "trees" / "sessions"
        wait_for(lambda: size_of(trees) < 46 * MB, what="that the oldest are gone")
        look = "ls -l node_modules/f"
        assert [bash(alice, look, session=each).status_code for each in of_alice[:2]] == [404, 404]
        assert "node_modules/f" in answered(bash(alice, look, session=of_alice[-1]))["result"]
        assert "node_modules/f" in answered(bash(bob, look, session=of_bob))["result"]
        # Artifacts.
        of_bob = answered(bash(bob, written(5, "bobs")))["id"]
        runs = [answered(bash(alice, written(10, "big")))["id"] for _ in range(4)]
        wait_for(lambda: size_of(invoker.state / "artifacts") < 32 * MB, what="that the oldest are gone")
        assert [alice.get(f"/runs/{run}/artifacts/big").status_code for run in runs] == [404, 404, 200, 200]
        assert bob.get(f"/runs/{of_bob}/artifacts/bobs").status_code == 200
        # What a run has while it runs.
        ended = bash(alice, f"{written(75, 'huge')}; sleep 60")
        assert (ended.status_code, ended.json()["limit"]) == (422, "trees_per_subject"), ended.text
        wait_for(lambda: size_of(small) < 100 * MB, what="that its tree is deleted")
        assert invoker.ready()


def test_no_run_begins_on_a_disk_that_is_nearly_full(
    start_invoker: Callable[..., Invoker], stand_in: StandInProcess, small: Path
) -> None:
    invoker = start_invoker(state_dir=small / "state", trust="attested", attestation_key=SECRET, **BOUNDS)
    with client(invoker, "alice") as alice:
        space = os.statvfs(small)
        (small / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 10 * MB))
        asked = len(stand_in.lines())
        refused = alice.post("/invoke", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["setting"]) == (507, "INVOKER_DISK_RESERVE"), refused.text
        assert refused.headers["retry-after"]
        assert len(stand_in.lines()) == asked, "it has cost nothing"
        (small / "filler").unlink()
        assert "said" in answered(bash(alice, "echo said"))["result"], "the control"


def test_what_is_sent_counts_before_it_has_come(start_invoker: Callable[..., Invoker], small: Path) -> None:
    invoker = start_invoker(state_dir=small / "state", **BOUNDS)

    def sent(size: int) -> httpx.Response:
        parts: list[tuple[str, Any]] = [("files", ("a", bytes(size))), ("request", (None, '{"prompt": "x"}'))]
        with invoker.client() as api:
            return api.post("/invoke/form", files=parts)

    refused = sent(61 * MB)
    assert (refused.status_code, refused.json()["setting"]) == (507, "INVOKER_TREES_PER_SUBJECT"), refused.text
    space = os.statvfs(small)
    (small / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 50 * MB))
    refused = sent(40 * MB)
    assert (refused.status_code, refused.json()["setting"]) == (507, "INVOKER_DISK_RESERVE"), refused.text
    assert not list((invoker.state / "intake").iterdir())
    assert sent(10 * MB).status_code == 200, "the control"
    with invoker.client() as api:
        wait_for(lambda: 'claude_invoker_disk_bytes{kind="audit"} 0.0' not in api.get("/metrics").text, what="a look")
        assert 'claude_invoker_disk_allowed_bytes{kind="trees"} 1.048576e+08' in api.get("/metrics").text
