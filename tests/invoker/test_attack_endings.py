"""Runs that do what they can against being ended: stopping their killer, leaving trees that nobody can walk through.
Each attack also runs against an invoker without the defence, where it must succeed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from claude_invoker.cli import kill, killer
from claude_invoker.cli.kill import Killer, StillAlive, owners
from claude_invoker.cli.tree import CATALOGS
from tests.invoker.conftest import Invoker, as_root, bash, defended_and_without, program, wait_for, without_boundary
from tests.invoker.ordinary import interpreter
from tests.invoker.test_attack_sessions import answer
from tests.support.processes import command_line
from tests.support.waiting import HANG_S


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


pytestmark = [as_root, pytest.mark.xdist_group("unbounded")]

# Stops every new process of its own user; the killer was one. It ends by itself.
FREEZER = """
import os, signal, sys, time
if os.fork(): sys.exit()
os.setsid()
me, end = os.getpid(), time.time() + float(sys.argv[1])
open("freezing", "w").close()
loadavg = open("/proc/loadavg")
while time.time() < end:
    loadavg.seek(0)
    newest = int(loadavg.read().split()[-1])
    for pid in range(max(2, newest - 8), newest + 6):
        if pid != me:
            try: os.kill(pid, signal.SIGSTOP)
            except OSError: pass
"""


def of_runs(uids: range) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real in uids and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(uids: range) -> None:
    for process in of_runs(uids):
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.mark.parametrize("without", defended_and_without("killer_that_can_be_stopped"))
def test_the_killer_cannot_be_stopped(start_invoker: Callable[..., Invoker], without: tuple[str, ...]) -> None:
    invoker = start_invoker(without=without, pool_size=0, max_runs=8, queue_wait_s=5, idle_s=60)
    attackers = []
    for _ in range(6):
        client = invoker.client()
        request = client.build_request(
            "POST",
            "/invoke",
            json={"prompt": f"[[tool Bash {_json(program(FREEZER, '8') + '; sleep 60')}]]", "tools": ["Bash"]},
            headers={"Accept": "text/event-stream"},
        )
        attackers.append((client, client.send(request, stream=True)))
    wait_for(lambda: len(list(invoker.state.glob("trees/engines/*/*/work/freezing"))) == 6, what="the attackers")
    for client, stream in attackers:
        stream.close()
        client.close()  # which cancels the run
    if without:
        stopped = "a stopped killer"
        stays = invoker.uids
        wait_for(
            lambda: any("kill -9 -1" in command_line(p) and p.status() == "stopped" for p in of_runs(stays)),
            what=stopped,
        )
        os.kill(invoker.pid, signal.SIGKILL)  # it waits for that one for ever
        kill_all(stays)
        return
    with invoker.client() as victim:
        assert victim.post("/invoke", json={"prompt": "[[say fine]]"}).json()["result"] == "fine"
        assert victim.get("/readyz").status_code == 200
    wait_for(lambda: not left(invoker), what="the end of all attackers")
    assert [process for process in of_runs(invoker.uids) if process.ppid() == invoker.pid] == []
    assert httpx.get(f"{invoker.url}/readyz").json()["checks"]["lost_users"] == 0


def test_an_invoker_that_cannot_end_runs_is_not_ready(start_invoker: Callable[..., Invoker]) -> None:
    """Readiness is whether a run could start, not whether one could have once."""
    invoker = start_invoker(without=("killer_that_never_answers",), wait=False, pool_size=0)
    wait_for(lambda: _answers(invoker), what="the server")
    time.sleep(1)
    answer = httpx.get(f"{invoker.url}/readyz")
    assert answer.status_code == 503
    assert answer.json()["obstacle"]
    os.kill(invoker.pid, signal.SIGKILL)


def _answers(invoker: Invoker) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{invoker.url}/healthz").status_code == 200
    return False


def _json(command: str) -> str:
    import json

    return json.dumps({"command": command})


# The killer itself.

KILLER = 239_000
UID = KILLER + 1 + os.getpid() % 400  # another for each worker of these tests


@pytest.fixture
async def ending() -> AsyncIterator[Killer]:
    found = Killer(KILLER)
    yield found
    await found.stop()


def swarm(count: int, source: str) -> subprocess.Popen[bytes]:
    """Processes of one user, each of which runs `source`. They are not waited for: they may stop the first of them."""
    code = (
        "import os, signal, sys, time\nready, go = os.pipe()\n"
        f"for _ in range({count}):\n    if not os.fork():\n        os.close(go); os.read(ready, 1); break\n"
        f"else: os.close(go)\n{source}"
    )
    return subprocess.Popen([interpreter(), "-c", code], user=UID, group=UID, extra_groups=(), cwd="/")


async def test_two_hundred_processes_that_resist(ending: Killer) -> None:
    """Each in a session of its own, deaf to what one can be deaf to, stopping whatever it may stop."""
    hostile = """
