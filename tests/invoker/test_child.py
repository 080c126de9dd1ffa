"""A child's pipes, on both event loops."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from claude_invoker.cli import usage
from claude_invoker.cli.child import Child, Limits
from claude_invoker.isolation import confine, filters
from claude_invoker.isolation.box import Kind
from claude_invoker.isolation.domain import Domain
from tests.invoker.conftest import as_root
from tests.support.waiting import HANG_S, wait_for


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_each_pipe_is_closed_exactly_once(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    """uvloop closes the descriptor itself: a second close took a descriptor from another thread, and libuv aborted."""

    async def talk() -> None:
        # The thread that starts children, and the loop's own descriptors, are there before the count.
        await asyncio.to_thread(int)
        before = descriptors()
        child = await Child.start(
            [sys.executable, "-c", "print(input())"],
            env={},
            cwd=tmp_path,
            uid=None,
            limits=Limits(),
            line_limit=1000,
        )
        child.stdin.write(b"hello\n")
        assert await child.stdout.readline() == b"hello\n"
        await asyncio.wait_for(child.exited.wait(), HANG_S)
        owned = [t.get_extra_info("pipe").closefd for t in child._transports]
        assert owned == [run is asyncio.run] * 3
        child.close()
        await asyncio.sleep(0.1)
        assert {link for _, link in descriptors() - before if link.startswith("pipe:")} == set()

    run(talk())


@pytest.mark.parametrize("uid", [None, pytest.param(65534, marks=as_root)], ids=["ours", "another"])
async def test_it_ends_before_us_where_memory_ends(uid: int | None) -> None:
    """Also its own children. It cannot be tried without using all memory up, so it is read."""
    child = await Child.start(
        ["/bin/sh", "-c", "cat /proc/self/oom_score_adj"],
        env={},
        cwd=Path("/"),
        uid=uid,
        limits=Limits(),
        line_limit=1000,
    )
    try:
        ours = int(Path("/proc/self/oom_score_adj").read_text())
        assert int(await child.stdout.readline()) == min(1000, ours + 500)
        await asyncio.wait_for(child.exited.wait(), HANG_S)
    finally:
        child.close()


@pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes")
@pytest.mark.parametrize("uid", [None, pytest.param(65534, marks=as_root)], ids=["ours", "another"])
async def test_what_ends_a_run_of_our_user_outlasts_it_where_memory_ends(uid: int | None) -> None:
    """Else a run would make the kernel end that first, and go on."""
    kind = Kind(Path("/bin/sh"), filters.of_cli())
    box = Domain((Path("/usr"),), kind, kind, shared=True)
    with box.around(Path("/nonexistent"), kind, Path("/nonexistent")) as entry:
        child = await Child.start(
            ["/bin/sh", "-c", "echo started; read over"],
            env={},
            cwd=Path("/"),
            uid=uid,
            limits=Limits(),
            entry=entry,
            line_limit=1000,
        )
    try:
        assert await child.stdout.readline() == b"started\n"
        ours, holds, held = (
            int(Path(f"/proc/{pid}/oom_score_adj").read_text())
            for pid in ("self", child.pid, usage.eldest_child(child.pid))
        )
        assert (holds, held) == (ours, min(1000, ours + 500))
        child.stdin.write(b"\n")
        await asyncio.wait_for(child.exited.wait(), HANG_S)
    finally:
        child.close()


BOMB = """
import os, sys, threading
if os.fork():
    os._exit(0)  # nobody is its parent then but who adopts orphans
os.setsid()
for _ in range(1000):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("there", flush=True)
sys.stdin.read()
"""
HOLDS = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, as what holds a run does
if not os.fork():
    os.execv(sys.executable, [sys.executable, "-c", {BOMB!r}])
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


@pytest.mark.parametrize("weakened", [False, True])
def test_what_one_run_has_made_is_no_room_for_the_next(weakened: bool) -> None:
    """Several that share a user, one started after the other while each makes all that it can: 16,000 processes by the
    defaults, where 2,048 are for all of them."""
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holds:
        assert holds.stdin is not None and holds.stdout is not None

        def most(held: tuple[int, ...]) -> int:
            limits = Limits(processes=10, runs=2, held=held).settings(own_user=False)
            return dict(limits)[resource.RLIMIT_NPROC]

        before = most(())
        assert holds.stdout.readline() == b"there\n"
        held = () if weakened else (holds.pid,)
        # Whatever else this user does meanwhile is not a thousand threads for long.
        wait_for(lambda: (most(held) - before > 500) == weakened, what="a limit without what one run has made")
        holds.stdin.close()
