"""A command takes the machine's memory, processes and files by the ways on which they are hard to see, beside another
tenant's run; each with its control, the same command where the bound is higher."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from claude_invoker.isolation import confine
from tests.invoker.conftest import Invoker, bash, program, wait_for
from tests.invoker.test_bounds import GB, a_neighbour, over, unstopped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.xdist_group("escape"),
]
THEN_S, STOPPED_S = 4, 60
"""How long it keeps what it has: where nobody is to stop it, longer than it takes to be seen."""


@dataclass(frozen=True)
class Take:
    """`source`: {much} is what it takes, {then_s} how long it keeps it."""

    limit: str
    source: str
    much: int
    much_in_control: int


MEMORY = {
    "files_without_a_name": Take(
        "memory",
        "for n in range({much} >> 28):\n"
        "    held = os.memfd_create('x')\n"
        "    for _ in range(256): os.write(held, bytes(1 << 20))\n",
        4 * GB,
        3 * GB // 2,
    ),
    "shared_memory_that_it_has_let_go_of": Take(
        "memory",
        "for n in range({much} >> 28):\n"
        "    held.append(mmap.mmap(-1, 1 << 28))\n"
        "    for place in range(0, 1 << 28, 4096): held[-1][place] = 1\n"
        "    held[-1].madvise(mmap.MADV_DONTNEED)\n",
        4 * GB,
        3 * GB // 2,
    ),
    "a_device_of_zeros_that_it_shares": Take(
        "memory",
        "zeros = os.open('/dev/zero', os.O_RDWR)\n"
        "for n in range({much} >> 28):\n"
        "    held.append(mmap.mmap(zeros, 1 << 28))\n"
        "    for place in range(0, 1 << 28, 4096): held[-1][place] = 1\n"
        "    held[-1].madvise(mmap.MADV_DONTNEED)\n",
        4 * GB,
        3 * GB // 2,
    ),
    # MAP_NORESERVE. Four kilobytes of tables for each two megabytes that it looks at, and nothing of its own in them.
    "page_tables": Take(
        "memory",
        "flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000\n"
        "for n in range({much} >> 28):\n"
        "    held.append(mmap.mmap(-1, 1 << 37, flags, mmap.PROT_READ))\n"
        "    for place in range(0, 1 << 37, 1 << 21): held[-1][place]\n",
        4 * GB,
        3 * GB // 2,
    ),
}
OTHERS = {
    "a_million_files": Take(
        "tree_entries",
        "for n in range({much}): os.close(os.open(f'f{{n}}', os.O_CREAT))\n",
        1_000_000,
        30_000,
    ),
}
TAKES = MEMORY | OTHERS
SETTINGS = {"memory": "INVOKER_MEMORY_LIMIT", "tree_entries": "INVOKER_TREE_ENTRIES_LIMIT"}
BOUNDED = {"memory_limit": GB, "tree_entries_limit": 20_000}


def taken(api: httpx.Client, take: Take, *, control: bool) -> httpx.Response:
    much, then_s = (take.much_in_control, THEN_S) if control else (take.much, STOPPED_S)
    source = take.source.format(much=much, then_s=then_s)
    begin = "import mmap, os, time\nheld = []\n"
    return bash(api, program(f"{begin}{source}time.sleep({then_s}); print('not stopped')"))


@pytest.fixture(scope="module")
def bounded(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(isolation="landlock", pool_size=0, idle_s=120, total_s=300, **BOUNDED)


@pytest.fixture(scope="module")
def roomy(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(
        isolation="landlock", pool_size=0, idle_s=120, total_s=300, memory_limit=0, tree_entries_limit=0
    )


@pytest.mark.parametrize("name", TAKES)
def test_what_is_hard_to_see_is_seen(bounded: Invoker, name: str) -> None:
    take = TAKES[name]
    with bounded.client() as api, a_neighbour(bounded):
        api.timeout = httpx.Timeout(300)
        over(taken(api, take, control=False), take.limit, SETTINGS[take.limit])


@pytest.mark.parametrize("name", TAKES)
def test_where_it_may_take_more_it_does(roomy: Invoker, name: str) -> None:
    with roomy.client() as api:
        api.timeout = httpx.Timeout(300)
        unstopped(taken(api, TAKES[name], control=True))


FORKS = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0: time.sleep(20); os._exit(0)
        made += 1
except OSError: pass
print('had', made)
"""


@pytest.mark.parametrize("allowed", [256, 1500], ids=["bounded", "control"])
def test_a_thousand_processes(start_invoker: Callable[..., Invoker], allowed: int) -> None:
    invoker = start_invoker(isolation="landlock", pool_size=0, idle_s=60, process_limit=allowed)
    with invoker.client() as api, a_neighbour(invoker):
        said = bash(api, program(FORKS)).json()["result"]
    assert ("had 1000" in said) is (allowed > 1000), said


def test_runs_end_before_who_serves_them(bounded: Invoker) -> None:
    """Where all memory is used up. It cannot be tried without using it up, so it is read."""

    def score(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with bounded.client() as api, a_neighbour(bounded):
        (begun,) = bounded.state.glob("trees/engines/*/*/work/begun")
        runs = [child for child in bounded.children() if child.uids().real == begun.stat().st_uid]
        assert runs and {score(run.pid) for run in runs} == {score("self") + 500}
        others = [bounded.pid, *(child.pid for child in bounded.children() if child not in runs)]
        assert {score(pid) for pid in others} == {score("self")}
        assert api.get("/readyz").status_code == 200
    wait_for(lambda: not begun.exists(), what="the neighbour's end")
