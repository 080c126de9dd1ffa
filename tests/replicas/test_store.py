"""Invokers that share a bucket: any of them has the artifacts and the large answers of runs that are over."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import Invoker, as_root, tool, wait_for
from tests.replicas.test_replicas import client
from tests.support.s3 import ID, S3, SECRET, away

pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(180)]
CONTENT = "# A\n" + "line\n" * 2000


def wrote(api: httpx.Client, path: str = "a b.md", content: str = CONTENT, **more: Any) -> dict[str, Any]:
    ran = api.post(
        "/claude/invoke", json={"prompt": tool("Write", file_path=path, content=content), "tools": ["Write"], **more}
    )
    assert ran.status_code == 200, ran.text
    answer: dict[str, Any] = ran.json()
    return answer


def test_any_replica_serves_what_one_that_is_gone_has_left(
    start: Callable[..., Invoker], s3: S3, prefix: str, tmp_path: Any
) -> None:
    one, other = start(), start()
    with client(one) as here, client(other) as there:
        answer = wrote(here)
        (artifact,) = answer["artifacts"]
        assert artifact["pending"] is False
        assert s3.names(prefix) == [f"artifacts/{answer['id']}/{artifact['sha256']}"]
        # An answer and events that are large for a Redis.
        large = here.post("/claude/invoke", json={"prompt": "[[large 400000]]"}).json()
        wait_for(lambda: f"answers/{large['id']}" in s3.names(prefix), what="the large answer")
        events = here.get(f"/claude/runs/{large['id']}/events").text
        os.kill(one.pid, signal.SIGKILL)
        shutil.rmtree(one.state / "artifacts")

        run = f"/claude/runs/{answer['id']}"
        assert there.get(run).json()["artifacts"] == [artifact]
        whole = there.get(artifact["href"])
        assert (whole.status_code, whole.text, whole.headers["etag"]) == (200, CONTENT, f'"{artifact["sha256"]}"')
        assert whole.headers["content-length"] == str(len(CONTENT))
        assert "sandbox" in whole.headers["content-security-policy"]
        for wanted, status, text in (
            ("bytes=4-7", 206, CONTENT[4:8]),
            ("bytes=9000-", 206, CONTENT[9000:]),
            ("bytes=-3", 206, CONTENT[-3:]),
            ("bytes=0-99999999", 206, CONTENT),
            ("bytes=0-1,4-5", 200, CONTENT),  # of several none is taken
            ("lines=1-2", 200, CONTENT),
        ):
            part = there.get(artifact["href"], headers={"Range": wanted})
            assert (part.status_code, part.text) == (status, text), wanted
        assert there.get(artifact["href"], headers={"Range": "bytes=4-7"}).headers["content-range"] == "bytes 4-7/10004"
        assert there.get(artifact["href"], headers={"Range": "bytes=99999-"}).status_code == 416
        stale = there.get(artifact["href"], headers={"Range": "bytes=4-7", "If-Range": '"other"'})
        assert (stale.status_code, stale.text) == (200, CONTENT)
        assert there.get(artifact["href"], headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
        head = there.head(artifact["href"])
        assert (head.status_code, head.headers["content-length"], head.text) == (200, str(len(CONTENT)), "")
        packed = there.get(f"{run}/artifacts", params={"format": "zip"}).content
        (tmp_path / "all.zip").write_bytes(packed)
        shutil.unpack_archive(tmp_path / "all.zip", tmp_path / "all")
        assert (tmp_path / "all" / "a b.md").read_text() == CONTENT

        kept = there.get(f"/claude/runs/{large['id']}").json()["result"]
        assert kept["result"] == large["result"] and len(kept["result"]) >= 400_000
        assert there.get(f"/claude/runs/{large['id']}/events").text == events

    # Whoever is not the owner gets nothing, whatever he knows: ids, digests, names.
    guesses = [
        run, artifact["href"], f"{run}/artifacts/{artifact['sha256']}", f"{run}/artifacts/..%2f..%2fanswers%2f{large['id']}",
        f"/claude/runs/{answer['id']}%2f{artifact['sha256']}", f"/claude/runs/{large['id']}/events",
    ]  # fmt: skip
    with client(other, "mallory") as stranger, client(other) as owner:
        own = wrote(stranger, "own.md", "x")
        for guess in guesses:
            assert stranger.get(guess).status_code == 404, guess
        # In a run of his own, too, only what that run has left has a name.
        for name in (artifact["sha256"], f"..%2f{answer['id']}%2f{artifact['sha256']}", "a%20b.md", "%2fetc%2fpasswd"):
            assert stranger.get(f"/claude/runs/{own['id']}/artifacts/{name}").status_code == 404, name
        assert owner.get(guesses[1]).status_code == 200  # the control


@pytest.mark.slow  # an invoker of its own
def test_while_the_store_is_away_answers_come_and_files_are_sent_when_it_is_back_by_the_next_invoker(
    start: Callable[..., Invoker], s3: S3, prefix: str
) -> None:
    one, other = start(), start()
    with client(one) as here, client(other) as there:
        with away(s3):
            answer = wrote(here)
            (artifact,) = answer["artifacts"]
            assert artifact["pending"] is True
            run = f"/claude/runs/{answer['id']}"
            assert here.get(artifact["href"]).text == CONTENT
            assert there.get(artifact["href"]).text == CONTENT, "by way of the one that has it"
            assert there.get(run).json()["artifacts"][0]["pending"] is True
            large = here.post("/claude/invoke", json={"prompt": "[[large 400000]]"}).json()
            assert len(there.get(f"/claude/runs/{large['id']}").json()["result"]["result"]) >= 400_000
            assert here.get("/readyz").status_code == 200
            one.stop()
            # It may come back, or not: until that is known, and after it.
            refused = there.get(artifact["href"])
            assert (refused.status_code, refused.json().get("pending", True)) == (503, True), refused.text
        for log in (one.log, other.log):
            text = log.read_text()
            assert SECRET not in text and ID not in text
        assert "the store cannot be used" in one.log.read_text()
        start(after=one)
        wait_for(lambda: f"artifacts/{answer['id']}/{artifact['sha256']}" in s3.names(prefix), what="that it is sent")
        wait_for(lambda: there.get(run).json()["artifacts"][0]["pending"] is False, what="that it is said")
        assert there.get(artifact["href"]).text == CONTENT


@pytest.mark.slow  # an invoker of its own
def test_what_is_over_goes_from_the_store(start: Callable[..., Invoker], s3: S3, prefix: str) -> None:
    invoker = start(retention_s=1)
    with client(invoker) as api:
        answer = wrote(api)
        name = f"artifacts/{answer['id']}/{answer['artifacts'][0]['sha256']}"
        assert name in s3.names(prefix)
        wait_for(lambda: name not in s3.names(prefix), what="its end")


@pytest.mark.slow  # an invoker of its own
def test_jobs_have_their_files_there_too(start: Callable[..., Invoker], s3: S3, prefix: str) -> None:
    worker, other = start(worker="embedded"), start()
    with client(worker) as here, client(other) as there:
        job = here.post(
            "/claude/jobs", json={"prompt": tool("Write", file_path="j.md", content=CONTENT), "tools": ["Write"]}
        ).headers["location"]
        wait_for(lambda: there.get(job).json()["state"] == "done", what="the job")
        (artifact,) = there.get(f"{job}/artifacts").json()
        assert (artifact["pending"], there.get(artifact["href"]).text) == (False, CONTENT)
        assert there.get(f"{job}/artifacts", params={"format": "zip"}).content[:2] == b"PK"


@pytest.mark.parametrize(
    ("store", "key"),
    [("s3://AKIA:hunter2@bucket", ""), ("s3://bucket?secret=hunter2", ""), ("s3://bucket", "hunter2")],
)
def test_what_keeps_it_from_starting_is_said_without_secrets(
    start_invoker: Callable[..., Invoker], store: str, key: str
) -> None:
    import subprocess
    import sys

    from tests.invoker.conftest import clean_environment

    given = {"INVOKER_STORE": store} | ({"INVOKER_STORE_KEY": key} if key else {})
    ended = subprocess.run(
        [sys.executable, "-m", "claude_invoker"],
        env=clean_environment() | given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, "INVOKER_STORE" in ended.stderr) == (2, True)
    assert "hunter2" not in ended.stderr + ended.stdout
