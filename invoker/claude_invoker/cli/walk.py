"""Walking through what a run has left: a tree of any depth, with any names, links and modes in it.

One descriptor at a time, however deep: down by `openat` without following links, up by `..`, which must be the
directory that we came from. Nothing recurses, and nothing is opened by a path that the run could have prepared. Only to
be used once nothing of the run is alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
BLOCK = 512
"""Bytes, whatever the file system's own blocks are: see stat(2)."""
_BATCH = 1000
"""Subdirectories of one directory that `delete` remembers at once."""
_TOGETHER = 1000
"""How often `delete` begins again because another was faster: that has then removed something, too."""


class TooMuch(Exception):
    """A tree is deeper, or has more entries, than the bounds allow."""


class Moved(OSError):
    """A directory is not where it was: somebody still works in the tree, or it reaches into another file system."""


@dataclass(frozen=True)
class Bounds:
    """How far a walk goes. `depth` counts directories below the root, `entries` everything in them, `bytes` what they
    take on the disk."""

    depth: int = 64
    entries: int = 100_000
    bytes: int = 1 << 63


@dataclass(frozen=True)
class Entry:
    """Something in the tree: its name in the directory that is open as `directory`, for as long as it is looked at."""

    directory: int
    name: str
    status: os.stat_result
    parents: tuple[str, ...]

    @property
    def path(self) -> str:
        """Relative to the root of the walk."""
        return "/".join((*self.parents, self.name))

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@dataclass
class _Level:
    """A directory on the way down: who it is, and which of its subdirectories are still to be visited."""

    name: str
    identity: tuple[int, int]
    pending: list[str] = field(default_factory=list)


