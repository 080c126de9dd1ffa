"""`kong-claude up --kong`: a real Kong in minikong's place. What needs one runs with KONG=… (make test-kong)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from kong_claude.problem import Problem
from kong_claude_local import real_kong
from tests.e2e.conftest import COMMAND, ROOT, free_port, own_environment, up
from tests.support.waiting import HANG_S

KONG = os.environ.get("KONG")


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("3.9.1", None),
        ("Kong Enterprise 3.10.0.2", None),
        ("3.8.0", "3.8.0, the plugins need 3.9 or newer"),
        ("2.8.5", "need 3.9 or newer"),
        ("a toy of that name", "does not say its version"),
    ],
)
def test_only_a_kong_that_the_plugins_run_on(tmp_path: Path, says: str, problem: str | None) -> None:
    kong = program(tmp_path / "kong", f"print({says!r})")
    if problem is None:
        assert real_kong.version(kong) in says
    else:
        with pytest.raises(Problem, match=problem):
            real_kong.version(kong)


def test_a_kong_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [COMMAND, "up", "--kong", "/nowhere/kong", "--config", str(ROOT / "kong.yml")]
    said = subprocess.run(command, env=own_environment(tmp_path), capture_output=True, text=True, timeout=HANG_S)
    assert said.returncode == 2
    assert "there is no program /nowhere/kong" in said.stderr
    assert "--kong PATH" in said.stderr


# As `kong start` in the foreground: it starts nginx, waits for it, and a signal would end it alone.
AS_KONG = """
import os, subprocess, sys, time
prefix = os.environ["KONG_PREFIX"]
nginx = subprocess.Popen([sys.executable, "-c", '''
import os, signal, subprocess, sys, time
os.makedirs(os.environ["KONG_PREFIX"] + "/pids", exist_ok=True)
worker = subprocess.Popen(["sleep", "600"])
open(os.environ["KONG_PREFIX"] + "/worker", "w").write(str(worker.pid))
def quit(*_):
    open(os.environ["KONG_PREFIX"] + "/ended", "w").write("in order")
    worker.kill(); worker.wait(); sys.exit(0)
signal.signal(signal.SIGQUIT, quit)
open(os.environ["KONG_PREFIX"] + "/pids/nginx.pid", "w").write(str(os.getpid()) + "\\\\n")
while True: time.sleep(1)
'''])
sys.exit(nginx.wait())
"""


@pytest.mark.parametrize("how", ["asked", "master killed"])
def test_kong_ends_whole(tmp_path: Path, how: str) -> None:
    """Asked to stop it ends in order; and a worker, which outlives a master that was killed, does not keep the ports."""
    kong = program(tmp_path / "kong", AS_KONG)
    left = tmp_path / "admin.sock"  # of a nginx that was killed
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(left))
    environment = {**os.environ, "KONG_PREFIX": str(tmp_path), "KONG_NGINX_ADMIN_LISTEN": f"unix:{left}"}
    process = subprocess.Popen(
        [sys.executable, "-m", real_kong.__name__, kong], env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + HANG_S
        while not (tmp_path / "pids" / "nginx.pid").exists() or not (tmp_path / "pids" / "nginx.pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not left.exists()
        worker = psutil.Process(int((tmp_path / "worker").read_text()))
        if how == "asked":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(int((tmp_path / "pids" / "nginx.pid").read_text()), signal.SIGKILL)
        process.wait(HANG_S)
        assert (tmp_path / "ended").exists() == (how == "asked")
        psutil.wait_procs([worker], timeout=HANG_S)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.skipif(not KONG, reason="needs a real Kong: KONG=/path/to/kong make test-kong")
def test_the_admin_api_of_a_real_kong_is_for_our_own_user(tmp_path: Path) -> None:
    home = Path("/tmp") / f"kc-admin-{os.getpid()}"  # unix sockets' paths end at 108 bytes
    port = free_port()
    started = up(home, port)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert "(Kong 3." in started.stdout
        running = json.loads((home / "stack.json").read_text())
        with httpx.Client(transport=httpx.HTTPTransport(uds=running["admin"].removeprefix("unix:"))) as own:
            assert own.get("http://admin/status").status_code == 200
        host = running["invoker"].removeprefix("http://").rpartition(":")[0]
        for method, path in (("GET", "/"), ("GET", "/status"), ("POST", "/config"), ("GET", "/%2e/config")):
            assert httpx.request(method, f"http://{host}:8110{path}").status_code == 403
    finally:
        subprocess.run([COMMAND, "down"], env=own_environment(home), check=True, timeout=HANG_S)
