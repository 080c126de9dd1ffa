"""`kong reload` as the plugin server sees it: a new worker's server beside the old one's, and what is lost: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.server.conftest import PLUGINS
from tests.server.test_events import wait_for
from tests.support.kong_driver import Driver, Event, Request, RPCError
from tests.support.processes import command_line, gone
from tests.support.waiting import HANG_S

# nginx as far as a plugin server can tell: a worker ends with SIGTERM to what it has started and SIGKILL at once.
WORKER = """
import subprocess, sys
open("/proc/self/comm", "w").write("nginx")
servers = []
for line in sys.stdin:
    if line == "end\\n":
        break
    servers.append(subprocess.Popen(sys.argv[1:]))
    print(servers[-1].pid, flush=True)
for server in servers:
    server.terminate()
    server.kill()
"""
MASTER = """
import subprocess, sys
open("/proc/self/comm", "w").write("nginx")
workers = []
for line in sys.stdin:
    what, _, number = line.strip().partition(" ")
    if what == "worker":
        command = [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
    else:
        worker = workers[int(number)]
        worker.stdin.write(what + "\\n")
        worker.stdin.flush()
        if what == "end":
            worker.wait()
            print("ended", flush=True)
"""


class Kong:
    """A master without workers at first; each server it starts logs into `log`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "s.sock"
        self.log_path = directory / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        server = [sys.executable, "-m", "kong_claude.server", "-d", str(PLUGINS), "-p", str(directory)]
        server += ["--socket-name", "s.sock", "--no-lua-style", "--metrics-listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", MASTER, WORKER, *server],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log_path.open("wb"), text=True,
        )  # fmt: skip
        self.workers = 0

    def _tell(self, words: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return "" if words == "worker" else self.process.stdout.readline()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def start(self, worker: int | None = None) -> int:
        """A new worker (or that one) starts a server; once it serves, its process number."""
        if worker is None:
            worker = self.workers
            self.workers += 1
            self._tell("worker")
        before = self.log.count("serving ")
        keeper = int(self._tell(f"start {worker}"))
        assert wait_for(lambda: self.log.count("serving ") > before or gone(keeper)), self.log
        (server,) = psutil.Process(keeper).children()
        return server.pid

    def end(self, worker: int) -> None:
        assert self._tell(f"end {worker}") == "ended\n"

    def events(self) -> float:
        """How many access events of the plugin battery there were, as the metrics say."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=HANG_S).read().decode()
        wanted = 'pluginserver_event_seconds_count{phase="access",plugin="battery"} '
        return next((float(line[len(wanted) :]) for line in text.splitlines() if line.startswith(wanted)), 0.0)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def kong(tmp_path: Path) -> Iterator[Kong]:
    kong = Kong(tmp_path)
    yield kong
    kong.stop()
    assert wait_for(lambda: not [p for p in psutil.process_iter() if str(tmp_path) in command_line(p)])


def test_a_reload_loses_nothing(kong: Kong) -> None:
    old = kong.start()
    with Driver(kong.path) as pooled, Driver(kong.path) as busy, Driver(kong.path) as fresh:
        config = {"do": "one_call"}
        instance = pooled.start_instance("battery", config)
        assert pooled.handle(instance, "access", Request(headers={"host": "h"})).methods
        under_way = busy.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        new = kong.start()
        # A step for the old server's event comes to the new one, on a new connection.
        number = under_way["EventId"]
        assert fresh.call("plugin.Step", {"EventId": number, "Data": "h"})["Data"]["Args"] == ["host", "h"]
        assert fresh.call("plugin.Step", {"EventId": number})["Data"] == "ret"
        assert wait_for(lambda: gone(old)), kong.log
        # The connections that Kong keeps live on; the instance is nobody's, upon which Kong starts it again.
        for driver in (pooled, busy):
            with pytest.raises(RPCError, match="no plugin instance"):
                driver.handle(instance, "access")
        assert pooled.handle(pooled.start_instance("battery", config), "access").exit is None
        assert kong.events() == 3
    kong.end(0)
    assert not gone(new)
    kong.start()
    assert wait_for(lambda: gone(new)), kong.log
    assert kong.events() == 3


def test_control_a_step_that_cannot_be_handed_over_is_refused(kong: Kong) -> None:
    old = kong.start()
    with Driver(kong.path) as busy, Driver(kong.path) as fresh:
        instance = busy.start_instance("battery", {"do": "one_call"})
        event = busy.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})["EventId"]
        kong.start()
        (path,) = kong.path.parent.glob(f".s.sock.*.{old}")
        path.unlink()
        answer = fresh.call("plugin.Step", {"EventId": event, "Data": "h"})
        assert answer["Data"]["Args"][0] == 503
    os.kill(old, signal.SIGKILL)  # it would wait for the event that nobody can end


def test_somebody_listens_between_an_old_worker_and_the_next_server(kong: Kong) -> None:
    """Kong has ended the worker, and by SIGKILL what it started, before the new worker's server is there."""
    old = kong.start()
    with Driver(kong.path) as pooled:
        instance = pooled.start_instance("battery", {"do": "nothing"})
        kong.end(0)
        assert pooled.handle(instance, "access") == Event()
        with Driver(kong.path) as fresh:
            assert fresh.handle(instance, "access") == Event()
        kong.start()
        assert wait_for(lambda: gone(old)), kong.log
        assert pooled.call("plugin.GetStatus", None)["Pid"] != old
        assert kong.events() == 2


def test_it_ends_with_kong(kong: Kong) -> None:
    server = kong.start()
    kong.stop()
    assert wait_for(lambda: gone(server)), kong.log
    assert not list(kong.path.parent.glob("*.sock*")) and not list(kong.path.parent.glob(".s.sock*"))


def test_two_servers_of_one_worker_do_not_take_turns(kong: Kong) -> None:
    """Two entries of Kong's configuration with the same start command."""
    first = kong.start()
    with pytest.raises((psutil.Error, ValueError)):
        kong.start(worker=0)
    assert "listens there already" in kong.log
    assert not gone(first)


def test_a_door_of_another_user_is_not_believed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user is for root")
    from kong_claude.server.siblings import _exchange

    tmp_path.chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    listening = """
import os, socket, sys, msgpack
os.setuid(65534)
made = socket.socket(socket.AF_UNIX); made.bind(sys.argv[1]); made.listen(); os.chmod(sys.argv[1], 0o666)
print("there", flush=True)
while True:
    came, _ = made.accept(); came.recv(100); came.sendall(msgpack.packb([1, 0, None, "mine"]))
"""
    for uid in (0, 65534):  # the control: the same door, our own
        path = tmp_path / f"door{uid}"
        program = listening.replace("65534", str(uid))
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            if uid:
                with pytest.raises(PermissionError, match="another user's"):
                    _exchange(path, [0, 0, "siblings.Ask", [["x", None]]], HANG_S)
            else:
                assert _exchange(path, [0, 0, "siblings.Ask", [["x", None]]], HANG_S)[1][3] == "mine"
        finally:
            process.kill()
            process.communicate()
