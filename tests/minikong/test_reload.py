"""SIGHUP: the declarative config is read anew; one that Kong would refuse changes nothing."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import HANG_S

CONFIG = """\
_format_version: "3.0"
routes: [{{name: all, paths: ["/"]}}]
plugins: [{{name: request-termination, config: {{status_code: 200, message: {message}}}}}]
"""


class Kong:
    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "minikong", "--config", str(config), "--admin-listen", "off"]
        self.process = subprocess.Popen(
            [*command, "--proxy-listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True, cwd=config.parent
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            if found := re.search(r"listening on http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=self.lines.extend, args=(self.process.stderr,), daemon=True).start()

    def ask(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        connection.request("GET", "/")
        body = connection.getresponse().read().decode()
        connection.close()
        return body

    def wait_for(self, said: str) -> None:
        deadline = time.monotonic() + HANG_S
        while not any(said in line for line in list(self.lines)):
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.02)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "kong.yml"
    path.write_text(CONFIG.format(message="first"))
    return path


@pytest.fixture
def kong(config: Path) -> Iterator[Kong]:
    running = Kong(config)
    yield running
    running.process.kill()
    running.process.wait()


def test_a_reload_takes_the_new_config(kong: Kong, config: Path) -> None:
    assert "first" in kong.ask()
    config.write_text(CONFIG.format(message="second"))
    kong.process.send_signal(signal.SIGHUP)
    kong.wait_for("reloaded")
    answers = [kong.ask() for _ in range(60)]
    # As in Kong the workers from before go on for a while: both answer.
    assert any("second" in answer for answer in answers)
    assert any("first" in answer for answer in answers)
    kong.process.send_signal(signal.SIGTERM)
    assert kong.process.wait(HANG_S) == 0


def test_a_bad_config_changes_nothing(kong: Kong, config: Path) -> None:
    config.write_text(CONFIG.format(message="second").replace("message:", "massage:"))
    kong.process.send_signal(signal.SIGHUP)
    kong.wait_for("not reloaded: " + str(config))
    assert {("first" in kong.ask()) for _ in range(10)} == {True}