class _Cursor:
    """The directory where a walk stands."""

    def __init__(self, root: Path, *, close: bool = False) -> None:
        self.fd = os.open(root, DIRECTORY)
        self._closes = close
        if close:
            _close(self.fd)
        self.levels = [_Level(root.name, _identity(self.fd))]
        self.refused: dict[tuple[int, str], OSError] = {}
        """What could not be entered or removed, by its directory's inode and its name."""

    @property
    def here(self) -> _Level:
        return self.levels[-1]

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels[1:])

    def descend(self) -> bool:
        """Goes to the next pending subdirectory that can be entered. False where there is none."""
        while self.here.pending:
            name = self.here.pending.pop()
            try:
                self._down(name)
            except OSError as error:
                self.refuse(name, error)
            else:
                return True
        return False

    def refuse(self, name: str, error: OSError) -> None:
        self.refused[self.here.identity[1], name] = error

    def _down(self, name: str) -> None:
        below = _open_directory(self.fd, name)
        level = _Level(name, _identity(below))
        if level.identity[0] != self.levels[0].identity[0]:
            os.close(below)
            raise Moved(f"another file system is mounted at depth {len(self.levels)}")
        os.close(self.fd)
        self.fd = below
        self.levels.append(level)
        if self._closes:
            _close(below)

    def up(self) -> str:
        """The name of the directory that was left. Raises OSError, Moved."""
        above = os.open("..", DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = above
        left = self.levels.pop()
        if _identity(above) != self.here.identity:
            raise Moved(f"the directory at depth {len(self.levels)} was moved")
        return left.name

    def close(self) -> None:
        os.close(self.fd)


def walk(root: Path, bounds: Bounds, ignored: frozenset[str] = frozenset()) -> Iterator[Entry]:
    """Each entry of the tree but the root, directories before what is in them; directories named in `ignored` are
    passed over. What vanishes meanwhile is passed over too. Raises TooMuch, and OSError where the root cannot be
    opened."""
    cursor = _Cursor(root)
    left, space = bounds.entries, bounds.bytes
    try:
        while True:
            parents = cursor.parents
            with os.scandir(cursor.fd) as found:
                for item in found:
                    left -= 1
                    if left < 0:
                        raise TooMuch(f"more than {bounds.entries:,} entries")
                    try:
                        status = item.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    space -= status.st_blocks * BLOCK
                    if space < 0:
                        raise TooMuch(f"more than {bounds.bytes:,} bytes")
                    if stat.S_ISDIR(status.st_mode):
                        if item.name in ignored:
                            continue
                        if len(parents) >= bounds.depth:
                            raise TooMuch(f"more than {bounds.depth} directories deep")
                        cursor.here.pending.append(item.name)
                    yield Entry(cursor.fd, item.name, status, parents)
            while not cursor.descend():
                if len(cursor.levels) == 1:
                    return
                cursor.up()
    finally:
        cursor.close()


def is_within(root: Path, path: str) -> bool:
    """Whether a directory lies there, on a way by directories alone: nothing of it is a link. Raises OSError where the
    root cannot be opened."""
    at = os.open(root, DIRECTORY)
    try:
        for name in path.split("/"):
            below = os.open(name, DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
    except OSError:
        return False
    finally:
        os.close(at)
    return True


def open_file(entry: Entry) -> int:
    """A regular file's descriptor, for reading: also where its owner, who is ours, may not read it. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(entry.name, flags, dir_fd=entry.directory)
    except PermissionError:
        handle = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.directory)
        path = Path(f"/proc/self/fd/{handle}")
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise
            path.chmod(0o400)
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.fchmod(opened, stat.S_IMODE(entry.status.st_mode))
            return opened
        finally:
            os.close(handle)


def give(root: Path, uid: int, bounds: Bounds) -> None:
    """Makes all of the tree user and group `uid`'s, the root last. A file with links outside of the tree stays as it
    is: it may be somebody else's. Raises TooMuch, OSError."""
    links: Counter[int] = Counter()
    for entry in walk(root, bounds):
        if not entry.is_directory and entry.status.st_nlink > 1:
            links[entry.status.st_ino] += 1
            if links[entry.status.st_ino] < entry.status.st_nlink:
                continue
        os.chown(entry.name, uid, uid, dir_fd=entry.directory, follow_symlinks=False)
    os.chown(root, uid, uid, follow_symlinks=False)


def take_back(root: Path, uid: int, bounds: Bounds) -> None:
    """Makes all that user `uid` has in the tree ours, the root first and closed to everybody else: from then on nobody
    comes to it by having that number. Raises TooMuch, OSError."""
    us, group = os.geteuid(), os.getegid()
    os.chown(root, us, group, follow_symlinks=False)
    root.chmod(0o700)
    for entry in walk(root, bounds):
        if entry.status.st_uid == uid:
            os.chown(entry.name, us, group, dir_fd=entry.directory, follow_symlinks=False)


def delete(root: Path, wanted: Callable[[], bool] = lambda: True) -> None:
    """Removes a tree, whatever is in it. Does nothing where there is none; several may delete the same one. Raises
    OSError for the first thing that cannot be removed; all that can be is removed by then. It gives up (EINTR) when it
    is not `wanted` any more."""
    for _ in range(_TOGETHER):
        try:
            _delete(root, wanted)
            return
        except FileNotFoundError:  # of what another was faster to remove
            if not os.path.lexists(root):
                return
    _delete(root, wanted)


def _delete(root: Path, wanted: Callable[[], bool]) -> None:
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode):
        root.unlink()
        return
    if stat.S_IMODE(status.st_mode) & 0o700 != 0o700:
        root.chmod(0o700)
    cursor = _Cursor(root, close=True)
    try:
        while True:
            if not wanted():
                raise InterruptedError(errno.EINTR, "not wanted any more")
            _remove_files(cursor)
            while not cursor.descend():
                if len(cursor.levels) == 1:
                    for error in cursor.refused.values():
                        raise error
                    root.rmdir()
                    return
                name = cursor.up()
                try:
                    os.rmdir(name, dir_fd=cursor.fd)
                except OSError as error:
                    cursor.refuse(name, error)
                if not cursor.here.pending:
                    break  # that was one batch of them
    finally:
        cursor.close()


def _remove_files(cursor: _Cursor) -> None:
    """Empties the open directory of all but its full subdirectories, of which a batch is noted as pending."""
    inode = cursor.here.identity[1]
    with os.scandir(cursor.fd) as found:
        for item in found:
            if (inode, item.name) in cursor.refused:
                continue
            try:
                if not item.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(item.name, dir_fd=cursor.fd)
                    continue
                with contextlib.suppress(OSError):
                    os.rmdir(item.name, dir_fd=cursor.fd)
                    continue
            except OSError as error:
                cursor.refuse(item.name, error)
                continue
            cursor.here.pending.append(item.name)
            if len(cursor.here.pending) >= _BATCH:
                break


def _open_directory(parent: int, name: str) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        # Not root, but the owner: a run may have taken our right to enter. By descriptor, so that no link is followed.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        finally:
            os.close(handle)
        return os.open(name, DIRECTORY, dir_fd=parent)


def _close(fd: int) -> None:
    """Nobody but the owner may do anything in the directory: where the run let other users in, some that live on could
    go on filling it. And the owner may: a run may have taken our own right to remove what is in it."""
    with contextlib.suppress(OSError):
        os.fchmod(fd, 0o700)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
