"""A network of a run's own (network_namespaces(7)): an empty one, in which one listener of ours is all that there is.

Landlock's rules on TCP name ports and no addresses: without this a run that may connect to one port could reach that
port of every host there is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TypeVar

HOST, PORT = "127.0.0.1", 3128
"""The listener's address in each of these networks. No two of them meet, so that it can be the same in all."""

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_PR_SET_DUMPABLE = 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_BACKLOG = 128
_LIBC = ctypes.CDLL(None, use_errno=True)

_T = TypeVar("_T")


class Way(Enum):
    """How the invoker comes by such a network."""

    CAPABILITIES = "with CAP_SYS_ADMIN and CAP_NET_ADMIN"
    USER_NAMESPACE = "in a user namespace"


def started(way: Way, start: Callable[[Callable[[], None]], _T]) -> tuple[_T, socket.socket]:
    """What `start` returns, and the listener in the network of what it has started.

    `start` forks, as the run's user, a child that calls what `start` is given before exec, and returns after that.
    Raises OSError, and what `start` raises.
    """
    if way is Way.CAPABILITIES:
        # A network is a thread's, and a child has that of the thread that forks it. The thread ends with it.
        with ThreadPoolExecutor(1, "network") as thread:
            return thread.submit(_from_inside, start).result()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            made = start(lambda: _go_inside(theirs))
        except subprocess.SubprocessError:  # of which it does not say more
            ours.setblocking(False)
            with suppress(BlockingIOError):
                number = int(ours.recv(16))
                raise OSError(number, os.strerror(number)) from None
            raise
        _, descriptors, *_ = socket.recv_fds(ours, 1, 1)
    return made, socket.socket(fileno=descriptors[0])


def _from_inside(start: Callable[[Callable[[], None]], _T]) -> tuple[_T, socket.socket]:
    _unshare(_NEW_NET)
    listener = _listener()
    try:
        return start(lambda: None), listener
    except BaseException:
        listener.close()
        raise


def _go_inside(to_us: socket.socket) -> None:
    """In the child, as the run's user, of whom nothing else is alive. Until exec it may do anything in there."""
    try:
        with _enter_user_namespace() as listener:
            socket.send_fds(to_us, [b"0"], [listener.fileno()])
    except OSError as error:
        to_us.send(b"%d" % (error.errno or 0))
        raise


def _enter_user_namespace() -> socket.socket:
    uid, gid = os.geteuid(), os.getegid()
    # Changing its user has made the process's files below /proc root's.
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    _unshare(_NEW_USER | _NEW_NET)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    return _listener()


def _unshare(flags: int) -> None:
    if _LIBC.unshare(flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _listener() -> socket.socket:
    """In the network of this thread, which has nothing yet: its loopback is switched on first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh22x", b"lo", 0)
        name, flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _IFF_UP))
    return socket.create_server((HOST, PORT), backlog=_BACKLOG)
