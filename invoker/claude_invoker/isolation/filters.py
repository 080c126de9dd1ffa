"""Which system calls are refused to a run: pure lists, made into a program by libseccomp (seccomp(2)).

One list for every architecture that libseccomp knows; a call that an architecture does not have is no rule there. A
process of another architecture's calls (32 bit on a 64-bit kernel) is killed: nobody has looked at those.
"""

from __future__ import annotations

import errno
import socket
import tempfile
import termios
from collections.abc import Iterator
from typing import Any

_OTHERS = "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise migrate_pages move_pages"
_KERNEL = (
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
    "init_module finit_module delete_module kexec_load kexec_file_load fanotify_init lookup_dcookie syslog personality "
    "iopl ioperm modify_ldt"
)
_NAMESPACES = (
    "unshare setns mount umount2 pivot_root move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr chroot "
    "name_to_handle_at open_by_handle_at"
)
_MACHINE = (
    "quotactl quotactl_fd swapon swapoff reboot acct sethostname setdomainname settimeofday clock_settime "
    "clock_adjtime adjtimex vhangup"
)
_LEFTOVERS = (  # what would outlive the run, where the next one with its user id would find it
    "shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl "
    "mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr add_key request_key keyctl"
)
REFUSED = tuple(" ".join((_OTHERS, _KERNEL, _MACHINE, _LEFTOVERS)).split())
REFUSED_NUMBERS = (457, 458, 467, 470)
"""statmount, listmount, open_tree_attr, listns: they tell the machine's mounts and namespaces, and Landlock does not
close them. Newer than libseccomp's names; the same numbers on every architecture."""
_MODES = "chmod fchmod utime utimes futimesat"
_FCHMODAT2 = 452
_OWNERS = "chown lchown fchownat inotify_add_watch"
_OWNERS_NUMBERS = (468, 469)
"""file_getattr, file_setattr."""
_ATTRIBUTES = (
    "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr getxattr lgetxattr listxattr llistxattr"
)
_ATTRIBUTES_NUMBERS = (463, 464, 465, 466)
"""setxattrat, getxattrat, listxattrat, removexattrat."""
_NEW_NAMESPACE = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_TIOCLINUX = 0x541C
_SOCKET_TYPE = 0xF  # without SOCK_CLOEXEC and SOCK_NONBLOCK
_FLAGS_OF_SENDING = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_PROCESS, _OF_ITS_IO = 0, 1  # PRIO_PROCESS, IOPRIO_WHO_PROCESS
_OF_ITSELF = {
    "prlimit64": (0,),
    "setpriority": (_PROCESS, 0),
    "ioprio_set": (_OF_ITS_IO, 0),
    "sched_setaffinity": (0,),
    "sched_setattr": (0,),
    "sched_setparam": (0,),
    "sched_setscheduler": (0,),
}
"""What a process may do to itself and to no other, such as its CLI: the call, and its first arguments as they have to
be. A thread that names itself by its number (pthread_setaffinity_np) is refused with them: a filter does not know whose
number that is."""


class NoSeccomp(Exception):
    """Why there are no filters here."""


def of_cli(*, tcp: bool = False) -> bytes:
    """The CLI's: unix sockets only, so no TCP (Fast Open and MPTCP included), UDP, netlink, vsock. With `tcp`, for what
    is in a network of its own: and plain TCP by IPv4, without Fast Open, of which Landlock knows nothing.

    Raises NoSeccomp."""
    seccomp = _library()

    def rules() -> Iterator[tuple[Any, ...]]:
        refuse = seccomp.ERRNO(errno.EPERM)
        yield from _no_namespaces(seccomp)
        for call in (*REFUSED, *REFUSED_NUMBERS):
            yield refuse, call
        no_such_socket = seccomp.ERRNO(errno.EAFNOSUPPORT)
        yield no_such_socket, "socketpair", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX)
        if not tcp:
            yield no_such_socket, "socket", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX)
        else:
            yield from _plain_tcp(seccomp, no_such_socket)
        for request in (termios.TIOCSTI, _TIOCLINUX):  # put words into a terminal's mouth
            yield refuse, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)

    return _program(seccomp, rules())


