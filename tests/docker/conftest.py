"""The compose stack as the gateway of the end-to-end scenarios.

`make test-docker` runs them with real Kong; with MINIKONG=1 minikong stands in Kong's place. Without an engine, or without
the images, the tests are skipped, unless KONG_CLAUDE_DOCKER=required.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Gateway, free_port

ROOT = Path(__file__).resolve().parents[2]
MINIKONG = os.environ.get("MINIKONG") == "1"
FILES = ["docker-compose.yml", *(["docker-compose.minikong.yml"] if MINIKONG else [])]
IMAGES = [*([] if MINIKONG else ["kong:3.9.3"]), "redis:7.4-alpine", "python:3.12-slim"]


def missing(*images: str) -> str | None:
    """Why these tests cannot run here, or None. `images`: what they need besides what is built."""
    if shutil.which("docker") is None:
        return "no docker command"
    for command, reason in (
        (["docker", "info"], "no Docker engine answers"),
        (["docker", "compose", "version"], "no docker compose"),
        *(
            (["docker", "image", "inspect", image], f"image {image} is not there: docker pull it")
            for image in images or IMAGES
        ),
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return reason
    return None


def skip_or_fail(*images: str) -> None:
    reason = missing(*images)
    if reason and os.environ.get("KONG_CLAUDE_DOCKER") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@dataclass
class Container:
    """A process inside a service's container, as far as scenarios need it."""

    compose: ComposeGateway
    service: str
    word: str

    def kill(self) -> None:
        # The brackets keep the shell that runs this from finding itself.
        pattern = f"[{self.word[0]}]{self.word[1:]} .*--socket-name"
        script = (
            "for p in /proc/[0-9]*; do if tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q -- "
            f"'{pattern}'; then kill -9 ${{p#/proc/}}; fi; done; true"
        )
        self.compose.run("exec", "-T", self.service, "sh", "-c", script)


class ComposeGateway(Gateway):
    """The scenarios' view of the compose stack."""

    def run(self, *words: str) -> str:
        files = [part for file in FILES for part in ("-f", file)]
        command = [
            "docker",
            "compose",
            "-p",
            "kong-claude-test",
            *files,
            "--profile",
            "stub",
            *words,
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        port = self.url.rpartition(":")[2]
        return dict(os.environ) | {
            "ANTHROPIC_BASE_URL": "http://standin:8101",
            "KONG_CLAUDE_PORT": port,
        }

    def token(self, subject: str = "alice", *options: str) -> str:
        return self.run("run", "--rm", "-T", "tools", "token", "--sub", subject, *options).strip()

    def record(self) -> list[dict[str, Any]]:
        text = self.run("exec", "-T", "standin", "sh", "-c", "cat /tmp/standin.jsonl 2>/dev/null || true")
        return [json.loads(line) for line in text.splitlines()]

    def processes(self, word: str) -> list[Any]:
        return [Container(self, "kong", word)]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeGateway]:
    skip_or_fail()
    stack = ComposeGateway(f"http://127.0.0.1:{free_port()}", "", tmp_path_factory.mktemp("compose"), 0)
    try:
        stack.run("up", "-d", "--wait", *([] if os.environ.get("KONG_CLAUDE_NO_BUILD") else ["--build"]))
        yield stack
    finally:
        print(stack.run("logs", "--no-color", "--tail", "60"))
        stack.run("down", "-v", "--remove-orphans", "--timeout", "20")
