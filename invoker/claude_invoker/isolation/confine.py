"""Landlock and seccomp as system calls. What is allowed is decided elsewhere (`domains`, `filters`).

The invoker imports it, and it is the text of the wrapper that every command of a run begins with (`shell`): standard
library only, and little of that. A rule is (path, rights); what is below the path has the rights too.
"""

import ctypes
import os
import stat
import struct

EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
ALL = (1 << 16) - 1
_OF_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL_DEV
_TCP, _CONNECT = 0b11, 0b10  # bind and connect
_SCOPES = 0b11  # abstract unix sockets, signals
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_NO_NEW_PRIVS, _SECCOMP = 38, 22

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def abi() -> int:
    """Which version of Landlock the kernel has; 0 where there is none, or where a filter forbids it."""
    return max(0, int(_libc.syscall(_CREATE, None, 0, 1)))


def ruleset(rules: "tuple[tuple[str, int], ...]", port: int = 0) -> int:
    """A descriptor of a domain that allows these rules, no signal and no abstract socket out of it, and no TCP but to
    connect to `port` (0: none), at whichever address.

    A path that does not exist allows nothing. Raises OSError.
    """
    attributes = struct.pack("=QQQ", ALL, _TCP, _SCOPES)
    made = _checked(_libc.syscall(_CREATE, attributes, len(attributes), 0))
    for path, rights in rules:
        try:
            below = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if not stat.S_ISDIR(os.fstat(below).st_mode):
                rights &= _OF_FILES
            _checked(_libc.syscall(_ADD, made, 1, struct.pack("=Qi", rights, below), 0))
        finally:
            os.close(below)
    if port:
        _checked(_libc.syscall(_ADD, made, 2, struct.pack("=QQ", _CONNECT, port), 0))
    return made


def unignore() -> None:
    """Signals that Python has ignored since its start: what it becomes (exec) would go on ignoring them."""
    for number in (13, 25):  # SIGPIPE, SIGXFSZ; the module signal costs a millisecond
        _libc.signal(number, None)


def leave(processes: int) -> None:
    """So many of those that our user may have cannot be made by us, nor by what we start (RLIMIT_NPROC), for good."""
    if not processes:
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NPROC, (max(1, most - processes),) * 2)


def enter(domain: int, program: bytes) -> None:
    """Puts this process, for good, into a domain and under a filter (`struct sock_filter`, one after the other).

    Raises OSError.
    """
    restrict(domain)
    filtered(program)


def restrict(domain: int) -> None:
    """Into the domain alone. Raises OSError."""
    _checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.syscall(_RESTRICT, domain, 0))


def filtered(program: bytes) -> None:
    """Under the filter alone; it needs _NO_NEW_PRIVS. Raises OSError."""
    kept = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    _checked(_libc.prctl(_SECCOMP, 2, described, 0, 0))