def _plain_tcp(seccomp: Any, refuse: Any) -> Iterator[tuple[Any, ...]]:
    """Besides unix sockets."""
    internet = seccomp.Arg(0, seccomp.EQ, socket.AF_INET)
    yield refuse, "socket", seccomp.Arg(0, seccomp.GT, socket.AF_INET)
    yield refuse, "socket", seccomp.Arg(0, seccomp.LT, socket.AF_UNIX)
    for kind in set(range(_SOCKET_TYPE + 1)) - {socket.SOCK_STREAM}:
        yield refuse, "socket", internet, seccomp.Arg(1, seccomp.MASKED_EQ, _SOCKET_TYPE, kind)
    for protocol in range(1, socket.IPPROTO_TCP):  # 0 is TCP too
        yield refuse, "socket", internet, seccomp.Arg(2, seccomp.EQ, protocol)
    yield refuse, "socket", internet, seccomp.Arg(2, seccomp.GT, socket.IPPROTO_TCP)
    for name, flags in _FLAGS_OF_SENDING.items():
        yield refuse, name, seccomp.Arg(flags, seccomp.MASKED_EQ, socket.MSG_FASTOPEN, socket.MSG_FASTOPEN)


def of_users() -> bytes:
    """Without a domain: no namespaces, in which a run would be root before parts of the kernel that nobody needs; and
    nothing that outlives it and is no file, since files are looked for at its end.

    Raises NoSeccomp."""
    seccomp = _library()

    def rules() -> Iterator[tuple[Any, ...]]:
        yield from _no_namespaces(seccomp)
        for call in _LEFTOVERS.split():
            yield seccomp.ERRNO(errno.EPERM), call

    return _program(seccomp, rules())


def _no_namespaces(seccomp: Any) -> Iterator[tuple[Any, ...]]:
    refuse = seccomp.ERRNO(errno.EPERM)
    for call in _NAMESPACES.split():
        yield refuse, call
    for flag in _NEW_NAMESPACE:
        yield refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag)
    # Its flags are in memory, which a filter cannot read: libc then asks by clone.
    yield seccomp.ERRNO(errno.ENOSYS), "clone3"


def of_shells(*, tcp: bool = False, shared: bool = False) -> bytes:
    """That of a command, in addition to the CLI's: it reaches no socket at all, also not the API's by its path, which
    Landlock does not close. Pairs stay, but none of datagrams: those can be connected anew. Nor does it change
    limits and scheduling of other processes. With `tcp` it may connect what the CLI's leaves of internet sockets.
    `shared`: its user has files besides the run's own (see `_of_other_files`).

    Raises NoSeccomp."""
    seccomp = _library()

    def rules() -> Iterator[tuple[Any, ...]]:
        refuse = seccomp.ERRNO(errno.EPERM)
        for name in ("bind", "listen") if tcp else ("socket", "connect", "bind", "listen"):
            yield refuse, name
        if tcp:
            yield refuse, "socket", seccomp.Arg(0, seccomp.NE, socket.AF_INET)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
            yield refuse, "socketpair", seccomp.Arg(1, seccomp.MASKED_EQ, _SOCKET_TYPE, kind)
        for name, itself in _OF_ITSELF.items():
            for place, value in enumerate(itself):
                yield refuse, name, seccomp.Arg(place, seccomp.NE, value)
        if shared:
            yield from _of_other_files(seccomp)

    return _program(seccomp, rules())


def _of_other_files(seccomp: Any) -> Iterator[tuple[Any, ...]]:
    """What Landlock does not close (landlock(7)) and the owner of a file may: a run with a user of its own owns its
    tree and nothing else, one without owns whatever its user has.

    Modes are not changed. `chmod` and `install` are told so; git, pip and linkers, which give up then, are told that
    they were, since they ask by another call, where an architecture has it (on others libc's chmod(3) is fchmodat). Nor
    are times by a path, which tar gives up for.
    """
    nothing_done, refuse = seccomp.ERRNO(0), seccomp.ERRNO(errno.EPERM)
    for name in _MODES.split():
        yield nothing_done, name
    has_chmod = seccomp.resolve_syscall(seccomp.system_arch(), "chmod") >= 0
    yield (refuse if has_chmod else nothing_done), "fchmodat"
    yield refuse, _FCHMODAT2
    yield nothing_done, "utimensat", seccomp.Arg(1, seccomp.NE, 0)  # else it is about a descriptor
    for call in (*_OWNERS.split(), *_OWNERS_NUMBERS):
        yield seccomp.ERRNO(errno.EPERM), call
    for call in (*_ATTRIBUTES.split(), *_ATTRIBUTES_NUMBERS):
        yield seccomp.ERRNO(errno.EOPNOTSUPP), call


def _library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise NoSeccomp("libseccomp is not installed (Debian: apt-get install libseccomp2)") from error
    return pyseccomp


def _program(seccomp: Any, rules: Iterator[tuple[Any, ...]]) -> bytes:
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for rule in rules:
        try:
            made.add_rule(*rule)
        except (OSError, ValueError) as error:
            raise NoSeccomp(f"libseccomp is too old for a rule about {rule[1]}") from error
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
