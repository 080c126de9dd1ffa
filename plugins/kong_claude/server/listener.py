"""The socket file: claimed without a moment in which nobody listens, and never taken from a living server."""

from __future__ import annotations

import _socket
import logging
import os
import socket
import stat
import struct
from contextlib import closing
from pathlib import Path

from kong_claude.server.keeper import Master, master_of, parent

log = logging.getLogger("kong_claude.pluginserver")


class SocketInUse(Exception):
    """Another process listens on the path."""


def _check_free(path: Path, master: Master | None) -> None:
    """Raises SocketInUse when someone accepts there who is no older server of our own Kong, or when the path is no
    socket: on `kong reload` a new server is started while the old one still serves, and must take the path over."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketInUse(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with closing(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # stale: its process is gone
        except OSError as error:
            raise SocketInUse(f"{path}: {error}") from error
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = struct.unpack("iII", peer)[0]
    if master is None or not _is_predecessor(path, pid, master):
        raise SocketInUse(f"{path}: process {pid} listens there already")


def _is_predecessor(path: Path, pid: int, master: Master) -> bool:
    """Of another worker of the same Kong, or of one whose keeper has gone; the worker that has started us may have been
    told to start two at one path."""
    if not door(path, pid, master).exists():
        return master_of(pid) == master  # of a release that had neither doors nor keepers
    try:
        ours, theirs = (parent(parent(of)[0])[0] for of in (os.getpid(), pid))
    except (OSError, ValueError, IndexError):
        return True
    return ours != theirs


def door(path: Path, pid: int, master: Master) -> Path:
    """Where the server `pid` of a Kong listens for that Kong's other servers, whoever has the path."""
    return path.with_name(f".{path.name}.{master.pid}.{pid}")


class Listener:
    """A listening unix socket at `path` with file mode `mode`; of a Kong's server, a second one for its other servers.

    Raises SocketInUse, OSError.
    """

    def __init__(self, path: str, mode: int, backlog: int, master: Master | None = None) -> None:
        self.path = Path(path)
        self.master = master
        self._mode, self._backlog = mode, backlog
        self.door: _socket.socket | None = None
        self._door_path: Path | None = None
        _check_free(self.path, master)
        fresh = self.path.with_name(f".{os.getpid()}")
        if master is not None:
            self._open_door(door(self.path, os.getpid(), master))
        self.sock = _listen(fresh, mode, backlog)
        fresh.rename(self.path)
        self._inode = self.path.lstat().st_ino

    def _open_door(self, path: Path) -> None:
        for other in self.siblings():  # what killed servers have left
            with closing(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                try:
                    probe.connect(str(other))
                except ConnectionRefusedError:
                    other.unlink(missing_ok=True)
                except OSError:
                    pass
        try:
            self.door, self._door_path = _listen(path, 0o600, 64), path
        except OSError as error:
            log.warning("%s: %s; a kong reload may refuse requests that are under way", path, error)

    def siblings(self) -> list[Path]:
        """Where this Kong's other servers of this path listen for us; some may have gone."""
        if self.master is None:
            return []
        found = self.path.parent.glob(f".{self.path.name}.{self.master.pid}.*")
        return sorted(path for path in found if path != self._door_path)

    def restored(self) -> _socket.socket | None:
        """Listens anew where somebody has removed the file: Kong could make no new connection. Returns the socket that
        listened before; None where nothing was to be done, or a newer server was quicker. Raises OSError."""
        if os.path.lexists(self.path):
            return None
        if self.master is not None and not self.master.alive:
            return None  # the next Kong has cleaned up behind ours, and its server needs the path
        fresh = self.path.with_name(f".{os.getpid()}")
        made = _listen(fresh, self._mode, self._backlog)
        try:
            self.path.hardlink_to(fresh)  # unlike a rename never over what a newer server has put there
        except BaseException as error:
            made.close()
            if isinstance(error, FileExistsError):
                return None
            raise
        finally:
            fresh.unlink(missing_ok=True)
        before, self.sock = self.sock, made
        self._inode = self.path.lstat().st_ino
        return before

    @property
    def superseded(self) -> bool:
        """A newer server has taken the path."""
        try:
            return self.path.lstat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Stops listening; removes the file unless a successor has put its own there."""
        self.sock.close()
        if not self.superseded:
            self.path.unlink(missing_ok=True)

    def close_door(self) -> None:
        if self.door is not None and self._door_path is not None:
            self.door.close()
            self._door_path.unlink(missing_ok=True)


def _listen(path: Path, mode: int, backlog: int) -> _socket.socket:
    made = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o777 & ~mode)
    try:
        path.unlink(missing_ok=True)
        made.bind(str(path))
        path.chmod(mode)
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(old_mask)
    return made


def accept(sock: _socket.socket) -> _socket.socket:
    """The next connection. Raises OSError."""
    fd, _ = sock._accept()  # type: ignore[attr-defined]
    return _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
