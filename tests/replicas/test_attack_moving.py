"""What a run with Bash leaves in its session for whoever restores it, as root, where the next turn lands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.invoker.conftest import Invoker, as_root, bash, program, without_boundary
from tests.replicas.test_replicas import client

pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(180)]
PLANT = r"""
import os, shutil, socket, subprocess
shutil.copy("/bin/true", "suid"); os.chmod("suid", 0o6755)
os.mkdir("sticky"); os.chmod("sticky", 0o3777)
for name, target in (("shadow", "/etc/shadow"), ("up", "../../.."), ("self", "self"), ("etc", "/etc")):
    os.symlink(target, name)
os.mkfifo("pipe"); socket.socket(socket.AF_UNIX).bind("socket")
for name in (b"new\nline", b"\xff\xfe", b"-rf", b"a" * 255, b"$(touch pwned)", "\u202etxt.exe".encode()):
    open(name, "w").write("named")
os.link("suid", "hard"); os.mkdir("shut"); open("shut/f", "w").write("kept"); os.chmod("shut/f", 0); os.chmod("shut", 0)
try: os.mknod("null", 0o666 | 0o020000, os.makedev(1, 3))
except OSError: pass
try: os.chown("suid", 0, 0)
except OSError: pass
config = "../config/projects"
for make in (lambda: os.symlink("/etc/passwd", config + "/evil.jsonl"), lambda: os.symlink("/etc", config + "/etc")):
    try: make()
    except OSError: pass
print("planted")
"""
FOUND = r"""
import json, os, stat
found = {}
for name in sorted(os.listdir(b".")):
    status = os.lstat(name)
    found[name.decode(errors="backslashreplace")] = (
        stat.filemode(status.st_mode), status.st_uid == os.getuid(), status.st_nlink if stat.S_ISREG(status.st_mode) else 1)
os.chmod("shut", 0o700); os.chmod("shut/f", 0o600)
read = {}
for name in ("shadow", "shut/f", "up/../../secrets"):
    try: read[name] = open(name).read()[:40]
    except OSError as error: read[name] = error.strerror
print(json.dumps({"found": found, "read": read, "config": sorted(os.listdir("../config/projects"))}))
"""


def told(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    text = str(answer.json()["result"])
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found


def test_what_a_run_has_planted_gives_it_nothing_where_its_session_goes_on(start: Callable[..., Invoker]) -> None:
    one, other = (without_boundary(start)() for _ in range(2))
    with client(one) as here, client(other) as there:
        planted = bash(here, program(PLANT), session="new")
        assert planted.status_code == 200 and "planted" in planted.text, planted.text
        for api in (there, here, there):  # restored from nothing, then over what is there
            told_now = told(bash(api, program(FOUND), session=planted.json()["session"]))
            found = told_now["found"]
            assert not {"pipe", "socket", "null", "pwned"} & set(found)
            assert all(is_own for _, is_own, _ in found.values()), found
            assert not [name for name, (mode, _, _) in found.items() if set(mode) & set("sStT")], found
            assert [found[name][2] for name in ("suid", "hard")] == [1, 1]
            assert [found[name][0][0] for name in ("shadow", "up", "self", "etc")] == ["l"] * 4
            assert {"-rf", "new\nline", "\\xff\\xfe", "a" * 255, "$(touch pwned)", "\u202etxt.exe"} <= set(found)
            assert told_now["read"]["shut/f"] == "kept"
            assert told_now["read"]["shadow"] == "Permission denied"
