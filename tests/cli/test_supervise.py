"""Parts are started in order, restarted when they die, and never outlive the supervisor: with real processes."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from kong_claude_local.supervise import Part, PartFailed, Supervisor
from tests.support.processes import gone
from tests.support.waiting import wait_for


def part(name: str, code: str, ready: Path | None = None, ready_within: float = 30.0) -> Part:
    is_ready = ready.exists if ready else lambda: True
    return Part(name, [sys.executable, "-u", "-c", code], {}, is_ready, ready_within)


def stays(ready: Path) -> str:
    return f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); print('up'); time.sleep(60)"


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def test_output_is_labelled_and_kept(tmp_path: Path, out: io.StringIO) -> None:
    supervisor = Supervisor(tmp_path / "log", out)
    supervisor.start(part("web", stays(tmp_path / "r"), tmp_path / "r"))
    wait_for(lambda: "web      | up" in out.getvalue())
    supervisor.stop()
    assert "web | up" in (tmp_path / "log").read_text()


def test_a_part_that_ends_early_is_reported_with_its_last_words(tmp_path: Path, out: io.StringIO) -> None:
    supervisor = Supervisor(tmp_path / "log", out)
    with pytest.raises(PartFailed) as failed:
        supervisor.start(part("web", "print('no such file'); raise SystemExit(3)", tmp_path / "never"))
    supervisor.stop()
    assert failed.value.code == 3
    assert "no such file" in failed.value.last


def test_a_part_that_never_gets_ready_is_not_waited_for_for_ever(tmp_path: Path, out: io.StringIO) -> None:
    supervisor = Supervisor(tmp_path / "log", out)
    with pytest.raises(PartFailed, match="in time"):
        supervisor.start(part("web", "import time; time.sleep(60)", tmp_path / "never", ready_within=0.3))
    (_, process) = supervisor.running[0]
    supervisor.stop()
    assert process.poll() is not None


def test_a_killed_part_is_started_again(tmp_path: Path, out: io.StringIO) -> None:
    supervisor = Supervisor(tmp_path / "log", out)
    supervisor.start(part("web", stays(tmp_path / "r"), tmp_path / "r"))
    first = supervisor.running[0][1]
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    first.kill()
    wait_for(lambda: supervisor.running[0][1].pid != first.pid)
    supervisor.stopping.set()
    watcher.join()
    supervisor.stop()


def test_a_part_that_keeps_dying_is_given_up(tmp_path: Path, out: io.StringIO) -> None:
    supervisor = Supervisor(tmp_path / "log", out)
    supervisor.start(part("web", "raise SystemExit(1)"))
    assert supervisor.watch() == "web"
    supervisor.stop()


def test_a_part_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kong_claude_local.supervise.PATIENCE", 0.3)
    code = textwrap.dedent(f"""
        import pathlib, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
        time.sleep(60)
    """)
    supervisor = Supervisor(tmp_path / "log", out)
    supervisor.start(part("web", code, tmp_path / "child"))
    wait_for(lambda: (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    supervisor.stop()
    wait_for(lambda: gone(child))


def test_parts_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from kong_claude_local.supervise import Part, Supervisor
        s = Supervisor(Path({str(tmp_path / "log")!r}))
        s.start(Part("web", [sys.executable, "-c", {stays(tmp_path / "r")!r}], {{}}, Path({str(tmp_path / "r")!r}).exists))
        print(s.running[0][1].pid, flush=True)
        time.sleep(60)
    """)
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    pid = next(int(line) for line in supervisor.stdout if line.strip().isdigit())
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    wait_for(lambda: gone(pid))
