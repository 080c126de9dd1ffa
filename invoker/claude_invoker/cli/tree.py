"""The directory tree of one run, and the user it belongs to."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Tree:
    """Everything a CLI process may write: deleted as a whole when the run is over."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def temp(self) -> Path:
        return self.root / "tmp"

    def create(self, uid: int | None) -> None:
        """Makes the tree, mode 0700, and hands it to `uid` (None: to whoever we are)."""
        for path in (self.root, self.work, self.home, self.config, self.temp):
            path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            self.give_to(uid)

    def give_to(self, uid: int) -> None:
        """Changes the owner of all of it, never following a link. Only safe while nothing runs in it."""
        for directory, names, files in os.walk(self.root):
            os.chown(directory, uid, uid, follow_symlinks=False)
            for name in (*names, *files):
                path = os.path.join(directory, name)  # noqa: PTH118 -- hot loop over a hostile tree
                if os.lstat(path).st_nlink == 1 or os.path.isdir(path):  # noqa: PTH112
                    os.chown(path, uid, uid, follow_symlinks=False)

    def delete(self) -> None:
        """Removes it. Raises OSError where something is left."""
        if not self.root.exists():
            return
        shutil.rmtree(self.root, onerror=_make_writable)

    async def deleted(self) -> None:
        await asyncio.to_thread(self.delete)


def _make_writable(function: object, path: str, error: object) -> None:
    """A run may leave directories without write permission; as their owner we can still remove them."""
    target = Path(path)
    target.parent.chmod(0o700)
    if target.is_dir() and not target.is_symlink():
        target.chmod(0o700)
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def tree_root(state_dir: Path, *, isolated: bool) -> Path:
    """Where runs have their trees: in the state directory, or, where a run's own user could not reach that
    (a directory above it is closed to others), in a directory of ours under the system's temporary one."""
    path = state_dir.absolute()
    if not isolated or is_reachable(path):
        return path / "trees"
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"claude-invoker-{digest}"


def is_reachable(path: Path) -> bool:
    """Whether any user may pass through all directories above `path`."""
    return all(not parent.exists() or parent.stat().st_mode & 0o001 for parent in path.parents)


def prepare(state_dir: Path, trees: Path) -> None:
    """Makes the directories that last. Runs may pass through those above their trees, and list nothing.

    Raises PermissionError where the trees' directory is another user's (it may be in a shared directory).
    """
    for path in (state_dir, trees, trees / "engines", trees / "sessions"):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{path} is not a directory of this user")
        path.chmod(0o711)
    for path in (state_dir / "artifacts", state_dir / "locks"):
        path.mkdir(mode=0o700, exist_ok=True)


class Workplace:
    """The directory of one engine's trees. Its lock is held while the engine lives, so that the next one finds
    out which directories a killed engine has left."""

    def __init__(self, trees: Path) -> None:
        self._engines = trees / "engines"
        self.path = self._engines / secrets.token_hex(8)
        self._lock: IO[bytes] | None = None

    def open(self) -> None:
        self.path.mkdir(mode=0o711, parents=True)
        self.path.chmod(0o711)
        self._lock = (self.path / ".lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        if self._lock is not None:
            Tree(self.path).delete()
            self._lock.close()

    def abandoned(self) -> Iterator[Path]:
        """The workplaces of engines that are no more."""
        for path in self._engines.iterdir():
            if path == self.path:
                continue
            with contextlib.suppress(OSError), (path / ".lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path


def dismantle(trees: Path) -> None:
    """Removes what `prepare` made, where no other engine and no session is left in it."""
    with contextlib.suppress(OSError):
        (trees / "engines").rmdir()
        (trees / "sessions").rmdir()
        shutil.rmtree(trees)
