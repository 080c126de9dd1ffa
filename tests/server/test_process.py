"""The process: dumps, the socket file, signals, its parent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kong_claude.server.listener import Listener
from tests.server.conftest import PLUGINS
from tests.server.test_events import wait_for
from tests.support.kong_driver import Event, Request, Server
from tests.support.waiting import HANG_S

MAIN = [sys.executable, "-m", "kong_claude.server"]
NOISY = """
import os, subprocess, sys, warnings
print("printed at import")
os.write(1, b"written to the descriptor")
subprocess.run(["echo", "from a child"])
warnings.warn("a warning")
Schema = ({"rate": {"type": "number", "default": 1.0, "required": False}},)
version = "2.1"
priority = 17
class Plugin:
    def __init__(self, config): pass
    def access(self, kong): pass
    def log(self, kong): pass
"""


def run(*args: str, program: list[str] = MAIN) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*program, *args], capture_output=True, text=True, timeout=HANG_S)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/noisy.py").write_text(NOISY)
    return tmp_path / "plugins"


@pytest.mark.parametrize(
    ("flags", "one"),
    [(["--dump", "noisy"], False), (["--dump-all-plugins"], False), (["--dump-plugin-info", "noisy"], True)],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_dumps_print_json_and_nothing_else(noisy: Path, flags: list[str], one: bool) -> None:
    done = run("-d", str(noisy), *flags)
    info = json.loads(done.stdout)
    assert done.returncode == 0
    assert (info if one else info[0]) == {
        "Name": "noisy",
        "Phases": ["log", "access"],
        "Priority": 17,
        "Version": "2.1",
        "Schema": {
            "name": "noisy",
            "fields": [
                {
                    "config": {
                        "type": "record",
                        "fields": [{"rate": {"type": "number", "default": 1.0, "required": False}}],
                    }
                }
            ],
        },
    }
    assert "printed at import" in done.stderr and "from a child" in done.stderr


def test_the_dump_is_kong_pdks() -> None:
    theirs = run(
        "-d", str(PLUGINS), "--dump-all-plugins",
        program=[sys.executable, "-c", "from kong_pdk.cli import start_server; start_server()"],
    )  # fmt: skip
    ours = run("-d", str(PLUGINS), "--dump-all-plugins")

    def by_name(text: str) -> list[dict[str, object]]:
        return sorted(json.loads(text), key=lambda info: info["Name"])

    assert by_name(ours.stdout) == by_name(theirs.stdout)


def test_dump_of_one_plugin_does_not_load_others(noisy: Path) -> None:
    (noisy / "broken.py").write_text("raise RuntimeError('broken at import')")
    assert json.loads(run("-d", str(noisy), "--dump", "noisy").stdout)[0]["Name"] == "noisy"


@pytest.mark.parametrize("name", ["broken", "missing"])
def test_dump_of_what_cannot_be_loaded_fails(noisy: Path, name: str) -> None:
    (noisy / "broken.py").write_text("raise RuntimeError('broken at import')")
    done = run("-d", str(noisy), "--dump", name)
    assert done.returncode == 1 and done.stdout == "" and f"plugin {name}" in done.stderr


def test_on_error_must_be_a_known_word(noisy: Path) -> None:
    (noisy / "odd.py").write_text(NOISY + "\non_error = 'ignore'")
    done = run("-d", str(noisy), "--dump", "odd")
    assert done.returncode == 1 and "on_error must be 'deny' or 'pass'" in done.stderr


def test_flags_of_kong_pdk_are_accepted(start: Callable[..., Server]) -> None:
    for mode in ("-g", "-m"):
        server = start("-v", "--listen-queue-size", "16", "--no-lua-style", mode)
        with server.driver() as kong:
            assert kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()
        assert "-m and -g have no effect" in server.log
    assert run("--version").stdout.startswith("kong-claude-pluginserver ")


def test_sigterm_lets_running_events_end(start: Callable[..., Server]) -> None:
    server = start("--no-lua-style")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "sleep_100ms"})
        kong.send("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        server.process.send_signal(signal.SIGTERM)
        frame = kong.receive()
        assert frame[3]["Data"]["Method"] == "kong.request.get_header"
        with pytest.raises(OSError):
            server.driver().send("plugin.GetStatus", None)  # nobody listens any more
        step = kong.call("plugin.Step", {"EventId": frame[3]["EventId"], "Data": "h"})
        assert step["Data"] == "ret"
    assert server.process.wait(HANG_S) == 0
    assert not os.path.exists(server.socket_path)


def test_sigterm_refuses_what_does_not_end(start: Callable[..., Server]) -> None:
    server = start("--drain-timeout", "0.3")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "sleep_long"})
        kong.send("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        wait_for(lambda: kong and server.driver().call("plugin.GetStatus")["EventsInFlight"] == 1)
        server.process.send_signal(signal.SIGTERM)
        assert kong.receive()[3]["Data"]["Args"][0] == 503
    assert server.process.wait(HANG_S) == 0


def test_sigterm_closes_instances(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "closing.py").write_text(
        "class Plugin:\n    def __init__(self, c): self.path = c['path']\n"
        "    def access(self, kong): pass\n    def close(self): open(self.path, 'w').close()\n"
    )
    server = start(plugins=tmp_path)
    with server.driver() as kong:
        kong.start_instance("closing", {"path": str(tmp_path / "closed")})
        assert server.stop() == 0
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("mode", ["600", "0660"])
def test_socket_mode(start: Callable[..., Server], mode: str) -> None:
    server = start("--socket-mode", mode)
    assert stat.S_IMODE(os.stat(server.socket_path).st_mode) == int(mode, 8)
    assert os.listdir(Path(server.socket_path).parent) == ["log", "s.sock"] or sorted(
        os.listdir(Path(server.socket_path).parent)
    ) == ["log", "s.sock"]


def test_a_live_socket_is_refused_and_left_alone(start: Callable[..., Server]) -> None:
    server = start()
    prefix = str(Path(server.socket_path).parent)
    second = run("-d", str(PLUGINS), "-p", prefix, "--socket-name", "s.sock")
    assert second.returncode == 1
    assert re.search(rf"process {server.process.pid} listens there already", second.stderr)
    with server.driver() as kong:
        assert kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.sock").write_text("precious")
    done = run("-d", str(PLUGINS), "-p", str(tmp_path), "--socket-name", "s.sock")
    assert done.returncode == 1 and "is not a socket" in done.stderr
    assert (tmp_path / "s.sock").read_text() == "precious"


def test_a_socket_file_that_is_removed_comes_back(start: Callable[..., Server]) -> None:
    """As a tool that empties /tmp does it: Kong could make no new connection, and 500 was for ever what some requests got.
    What is connected goes on meanwhile."""
    server = start("--socket-mode", "0660")
    path = Path(server.socket_path)
    with server.driver() as before:
        instance = before.start_instance("battery", {"do": "nothing"})
        for _ in range(3):
            path.unlink()
            assert wait_for(path.exists)
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            with server.driver() as after:
                assert after.handle(instance, "access") == Event()
            assert before.handle(instance, "access") == Event()
    descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    path.unlink()
    assert wait_for(path.exists)
    with server.driver():
        pass
    assert wait_for(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) <= descriptors)
    assert sorted(os.listdir(path.parent)) == ["log", "s.sock"]
    assert server.stop() == 0
    assert not path.exists()


def test_a_socket_file_that_cannot_come_back_is_said_once(start: Callable[..., Server]) -> None:
    server = start()
    path = Path(server.socket_path)
    aside = path.parent.with_name(path.parent.name + "-aside")
    path.parent.rename(aside)
    log = aside / "log"
    assert wait_for(lambda: "cannot be there again" in log.read_text())
    time.sleep(1)
    assert log.read_text().count("cannot be there again") == 1
    aside.rename(path.parent)
    with server.driver() as kong:
        assert kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()


def test_a_newer_servers_socket_is_never_taken_back(tmp_path: Path) -> None:
    """It may come between the look and the doing."""
    old = Listener(str(tmp_path / "s.sock"), 0o600, 8)
    with pytest.MonkeyPatch.context() as meanwhile:
        old.path.unlink()
        meanwhile.setattr("kong_claude.server.listener.os.path.lexists", lambda path: False)
        newer = _listening(tmp_path / "s.sock")
        assert old.restored() is None
    assert old.superseded
    assert old.restored() is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.connect(str(tmp_path / "s.sock"))
        newer.accept()[0].close()
    newer.close()
    old.close()
    assert os.listdir(tmp_path) == ["s.sock"]


@pytest.mark.parametrize("alive", [True, False])
def test_a_server_of_a_dead_kong_leaves_the_path_to_the_next_one(tmp_path: Path, alive: bool) -> None:
    """Workers outlive a master that was killed, and `kong start` removes the sockets that it finds."""
    master: Any = SimpleNamespace(pid=1, alive=alive)
    old = Listener(str(tmp_path / "s.sock"), 0o600, 8, master)
    old.path.unlink()
    before = old.restored()
    assert (before is not None) == old.path.exists() == alive
    if before is not None:
        before.close()
    old.close()
    old.close_door()
    assert os.listdir(tmp_path) == []


def _listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    made.listen()
    return made


def test_killed_and_started_again_on_the_same_path(start: Callable[..., Server]) -> None:
    """The socket file of a killed process is stale; ids of its instances and events are nobody's."""
    server = start("--no-lua-style")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "one_call"})
        event = kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})["EventId"]
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    prefix = str(Path(server.socket_path).parent)
    again = subprocess.Popen(
        [*MAIN, "-d", str(PLUGINS), "-p", prefix, "--socket-name", "s.sock"], stderr=subprocess.PIPE
    )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            assert wait_for(lambda: probe.connect_ex(server.socket_path) == 0)
        with server.driver() as kong:
            with pytest.raises(Exception, match=r"^no plugin instance"):
                kong.handle(instance, "access")
            step = kong.call("plugin.Step", {"EventId": event, "Data": "stale"})
            assert step["Data"]["Args"][0] == 503
    finally:
        again.terminate()
        again.communicate(timeout=HANG_S)


