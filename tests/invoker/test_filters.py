"""Each system call that no run needs, called within the filters, and without them as the control."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from claude_invoker.isolation import confine, filters

seccomp = pytest.importorskip("pyseccomp")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel itself refuses some of these to who is not root")

OTHERS = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "process_madvise",
    "userfaultfd",
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "personality",
    "migrate_pages",
    "move_pages",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "fanotify_init",
    "syslog",
    "iopl",
    "ioperm",
    "modify_ldt",
    "quotactl",
    "quotactl_fd",
    "swapon",
    "swapoff",
    "reboot",
    "acct",
    "vhangup",
    "sethostname",
    "setdomainname",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
]
NAMESPACES = [
    "unshare",
    "setns",
    "chroot",
    "pivot_root",
    "mount",
    "umount2",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "name_to_handle_at",
    "open_by_handle_at",
]
LEFTOVERS = [
    "shmget",
    "shmat",
    "shmctl",
    "shmdt",
    "semget",
    "semop",
    "semtimedop",
    "semctl",
    "msgget",
    "msgsnd",
    "msgrcv",
    "msgctl",
    "mq_open",
    "mq_unlink",
    "mq_timedsend",
    "mq_timedreceive",
    "mq_notify",
    "mq_getsetattr",
    "add_key",
    "request_key",
    "keyctl",
]
NUMBERS = {"statmount": 457, "listmount": 458, "open_tree_attr": 467, "listns": 470}
BY_FILTER = {
    "cli": (filters.of_cli, [*OTHERS, *NAMESPACES, *LEFTOVERS, *NUMBERS]),
    "user": (filters.of_users, [*NAMESPACES, *LEFTOVERS]),
}
CALLS = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x08000000)  # objects of its own (CLONE_NEWIPC): some of these are made
sys.path.insert(0, sys.argv[3])
from claude_invoker.isolation import confine
if sys.argv[2]: confine.filtered(bytes.fromhex(sys.argv[2]))
found = {}
for name, number in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        os.setsid()
        nothing = [ctypes.c_long(-1)] * 6  # no address, no descriptor, no process
        result = libc.syscall(ctypes.c_long(number), *nothing)
        os._exit(ctypes.get_errno() if result < 0 else 0)
    found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(found))
"""


def number(name: str) -> int:
    return NUMBERS.get(name) or int(seccomp.resolve_syscall(seccomp.system_arch(), name))


def errors(names: list[str], program: bytes | None) -> dict[str, int]:
    """What each call says to arguments that make no sense: an errno, or 0."""
    numbers = json.dumps({name: found for name in names if (found := number(name)) >= 0})
    place = os.path.dirname(os.path.dirname(os.path.dirname(confine.__file__)))
    command = [sys.executable, "-c", CALLS, numbers, program.hex() if program else "", place]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("kind", BY_FILTER)
def test_what_no_run_needs_is_refused(kind: str) -> None:
    made, names = BY_FILTER[kind]
    without, within = errors(names, None), errors(names, made())
    assert len(within) > len(names) - 5, "this architecture has almost all"
    assert {name: error for name, error in within.items() if error != 1} == {}, "EPERM"
    reached = {name for name, error in without.items() if error != 1}
    assert set(without) - reached <= {"io_uring_setup", "io_uring_enter", "io_uring_register"}, "a kernel's setting"


def dies_of(source: str) -> int:
    begin = f"import ctypes, mmap\nfrom claude_invoker.isolation import confine, filters\n{source}"
    return subprocess.run([sys.executable, "-c", begin], check=False, stderr=subprocess.DEVNULL).returncode


X32 = "ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))"  # getpid
X86 = """
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
call()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="another architecture of the same machine")
@pytest.mark.parametrize("call", [X32, X86], ids=["x32", "x86"])
@pytest.mark.parametrize("kind", ["of_cli", "of_shells", "of_users"])
def test_calls_of_another_architecture_end_who_makes_them(call: str, kind: str) -> None:
    """Their numbers are others, and nobody has looked at them. Without the filter they are answered."""
    assert dies_of(f"confine.filtered(filters.{kind}())\n{call}") == -signal.SIGSYS
    assert dies_of(call) in (0, -signal.SIGSEGV), "a kernel without them"
