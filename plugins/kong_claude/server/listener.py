"""The socket file: claimed without a moment in which nobody listens, and never taken from a living server."""

from __future__ import annotations

import _socket
import os
import socket
import stat
import struct
from contextlib import closing
from pathlib import Path


class SocketInUse(Exception):
    """Another process listens on the path."""


def _parent(pid: int) -> tuple[int, str]:
    """Parent's pid and name. Raises OSError."""
    ppid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return ppid, Path(f"/proc/{ppid}/comm").read_text().strip() if ppid else ""


def _is_predecessor(pid: int) -> bool:
    """Whether `pid` is the server of an older worker of our own Kong: on `kong reload` a new one is started while
    the old one still serves, and must take the path over."""
    try:
        (ours, our_name), (theirs, their_name) = _parent(os.getpid()), _parent(pid)
        return ours != theirs and our_name == their_name == "nginx" and _parent(ours)[0] == _parent(theirs)[0] > 1
    except (OSError, ValueError, IndexError):
        return False


def _check_free(path: str) -> None:
    """Raises SocketInUse when someone accepts there, or when the path is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SocketInUse(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with closing(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # stale: its process is gone
        except OSError as error:
            raise SocketInUse(f"{path}: {error}") from error
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = struct.unpack("iII", peer)[0]
    if not _is_predecessor(pid):
        raise SocketInUse(f"{path}: process {pid} listens there already")


class Listener:
    """A listening unix socket at `path` with file mode `mode`. Raises SocketInUse, OSError."""

    def __init__(self, path: str, mode: int, backlog: int) -> None:
        _check_free(path)
        self.path = path
        self.sock = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = str(Path(path).with_name(f".{os.getpid()}"))
        old_mask = os.umask(0o777 & ~mode)
        try:
            Path(fresh).unlink(missing_ok=True)
            self.sock.bind(fresh)
            Path(fresh).chmod(mode)
            self.sock.listen(backlog)
            self.sock.setblocking(False)
            Path(fresh).rename(path)
        finally:
            os.umask(old_mask)
        self._inode = os.lstat(path).st_ino

    def accept(self) -> _socket.socket:
        """Raises OSError."""
        fd, _ = self.sock._accept()  # type: ignore[attr-defined]
        return _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)

    def close(self) -> None:
        """Stops listening; removes the file unless a successor has put its own there."""
        self.sock.close()
        try:
            if os.lstat(self.path).st_ino == self._inode:
                Path(self.path).unlink()
        except FileNotFoundError:
            pass
