"""A worker's health file: what is in it, when it grows old, and what the shipped probes make of it."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from claude_invoker import pulse
from claude_invoker.jobs.store import Store, connect
from claude_invoker.jobs.worker import Worker
from claude_invoker.settings import Settings
from tests.jobs.conftest import until
from tests.rate_tiers.servers import RedisProcess

ROOT = Path(__file__).resolve().parents[2]
FILE = "/run/claude-invoker/worker"


@dataclass
class Patient:
    said: str | None = None
    whole: bool = True

    async def obstacle(self) -> str | None:
        return self.said


@pytest.fixture
async def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Patient]:
    monkeypatch.setattr(pulse, "PERIOD_S", 0.02)
    made = Patient()
    async with pulse.pulse(tmp_path / "worker", made):
        yield made
    assert list(tmp_path.iterdir()) == []


async def test_it_says_what_keeps_it_from_its_work(patient: Patient, tmp_path: Path) -> None:
    file = tmp_path / "worker"
    assert file.read_text() == "ready\n"

    async def says(text: str) -> bool:
        return file.read_text() == text

    patient.said = "Redis cannot be used: away"
    await until(lambda: says("Redis cannot be used: away\n"), "the obstacle")
    patient.said = None
    await until(lambda: says("ready\n"), "the end of it")


async def test_it_grows_old_where_a_part_has_ended(
    patient: Patient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "worker"

    async def written_anew() -> bool:
        os.utime(file, (1, 1))
        await asyncio.sleep(0.1)
        return file.stat().st_mtime > 1

    await until(written_anew, "a beat (control)")
    patient.whole = False

    async def said() -> bool:
        return "only a new start mends" in caplog.text

    await until(said, "the log")
    assert not await written_anew()


async def test_a_directory_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with pulse.pulse(tmp_path / "none" / "worker", Patient()):
            pass


async def test_a_worker_is_not_ready_without_redis_and_not_whole_without_a_part(redis_server: RedisProcess) -> None:
    class Engine:
        draining = False
        obstacle: str | None = None

    redis = connect(redis_server.url)
    engine: Any = Engine()
    worker = Worker(Settings(), engine, Store(redis), *(None,) * 2)  # type: ignore[arg-type]
    assert await worker.obstacle() is None
    engine.obstacle = "no CLI"
    assert await worker.obstacle() == "no CLI"
    worker.store = Store(connect("redis://127.0.0.1:1"))
    assert (await worker.obstacle() or "").startswith("Redis cannot be used: ")
    await worker.store.redis.aclose()
    await redis.aclose()
    engine.draining = True
    assert await worker.obstacle() == "the worker is stopping"
    lasting = asyncio.create_task(asyncio.sleep(60))
    worker.tasks = [lasting]
    assert worker.whole
    lasting.cancel()
    await asyncio.gather(lasting, return_exceptions=True)
    assert not worker.whole


def kubernetes() -> dict[str, list[str]]:
    pods = [
        d for d in yaml.safe_load_all((ROOT / "deploy/kubernetes/worker.yaml").read_text()) if "template" in d["spec"]
    ]
    (container,) = pods[0]["spec"]["template"]["spec"]["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == str(Path(FILE).parent)]
    assert mount["name"] == "health"
    assert {"name": "INVOKER_HEALTH_PATH", "value": FILE} in container["env"]
    return {kind: container[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")}


def compose() -> list[str]:
    worker = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    assert worker["environment"]["INVOKER_HEALTH_PATH"] == FILE
    assert any(entry.startswith(str(Path(FILE).parent)) for entry in worker["tmpfs"])
    shell, command = worker["healthcheck"]["test"]
    assert shell == "CMD-SHELL"
    return ["sh", "-c", command.replace("$$", "$")]


def documented() -> list[list[str]]:
    text = (ROOT / "docs/jobs.md").read_text()
    (block,) = [b for b in text.split("```sh\n")[1:] if FILE in b]
    return [["sh", "-c", line] for line in block.partition("```")[0].splitlines() if line]


def passes(command: list[str], file: Path) -> bool:
    here = [word.replace(FILE, shlex.quote(str(file))) for word in command]
    return subprocess.run(here, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "age", "ready", "alive"),
    [
        ("ready\n", 0, True, True),
        ("Redis cannot be used: ready\n", 0, False, True),
        ("ready\n", 300, True, False),
        (None, 0, False, False),
    ],
    ids=["ready", "not ready", "hangs", "not there"],
)
def test_the_shipped_probes(text: str | None, age: int, ready: bool, alive: bool, tmp_path: Path) -> None:
    file = tmp_path / "worker"
    if text is not None:
        file.write_text(text)
        os.utime(file, (time.time() - age,) * 2)
    found = {kind: passes(command, file) for kind, command in kubernetes().items()}
    assert found == {"startup": text is not None, "readiness": ready, "liveness": alive}
    assert passes(compose(), file) == (ready and alive)
    assert [passes(command, file) for command in documented()] == [ready, alive]
