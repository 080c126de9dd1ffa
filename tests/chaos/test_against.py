"""`make chaos BASE_URL=…`: a gateway of somebody else's, whose limits the load may meet, and a command of his."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.chaos import __main__ as command_line
from tests.chaos import suite

ROOT = Path(__file__).resolve().parents[2]


class Gateway(ThreadingHTTPServer):
    """Serves who has the token `valid`, ten times; then says 429. `broken`: 503 for all."""

    daemon_threads = True

    def __init__(self) -> None:
        self.left = 10
        self.broken = False
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        valid = self.headers.get("Authorization") == "Bearer valid-token"
        self.server.left -= valid
        status = 503 if self.server.broken else 401 if not valid else 200 if self.server.left >= 0 else 429
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.shutdown()
    made.server_close()


def run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str = "true") -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "valid-token")
    monkeypatch.setenv("FAULT_COMMAND", command)
    monkeypatch.setattr(
        sys, "argv", ["chaos", "--base-url", f"http://127.0.0.1:{gateway.server_port}", "--rounds", "1"]
    )
    return command_line.main()


def test_a_token_that_meets_its_own_limit_is_no_fault(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(gateway, monkeypatch, tmp_path, "echo $HOME > home") == 0
    (row,) = json.loads((tmp_path / "build" / "chaos.json").read_text()).values()
    assert row["limited"] > 0
    assert row["valid_refused"] == 0
    assert row["recover_max_s"] < suite.GIVE_UP
    assert (tmp_path / "home").read_text().strip()


def test_a_gateway_that_does_not_come_back_is_a_failure(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway.broken = True
    for module in (suite, command_line):
        monkeypatch.setattr(module, "GIVE_UP", 1.5)
    assert run(gateway, monkeypatch, tmp_path) == 1


def test_the_command_arrives_as_it_was_written(tmp_path: Path) -> None:
    """`$` is make's, and the shell's that make starts."""
    said = """kill -9 $(cat "/tmp/a b.pid") $HOME $$ 'x'"""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport os, sys\nprint(repr([sys.argv[1:], os.environ['FAULT_COMMAND']]))\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "chaos", "BASE_URL=http://x", f"FAULT_COMMAND={said}", f"BIN={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert repr([["-m", "tests.chaos", "--base-url", "http://x"], said]) in done.stdout