def test_the_server_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Kong's worker is the parent; it is killed for real."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import subprocess, sys, time
                child = subprocess.Popen({[*MAIN, "-d", str(PLUGINS), "-p", str(tmp_path), "--socket-name", "s"]!r},
                                         stderr=subprocess.DEVNULL)
                print(child.pid, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert wait_for(lambda: (tmp_path / "s").exists())
    parent.kill()
    parent.communicate()

    def gone() -> bool:
        try:
            return " Z " in Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True

    assert wait_for(gone)
    assert not (tmp_path / "s").exists()


def test_inherited_descriptors_are_closed(start: Callable[..., Server]) -> None:
    """Kong's listening sockets must not stay open in a server that outlives it."""
    listening = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listening.fileno(), True)
    process = subprocess.Popen(
        [*MAIN, "-d", str(PLUGINS), "-p", "/tmp", "--socket-name", f"kc-{os.getpid()}.sock"],
        close_fds=False, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "serving" not in process.stderr.readline():
            pass
        inode = os.fstat(listening.fileno()).st_ino
        links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert f"socket:[{inode}]" not in links
    finally:
        listening.close()
        process.terminate()
        process.communicate(timeout=HANG_S)


def test_metrics(start: Callable[..., Server]) -> None:
    import urllib.error
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start("--no-lua-style", "--metrics-listen", f"127.0.0.1:{port}")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "one_call"})
        failing = kong.start_instance("battery", {"do": "raise_first"})
        for _ in range(3):
            kong.handle(instance, "access", Request(headers={"host": "h"}))
        kong.handle(failing, "access")
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S).read().decode()
        # prometheus_client raises over this Accept: that was a 500, which counts against the upstream in Kong.
        odd = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text;version=a"}
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(odd, timeout=HANG_S)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{phase="access",plugin="battery"}'
    assert values[f"pluginserver_event_seconds_count{labels}"] == "4.0"
    assert values[f"pluginserver_event_calls_total{labels}"] == "6.0"
    assert values[f"pluginserver_event_exceptions_total{labels}"] == "1.0"
    assert values[f"pluginserver_event_denied_total{labels}"] == "1.0"
    assert values["pluginserver_events_in_flight"] == "0.0"
    assert float(values["pluginserver_resident_memory_bytes"]) > 1e6
    assert float(values["pluginserver_loop_lag_seconds"]) < 5
    assert "python_info" in text  # the default registry: where plugins put theirs


