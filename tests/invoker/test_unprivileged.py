"""An invoker that was not started as root: one user for all runs, and what that forbids."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.invoker.conftest import KEY, StandInProcess, clean_environment, free_port, tool, wait_for

NOBODY = 65_534
AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def interpreter() -> str:
    """A Python of this version that an unprivileged user can start (ours may be in a closed home)."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run([candidate, "-c", ""], check=True, **AS_NOBODY)
        except OSError:
            continue
        return candidate
    pytest.skip("no Python that an unprivileged user can start")


def start(stand_in: StandInProcess, folder: Path, **settings: str) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    port = free_port()
    # redis-py needs this backport before Python 3.11.3, which the system's may be.
    (folder / "async_timeout.py").write_text("from asyncio import timeout\n")
    environment = clean_environment() | {
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(folder)]),
        "INVOKER_TRUST": "open",
        "INVOKER_ISOLATION": "none",
        "INVOKER_PORT": str(port),
        "INVOKER_STATE_DIR": str(folder / "state"),
        "INVOKER_ANTHROPIC_BASE_URL": stand_in.url,
        "INVOKER_ANTHROPIC_API_KEY": KEY,
        **settings,
    }
    process = subprocess.Popen(
        [interpreter(), "-m", "claude_invoker"],
        env=environment,
        cwd=folder,
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        **AS_NOBODY,
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def ready() -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return process.poll() is not None

    wait_for(ready, what="readiness")
    assert process.poll() is None, (folder / "log").read_text()
    return process, client


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="invoker-test-") as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def test_tools_that_run_commands_need_a_user_for_each_run(stand_in: StandInProcess, folder: Path) -> None:
    process, client = start(stand_in, folder)
    try:
        assert client.post("/invoke", json={"prompt": "x", "tools": ["Bash"]}).status_code == 403
        answer = client.post("/invoke", json={"prompt": tool("Write", file_path="a.txt", content="x")})
        assert answer.status_code == 200, answer.text
        assert [artifact["path"] for artifact in answer.json()["artifacts"]] == ["a.txt"]
    finally:
        client.close()
        process.terminate()
        process.wait(20)


def test_a_shared_user_can_be_chosen_and_runs_still_end(stand_in: StandInProcess, folder: Path) -> None:
    process, client = start(stand_in, folder, INVOKER_ALLOW_COMMANDS_BELOW="1")
    try:
        seconds = str(20_000_000 + os.getpid())
        escape = f"setsid -f sleep {seconds}; (setsid -f nohup sleep {seconds} >/dev/null 2>&1 &); id -u"
        prompt = tool("Bash", command=escape)
        answer = client.post("/invoke", json={"prompt": prompt, "tools": ["Bash"]})
        assert answer.status_code == 200, answer.text
        cmdlines = [found.info["cmdline"] for found in psutil.process_iter(["cmdline"])]
        assert ["sleep", seconds] not in cmdlines
        assert client.get("/healthz").status_code == 200, "the invoker has the same user, and lives"
    finally:
        client.close()
        process.terminate()
        process.wait(20)