os.setsid()
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP): signal.signal(number, signal.SIG_IGN)
end = time.time() + 60
while time.time() < end:
    for pid in range(2, 60000):
        if pid != os.getpid():
            try: os.kill(pid, signal.SIGSTOP)
            except OSError: pass
"""
    first = swarm(200, hostile)
    try:
        wait_for(lambda: killer.alive(UID) > 150, what="the swarm")
        await ending.end(UID, 20)
        assert killer.alive(UID) == 0
    finally:
        first.kill()
        first.wait(HANG_S)


async def test_a_fork_bomb(ending: Killer) -> None:
    bomb = """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (60, 60))
end = time.time() + 60
while time.time() < end:
    try: os.fork()
    except OSError: pass
"""
    first = swarm(1, bomb)
    try:
        wait_for(lambda: killer.alive(UID) > 40, what="the bomb")
        await ending.end(UID, 20)
        assert killer.alive(UID) == 0
    finally:
        first.kill()
        first.wait(HANG_S)


@pytest.fixture
def few_processes() -> Iterator[Path]:
    """A group of processes whose number can be bounded, as a container's is."""
    for root in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = root / f"invoker-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / "pids.max").exists():
                break
            group.rmdir()
    else:
        pytest.skip("no cgroup can be made here to bound the number of processes")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the end of all in the group")
    group.rmdir()


async def test_runs_that_have_all_processes_are_ended(ending: Killer, few_processes: Path) -> None:
    """As two runs of 256 processes have in a container of 512: the killer cannot fork."""
    await ending.end(UID, 20)  # it is there
    assert ending._process is not None
    first = swarm(20, "os.setsid()\ntime.sleep(60)")
    try:
        wait_for(lambda: killer.alive(UID) == 21, what="the swarm")
        of_swarm = [process.pid for process in of_runs(range(UID, UID + 1))]
        for pid in (ending._process.pid, *of_swarm):
            (few_processes / "cgroup.procs").write_text(str(pid))
        (few_processes / "pids.max").write_text("22")
        await ending.end(UID, 20)
        assert killer.alive(UID) == 0
        assert ending._process.returncode is None
    finally:
        first.kill()
        first.wait(HANG_S)
        await ending.stop()


async def test_runs_whose_remains_have_all_processes_have_ended(ending: Killer, few_processes: Path) -> None:
    """A zombie is a process to the kernel's bound: where nobody waits for them, no process can be made ever again."""
    await ending.end(UID, 20)  # it is there
    assert ending._process is not None
    those = [subprocess.Popen(["/bin/sleep", "60"], user=UID, group=UID, extra_groups=(), cwd="/") for _ in range(20)]
    try:
        for pid in (ending._process.pid, *(process.pid for process in those)):
            (few_processes / "cgroup.procs").write_text(str(pid))
        (few_processes / "pids.max").write_text("21")
        await ending.end(UID, 20)
        assert killer.alive(UID) == 0
        assert int((few_processes / "pids.current").read_text()) == 21, "the control: they are still there"
    finally:
        for process in those:
            process.kill()
            process.wait(HANG_S)
        await ending.stop()


async def test_runs_end_side_by_side(ending: Killer) -> None:
    await asyncio.gather(*(ending.end(KILLER + 500 + number, 20) for number in range(50)))


async def test_a_killer_that_died_is_started_again(ending: Killer) -> None:
    await ending.end(UID, 20)
    assert ending._process is not None
    ending._process.kill()
    await ending._process.wait()
    await ending.end(UID, 20)


