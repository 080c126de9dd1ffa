"""Repositories that are small on their way and vast where they are unpacked: refused in time and memory that an invoker
has, with its bounds as shipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from claude_invoker.workspace import content
from tests.support.git_server import ENVIRONMENT, git
from tests.workspace.conftest import Place

MB = 1 << 20
SHIPPED = Settings(trust="open")


def tree(bare: Path, names: Iterator[str], kind: str, held: str) -> str:
    """One that has the same under each of these names."""
    mode = "040000" if kind == "tree" else "100644"
    return git(bare, "mktree", stdin="".join(f"{mode} {kind} {held}\t{name}\n" for name in names).encode())


def filled(bare: Path, what: str) -> str:
    """The id of its tree."""
    if what == "a gigabyte":
        zeros = subprocess.Popen(["head", "-c", str((1 << 30) + 1), "/dev/zero"], stdout=subprocess.PIPE)
        command = ["git", "-c", "core.compression=1", "hash-object", "-w", "--stdin"]
        said = subprocess.run(command, cwd=bare, env=ENVIRONMENT, stdin=zeros.stdout, capture_output=True, check=True)
        return tree(bare, iter(["large"]), "blob", said.stdout.decode().strip())
    blob = git(bare, "hash-object", "-w", "--stdin", stdin=b"x")
    if what == "a million":
        held = tree(bare, (f"f{n:03}" for n in range(1000)), "blob", blob)
        return tree(bare, (f"d{n:03}" for n in range(1000)), "tree", held)
    held = tree(bare, (f"f{n}" for n in range(10)), "blob", blob)
    for _ in range(9):
        held = tree(bare, (f"d{n}" for n in range(10)), "tree", held)
    return held


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a million", "INVOKER_TREE_ENTRIES_LIMIT"),
        ("ten thousand millions", "more files, or longer paths, than can be listed (INVOKER_TREE_ENTRIES_LIMIT)"),
        pytest.param(
            "a gigabyte", "large has more than 1,073,741,824 bytes (INVOKER_FILE_SIZE_LIMIT)", marks=pytest.mark.slow
        ),
    ],
)
async def test_what_is_vast_is_refused_and_takes_neither_memory_nor_disk(place: Place, what: str, said: str) -> None:
    place.bounds = content.Bounds(SHIPPED.tree_entries_limit, SHIPPED.tree_limit, SHIPPED.file_size_limit)
    name = f"org/{what.replace(' ', '-')}"
    bare = place.server.create(name)
    commit = git(bare, "commit-tree", filled(bare, what), "-m", "x")
    git(bare, "update-ref", "refs/heads/main", commit)
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    with pytest.raises(Problem) as refused:
        await place.ready(name)
    assert (refused.value.status, said in refused.value.detail) == (422, True), refused.value.detail
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    grown = int(peak.split()[1]) * 1024 - before
    assert grown < 200 * MB
    assert not list((place.folder / "stores").iterdir()), "nothing is left behind"
    assert sum(path.stat().st_size for path in place.mirror(name).path.rglob("*") if path.is_file()) < 8 * MB
