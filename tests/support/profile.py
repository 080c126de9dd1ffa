"""`python -m tests.support.profile FILE PROGRAM…`: a program under a profile of system calls, as a container runtime does.

FILE has the form of the runtime's specification (deploy/kubernetes/seccomp.json).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyseccomp as seccomp

_ACTIONS = {"SCMP_ACT_ALLOW": seccomp.ALLOW}
_COMPARED = {"SCMP_CMP_EQ": seccomp.EQ, "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ}


def load(profile: dict[str, Any]) -> None:
    """For this process and all that it starts."""
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    made = seccomp.SyscallFilter(seccomp.ERRNO(profile["defaultErrnoRet"]))
    for rule in profile["syscalls"]:
        action = _ACTIONS.get(rule["action"]) or seccomp.ERRNO(rule["errnoRet"])
        arguments = [_argument(given) for given in rule.get("args", ())]
        for name in rule["names"]:
            with contextlib.suppress(ValueError, OSError):  # one that this library does not know
                made.add_rule(action, name, *arguments)
    made.load()


def _argument(given: dict[str, Any]) -> Any:
    compared = _COMPARED[given["op"]]
    if compared == seccomp.MASKED_EQ:  # here the mask comes first
        return seccomp.Arg(given["index"], compared, given["value"], given.get("valueTwo", 0))
    return seccomp.Arg(given["index"], compared, given["value"])


if __name__ == "__main__":
    load(json.loads(Path(sys.argv[1]).read_text()))
    os.execv(sys.argv[2], sys.argv[2:])