async def test_a_killer_that_hangs_is_given_up(ending: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    program = kill._PROGRAM
    monkeypatch.setattr(kill, "_PROGRAM", Path(__file__).with_name("deaf.py"))
    monkeypatch.setattr(kill, "_MARGIN_S", 0.2)
    with pytest.raises(StillAlive, match="does not answer"):
        await ending.end(UID, 0.1)
    monkeypatch.setattr(kill, "_PROGRAM", program)
    monkeypatch.setattr(kill, "_MARGIN_S", 20)
    await ending.end(UID, 20)


async def test_a_killer_given_up_by_one_call_costs_no_other(ending: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    await ending.end(UID, 20)
    assert ending._process is not None
    os.kill(ending._process.pid, signal.SIGSTOP)
    patient = asyncio.create_task(ending.end(UID + 1, 60))
    await asyncio.sleep(0)
    monkeypatch.setattr(kill, "_MARGIN_S", 0.2)
    with pytest.raises(StillAlive, match="does not answer"):
        await ending.end(UID, 0.1)
    await patient


async def test_another_saved_user_id_does_not_save(ending: Killer) -> None:
    beyond = "import os, time\nos.setresuid(UID, 239600, 239600)\ntime.sleep(60)".replace("UID", str(UID))
    process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", beyond])
    try:
        wait_for(lambda: owners([UID]), what="the process")
        await ending.end(UID, 5)
        assert process.wait(HANG_S) == -signal.SIGKILL
    finally:
        process.kill()


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """As a process that hangs in the kernel: not even SIGKILL ends it, as long as this lasts."""
    group = Path(f"/sys/fs/cgroup/freezer/invoker-test-{os.getpid()}")
    try:
        group.mkdir()
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
    except OSError:
        pytest.skip("no cgroup (v1) can be made here to freeze processes in")
    try:
        wait_for(lambda: (group / "freezer.state").read_text() == "FROZEN\n", what="the cold")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the end of all in the group")
        group.rmdir()


async def test_what_does_not_end_is_said(ending: Killer) -> None:
    process = swarm(2, "time.sleep(60)")
    try:
        wait_for(lambda: killer.alive(UID) == 3, what="the processes")
        with frozen([process.pid]):
            with pytest.raises(StillAlive, match=f"1 processes of user {UID} are left"):
                await ending.end(UID, 0.5)
        await ending.end(UID, 5)
    finally:
        process.kill()
        process.wait(HANG_S)


@pytest.mark.slow
def test_a_user_id_whose_process_ends_late_is_used_again(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(pool_size=0, idle_s=60)
    with invoker.client() as api:
        body = {"prompt": f"[[tool Bash {_json('touch up; sleep 60')}]]", "tools": ["Bash"], "session": "new"}
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            wait_for(lambda: list(invoker.state.glob("trees/sessions/*/work/up")), what="the tool")
            shell: list[psutil.Process] = []

            def sleeps() -> bool:
                shell[:] = [process for process in of_runs(invoker.uids) if command_line(process) == "sleep 60"]
                return len(shell) == 1

            wait_for(sleeps, what="the command")
            with frozen([shell[0].pid]):
                api.delete(f"/runs/{stream.headers['x-claude-run']}")
                stream.read()
                wait_for(lambda: api.get("/readyz").json()["checks"]["lost_users"] == 1, what="the loss")
                wait_for(lambda: not left(invoker), what="the end of what it may still write to")
                assert api.post("/invoke", json={"prompt": "[[say fine]]"}).json()["result"] == "fine"
        wait_for(lambda: api.get("/readyz").json()["checks"]["lost_users"] == 0, what="the next try")
        assert not left(invoker)


def test_nobody_is_ended_by_mistake() -> None:
    """Never root, never the killer's own user; and never with a capability, as which kill(-1) would end everything."""
    assert not killer.powerless()
    with pytest.raises(ValueError):
        Killer(0)
    for uid in (0, -1, KILLER):
        with pytest.raises(ValueError):
            asyncio.run(Killer(KILLER).end(uid, 1))


# Trees.

DEEP = "import os\nfor _ in range({}): os.mkdir('d'); os.chdir('d')\nprint('deep')"


def left(invoker: Invoker) -> list[Path]:
    places = (invoker.state / "trees").glob("*/*")
    return [path for path in places if path.parent.name not in ("engines", "bin", CATALOGS)] + invoker.trees()


@pytest.mark.parametrize(
    ("depth", "without"),
    [
        (3_000, ()),
        pytest.param(20_000, (), marks=pytest.mark.slow),
        pytest.param(3_000, ("trees_by_recursion",), marks=pytest.mark.slow),
    ],
)
def test_a_tree_of_any_depth_goes(attacked: Callable[..., Invoker], depth: int, without: tuple[str, ...]) -> None:
    invoker = attacked(without)
    before = set(left(invoker))
    with invoker.client() as api:
        made = bash(api, program(DEEP.format(depth)))
        assert made.status_code == 200, invoker.log.read_text()[-3000:]
        assert "deep" in answer(made)
        if without:
            time.sleep(1)
            assert left(invoker), "the tree stayed"
            subprocess.run(["rm", "-rf", invoker.state / "trees"], check=True)
        else:
            wait_for(lambda: set(left(invoker)) <= before, what="no tree being left")
            assert api.get("/readyz").json()["checks"]["lost_users"] == 0


@pytest.mark.parametrize("without", defended_and_without("trees_by_recursion"))
def test_a_start_never_fails_because_of_what_a_run_left(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    invoker = start_invoker(pool_size=0, idle_s=60)
    with invoker.client() as api, contextlib.suppress(httpx.HTTPError):
        body = {
            "prompt": f"[[tool Bash {_json(program(DEEP.format(3000)) + '; touch up; sleep 60')}]]",
            "tools": ["Bash"],
        }
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/up")), what="the tree")
            os.kill(invoker.pid, signal.SIGKILL)
            stream.read()
    again = start_invoker(after=invoker, without=without, pool_size=0, wait=not without)
    if without:
        wait_for(lambda: b"RecursionError" in again.log.read_bytes(), what="the failure")
        kill_all(invoker.uids)
        subprocess.run(["rm", "-rf", invoker.state / "trees"], check=True)
        return
    wait_for(lambda: not left(again), what="no tree being left")
    with again.client() as api:
        assert api.post("/invoke", json={"prompt": "[[say fine]]"}).status_code == 200


@pytest.mark.slow
def test_a_hundred_thousand_files_hold_nobody_up(start_invoker: Callable[..., Invoker]) -> None:
    """Many more than are looked at for artifacts: the answer comes, with what was found in bounds."""
    invoker = start_invoker(pool_size=0, idle_s=60)
    source = (
        "import os\nfor a in range(110):\n    os.mkdir(f'd{a}')\n"
        "    for b in range(1000): os.close(os.open(f'd{a}/{b}', os.O_CREAT))\nprint('wide')"
    )
    with invoker.client() as api:
        response = bash(api, program(source))
        assert "wide" in answer(response)
        assert len(response.json()["artifacts"]) <= 200
        assert api.post("/invoke", json={"prompt": "[[say fine]]"}).status_code == 200
        wait_for(lambda: not left(invoker), what="no tree being left")


def test_what_cannot_be_deleted_is_reported_and_tried_again(start_invoker: Callable[..., Invoker]) -> None:
    """A file system that was mounted in a tree stands for whatever keeps a deletion from succeeding. Only the invoker has
    it: mounted for the whole machine, it would be left there, and keep the folder from being deleted, if this test is killed."""
    if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    invoker = start_invoker(pool_size=0, idle_s=60, without=("mounts_of_its_own",))
    inside = ["nsenter", f"--mount=/proc/{invoker.pid}/ns/mnt"]
    with invoker.client() as api:
        body = {
            "prompt": f"[[tool Bash {_json('mkdir m; touch up; while [ -e up ]; do sleep 0.1; done')}]]",
            "tools": ["Bash"],
        }
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/up")), what="the tool")
            (work,) = invoker.state.glob("trees/engines/*/*/work")
            subprocess.run([*inside, "mount", "-t", "tmpfs", "none", work / "m"], check=True)
            assert str(work) not in Path("/proc/self/mounts").read_text()
            (work / "up").unlink()
            stream.read()
        wait_for(lambda: "cannot be deleted" in invoker.log.read_text(), what="the report")
        (mounted,) = invoker.state.glob("trees/discarded/*/work/m")
        assert invoker.log.read_text().count("cannot be deleted") == 1
        assert api.post("/invoke", json={"prompt": "[[say fine]]"}).status_code == 200
        subprocess.run([*inside, "umount", mounted], check=True)
        wait_for(lambda: not left(invoker), what="the next try")


HEADLESS = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
open("up", "w").write(str(os.getpid()))
ctypes.CDLL(None).syscall(60, 0)  # exit(2) of the first thread only: from now on the process is called a zombie
"""


def runs(pid: int) -> bool:
    """Whether any thread of it does; one that has ended may wait for init as a zombie."""
    with contextlib.suppress(OSError):
        return not killer.over(Path(f"/proc/{pid}/status").read_bytes())
    return False


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of a system call")
@pytest.mark.parametrize("without", defended_and_without("a_zombie_is_dead"))
def test_a_process_without_its_first_thread_is_ended_at_the_next_start(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    invoker = start_invoker(pool_size=0, idle_s=60)
    with invoker.client() as api, contextlib.suppress(httpx.HTTPError):
        command = program(HEADLESS).replace(
            "python3 a.py", "(setsid -f python3 a.py </dev/null >/dev/null 2>&1); sleep 60"
        )
        body = {"prompt": f"[[tool Bash {_json(command)}]]", "tools": ["Bash"]}
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/up")), what="the process")
            (up,) = invoker.state.glob("trees/engines/*/*/work/up")
            wait_for(up.read_text, what="its id")
            pid = int(up.read_text())
            wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, what="the end of its first thread")
            os.kill(invoker.pid, signal.SIGKILL)
            stream.read()
    kill_all(invoker.uids)  # all others of its user, of which each alone would be seen
    assert runs(pid)
    start_invoker(after=invoker, without=without, pool_size=0)
    if without:
        assert runs(pid)
        os.kill(pid, signal.SIGKILL)
    else:
        wait_for(lambda: not runs(pid), what="its end")