def test_a_taken_metrics_address_does_not_stop_events(start: Callable[..., Server]) -> None:
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start("--metrics-listen", f"127.0.0.1:{port}")
        with server.driver() as kong:
            assert kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()
        assert wait_for(lambda: "trying on" in server.log)

    def metrics() -> bool:
        try:
            return b"pluginserver_" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S).read()
        except OSError:
            return False

    assert wait_for(metrics)


def test_the_log_goes_to_a_file_that_may_be_rotated(start: Callable[..., Server], tmp_path: Path) -> None:
    """Kong hides what a plugin server prints; and whoever reads JSON wants nothing else in the file."""
    path = tmp_path / "server.log"
    server = start("--no-lua-style", "--log-file", str(path), "--log-format", "json", "--event-timeout", "5")

    def lines(file: Path) -> list[dict[str, object]]:
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def says(file: Path, words: str) -> bool:
        return any(words in str(line["message"]) for line in lines(file))

    with server.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "raise_first"}), "access")
        kong.handle(kong.start_instance("battery", {"do": "burn_400ms"}), "access")
        assert wait_for(lambda: says(path, "uncaught") and says(path, "has kept the loop")), lines(path)
        path.rename(tmp_path / "old")
        kong.start_instance("battery", {"do": "nothing"})
        assert wait_for(lambda: says(path, "started"))
    assert {tuple(sorted(line)) for line in lines(tmp_path / "old")} == {("level", "message", "pid", "time")}
    assert {line["level"] for line in lines(tmp_path / "old")} >= {"info", "warn", "error"}
    assert server.log == ""


def test_the_log_level(start: Callable[..., Server]) -> None:
    server = start("--no-lua-style", "--log-level", "error")
    with server.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "raise_first"}), "access")
    assert wait_for(lambda: "uncaught" in server.log)
    assert "INFO" not in server.log and "WARN" not in server.log


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = run("-p", str(tmp_path), "--log-file", str(tmp_path / "nowhere" / "log"))
    assert done.returncode == 1
    assert done.stderr == f"--log-file {tmp_path}/nowhere/log: No such file or directory\n"
