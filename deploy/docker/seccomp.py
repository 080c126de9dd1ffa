"""Writes Docker's own profile of system calls with what the boundary around a run needs besides.

    python deploy/docker/seccomp.py docker default.json > deploy/docker/seccomp.json
    python deploy/docker/seccomp.py namespaces default.json > deploy/docker/seccomp-namespaces.json
    python deploy/docker/seccomp.py kubernetes default.json > deploy/kubernetes/seccomp.json

`default.json` is profiles/seccomp/default.json of Docker Engine 26.1.5 (moby, Apache License 2.0), as Debian 13 has it
in the package golang-github-docker-docker-dev; `BASE` is its SHA-256. `ADDED` is all that is ours, and for namespaces
`ADDED_FOR_NAMESPACES`.

Docker decides by the container's capabilities and architecture which rules hold; Kubernetes takes a file in which that
is decided already.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BASE = "9c1025c88ccaa517b648da571961838744ea2137f176bfe6a48b21294cae9c76"

_NEW_USER = 0x10000000
ADDED: list[dict[str, Any]] = [
    {
        "names": ["unshare", "clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": _NEW_USER, "valueTwo": _NEW_USER, "op": "SCMP_CMP_MASKED_EQ"}],
        "comment": "namespaces that come with a user namespace of their own: the network of a run that reaches hosts, "
        "and what bubblewrap makes. Others stay with CAP_SYS_ADMIN, as in Docker's own profile.",
        "excludes": {"arches": ["s390", "s390x"]},
    },
]
ADDED_FOR_NAMESPACES: list[dict[str, Any]] = [
    {
        "names": ["mount", "umount2", "pivot_root", "sethostname"],
        "action": "SCMP_ACT_ALLOW",
        "comment": "for bubblewrap, inside of such a user namespace: the kernel wants CAP_SYS_ADMIN for each, which "
        "nobody in the container has outside of one.",
    },
]

_CAPABILITIES = {"CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE", "CAP_KILL"}
_ARCHITECTURES = {"amd64": ("X86_64", "X86", "X32"), "arm64": ("AARCH64", "ARM")}


def for_docker(base: bytes) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(base)
    made["syscalls"] += ADDED
    return made


def for_namespaces(base: bytes) -> dict[str, Any]:
    """For docker-compose.namespaces.yml."""
    made = for_docker(base)
    made["syscalls"] += ADDED_FOR_NAMESPACES
    return made


def for_kubernetes(base: bytes) -> dict[str, Any]:
    """The same as the runtime's specification has it, for the pods of deploy/kubernetes."""
    made = for_docker(base)
    del made["archMap"]
    made["architectures"] = [f"SCMP_ARCH_{name}" for names in _ARCHITECTURES.values() for name in names]
    made["syscalls"] = [
        {name: value for name, value in rule.items() if name not in ("includes", "excludes", "comment")}
        for rule in made["syscalls"]
        if _holds(rule)
    ]
    return made


def _holds(rule: dict[str, Any]) -> bool:
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    wanted, of = set(includes.get("caps", ())), set(includes.get("arches", _ARCHITECTURES))
    return (
        wanted <= _CAPABILITIES and bool(of & set(_ARCHITECTURES)) and not set(excludes.get("caps", ())) & _CAPABILITIES
    )


if __name__ == "__main__":
    kind = {"docker": for_docker, "namespaces": for_namespaces, "kubernetes": for_kubernetes}[sys.argv[1]]
    sys.stdout.write(json.dumps(kind(Path(sys.argv[2]).read_bytes()), indent="\t") + "\n")
