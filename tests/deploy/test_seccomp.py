"""The profile of system calls in which compose and, where it is wanted, Kubernetes start invoker and worker."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = runpy.run_path(str(ROOT / "deploy" / "docker" / "seccomp.py"))
DOCKER = ROOT / "deploy" / "docker" / "seccomp.json"
NAMESPACES = ROOT / "deploy" / "docker" / "seccomp-namespaces.json"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "seccomp.json"
KINDS = {"docker": DOCKER, "namespaces": NAMESPACES, "kubernetes": KUBERNETES}
NEW_USER, NEW_NET, NEW_MOUNTS, NEW_PROCESSES = 0x10000000, 0x40000000, 0x00020000, 0x20000000


def base() -> bytes:
    """Docker's own: what is left of the profile without what is ours."""
    made: dict[str, Any] = json.loads(DOCKER.read_text())
    kept = len(made["syscalls"]) - len(GENERATOR["ADDED"])
    assert made["syscalls"][kept:] == GENERATOR["ADDED"]
    made["syscalls"] = made["syscalls"][:kept]
    return (json.dumps(made, indent="\t") + "\n").encode()


def test_it_is_dockers_own_but_for_what_we_say() -> None:
    assert hashlib.sha256(base().rstrip(b"\n")).hexdigest() == GENERATOR["BASE"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_what_the_generator_writes(kind: str, tmp_path: Path) -> None:
    (tmp_path / "default.json").write_bytes(base())
    program = str(ROOT / "deploy" / "docker" / "seccomp.py")
    command = [sys.executable, program, kind, str(tmp_path / "default.json")]
    assert subprocess.run(command, check=True, capture_output=True).stdout == KINDS[kind].read_bytes()


def test_mounting_is_for_namespaces_alone() -> None:
    """What opens more than the network of a run has to be asked for (docker-compose.namespaces.yml)."""

    def unconditional(file: Path) -> set[str]:
        rules = json.loads(file.read_text())["syscalls"]
        return {name for rule in rules if not rule.get("includes") and not rule.get("args") for name in rule["names"]}

    more = {"mount", "umount2", "pivot_root", "sethostname"}
    assert unconditional(NAMESPACES) - unconditional(DOCKER) == more
    assert not more & (unconditional(DOCKER) | unconditional(KUBERNETES))


TRIES = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
print(0 if libc.unshare(int(sys.argv[1])) == 0 else ctypes.get_errno())
"""


def tried(flags: int, *, within: bool) -> int:
    """The error of unshare(2), or 0."""
    profile = ["-m", "tests.support.profile", str(KUBERNETES), sys.executable] if within else []
    command = [sys.executable, *profile, "-c", TRIES, str(flags)]
    return int(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="others make no namespaces without a user namespace in any case")
@pytest.mark.parametrize("flags", [NEW_NET, NEW_MOUNTS, NEW_PROCESSES], ids=["network", "mounts", "processes"])
def test_a_namespace_comes_with_a_user_namespace_only(flags: int) -> None:
    assert tried(flags, within=False) == 0, "the attempt itself does not work"
    assert tried(flags, within=True) == 1
    if tried(flags | NEW_USER, within=False) == 0:
        assert tried(flags | NEW_USER, within=True) == 0


def test_what_docker_leaves_to_capabilities_is_not_in_the_resolved_one() -> None:
    """The runtime's specification knows no conditions: a rule with one that was kept would hold for everybody."""
    resolved = json.loads(KUBERNETES.read_text())
    assert all(set(rule) <= {"names", "action", "args", "errnoRet"} for rule in resolved["syscalls"])
    unconditional = {name for rule in resolved["syscalls"] if not rule.get("args") for name in rule["names"]}
    assert not unconditional & {
        "bpf",
        "setns",
        "unshare",
        "clone",
        "open_tree",
        "fsopen",
        "move_mount",
        "perf_event_open",
    }
