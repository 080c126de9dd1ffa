"""A child's pipes, on both event loops."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from claude_invoker.cli.child import Child, Limits


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
        await asyncio.wait_for(child.exited.wait(), 30)
        owned = [t.get_extra_info("pipe").closefd for t in child._transports]
        assert owned == [run is asyncio.run] * 3
        child.close()
        await asyncio.sleep(0.1)
        assert {link for _, link in descriptors() - before if link.startswith("pipe:")} == set()

    run(talk())
