"""The directory tree of one run, and the user it belongs to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from claude_invoker.cli import walk
from claude_invoker.isolation.domains import SNAPSHOTS

_log = logging.getLogger(__name__)
CATALOGS = "catalog"
"""In the trees' directory: what each engine offers to its runs, under its workplace's name."""
KEPT = walk.Bounds(depth=256, entries=200_000, bytes=4 * 1024**3)
"""How much a session's tree may hold: each of its runs hands it over and back entry by entry, and it stays."""


@dataclass(frozen=True)
class Checkout:
    """A repository at a commit: what a tree's `work` holds when its run begins.

    `name` and `ref` are as they were asked for, `branch` is the branch of that name (empty: it is a tag or a commit's
    own id), `store` the directory that the objects are taken from. `is_session`: the tree stays for the next turn.
    `base`: what a session's tree holds already, with what its turns have changed; None: nothing. `modules`: the
    submodules that come along, by their paths.
    """

    name: str
    ref: str | None
    commit: str
    branch: str
    store: Path
    is_session: bool = False
    base: Checkout | None = None
    modules: tuple[tuple[str, Checkout], ...] = ()


@dataclass(frozen=True)
class Tree:
    """Everything a CLI process may write. It belongs to the run's user while the run lasts, and to nobody after it:
    discarded, or taken back until its session goes on."""

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
    def transcripts(self) -> Path:
        return self.config / "projects"

    @property
    def has_transcript(self) -> bool:
        """Whether the CLI has written a conversation to go on with."""
        if not _is_directory(self.config):
            return False
        with contextlib.suppress(OSError, walk.TooMuch):
            return any(entry.name.endswith(".jsonl") for entry in walk.walk(self.transcripts, walk.Bounds(2, 10_000)))
        return False

    @property
    def temp(self) -> Path:
        return self.root / "tmp"

    def create(self, uid: int | None) -> None:
        """Makes what is missing of the tree, mode 0700, and hands all of it to `uid` (None: to whoever we are).

        Of an earlier run of the session only its files and its transcript are left. The CLI reads more in these
        directories than transcripts: `env` of its `.claude.json` would be the environment of this run, whatever its
        tools are. And what is no directory any more, such as a link in the place of `work`, would lead us elsewhere.

        Raises walk.TooMuch, OSError.
        """
        walk.delete(self.home)
        walk.delete(self.temp)
        self.straighten()
        if self.config.exists():
            for path in list(self.config.iterdir()):
                if path != self.transcripts:
                    walk.delete(path)
        for path in (self.root, self.work, self.home, self.config, self.temp, self.root / SNAPSHOTS):
            path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            walk.give(self.root, uid, KEPT)

    def straighten(self) -> None:
        """Removes what is no directory of the tree any more where one has to be: a link in the place of `work` would
        lead whoever writes or reads there elsewhere. Before any use of the tree by its paths. Raises OSError."""
        for path in (self.work, self.config, self.transcripts):
            if not _is_directory(path):
                walk.delete(path)

    def take_back(self, uid: int | None) -> None:
        """Leaves nothing of it to `uid`. Only while nothing of that user is alive. Raises walk.TooMuch, OSError."""
        if uid is not None:
            walk.take_back(self.root, uid, KEPT)


class Discarded:
    """Trees on their way out, in a directory that only we can enter: once a tree is in here no run comes to it, however
    long its deletion takes, and whatever keeps it from succeeding."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Threads of their own: a run may leave more files than can be deleted in a minute.
        self._threads = ThreadPoolExecutor(2, "delete")
        self._closed = False
        self.stuck: dict[str, str] = {}
        """What could not be deleted, and why; it is tried again by `empty`."""

    def take(self, tree: Path) -> Path:
        """Moves a tree in. Returns where it is now. Raises OSError."""
        target = self._directory / secrets.token_hex(8)
        tree.rename(target)
        return target

    def delete_soon(self, target: Path) -> Future[None]:
        """Deletes it in another thread."""
        return self._threads.submit(self.delete, target)

    def delete(self, target: Path) -> None:
        """Never raises: what is left is `stuck`, and said in the log once."""
        try:
            # Several invokers may share a state directory: what another has deleted meanwhile is no matter.
            while os.path.lexists(target):
                with contextlib.suppress(FileNotFoundError):
                    walk.delete(target, lambda: not self._closed)
        except InterruptedError:
            return
        except OSError as error:
            reason = error.strerror or str(error)
            if target.name not in self.stuck:
                _log.error("a run's tree cannot be deleted, it is tried again: %s: %s", target, reason)
            self.stuck[target.name] = reason
        else:
            self.stuck.pop(target.name, None)

    def empty(self) -> None:
        """Deletes everything that is in, also what earlier invokers left."""
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._directory.iterdir()):
                self.delete(path)

    def close(self, within_s: float) -> None:
        """Lets what is being deleted go on for a while; what is left is the next invoker's."""
        running = [self._threads.submit(self.empty)]
        wait(running, within_s)
        self._closed = True
        self._threads.shutdown(cancel_futures=True)


_LONGEST = 60
"""Of the state directory's path, in bytes: that of a socket has 104 at most (unix(7)), also elsewhere than on Linux."""


def tree_root(state_dir: Path, *, isolated: bool) -> Path:
    """Where runs have their trees: in the state directory, or, where a run's own user could not reach that
    (a directory above it is closed to others) or a socket in it would have too long a path, in a directory of ours
    under the system's temporary one.

    There anybody may have made a directory of that name before us: then it is the next name that is free.
    """
    path = state_dir.absolute()
    if (not isolated or is_reachable(path)) and len(os.fsencode(path)) <= _LONGEST:
        return path / "trees"
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    names = [Path(tempfile.gettempdir()) / f"claude-invoker-{digest}{suffix}" for suffix in ("", *range(1, 100))]
    ours = (name for name in names if _is_ours(name))
    free = (name for name in names if not os.path.lexists(name))
    return next(ours, None) or next(free, names[0])


def is_reachable(path: Path) -> bool:
    """Whether any user may pass through all directories above `path`."""
    return all(not parent.exists() or parent.stat().st_mode & 0o001 for parent in path.parents)


def prepare(state_dir: Path, trees: Path) -> None:
    """Makes the directories that last. Runs may pass through those above their trees, and list nothing.

    Raises PermissionError where the trees' directory is another user's (it may be in a shared directory).
    """
    for path in (state_dir, trees, trees / "engines", trees / "sessions", trees / CATALOGS):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not _is_ours(path):
            raise PermissionError(f"{path} is not a directory of this user")
        path.chmod(0o711)
    for path in (state_dir / "artifacts", state_dir / "locks", state_dir / "sessions", trees / "discarded"):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)


def _is_directory(path: Path) -> bool:
    """A link to one is none."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


class Workplace:
    """The directory of one engine's trees. Its lock is held while the engine lives, so that the next one finds
    out which directories a killed engine has left."""

    def __init__(self, trees: Path) -> None:
        self._engines = trees / "engines"
        self.path = self._engines / secrets.token_hex(8)
        self.api = self.path / "api"
        """The directory of the API's socket: runs have it in their namespaces, and whatever socket is in it by then."""
        self._lock: IO[bytes] | None = None

    def open(self) -> None:
        made = self._engines / f".{self.path.name}"
        for path in (made, made / self.api.name):
            path.mkdir(mode=0o711, parents=True)
            path.chmod(0o711)
        self._lock = (made / ".lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(self.path)

    def close(self, discarded: Discarded) -> None:
        """Discards it with all that is in it."""
        if self._lock is not None:
            discarded.take(self.path)
            self._lock.close()

    def abandoned(self) -> Iterator[Path]:
        """The workplaces of engines that are no more."""
        for path in self._engines.iterdir():
            if path != self.path and not path.name.startswith(".") and _is_abandoned(path):
                yield path


def _is_abandoned(workplace: Path) -> bool:
    try:
        with (workplace / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def dismantle(trees: Path) -> None:
    """Removes what `prepare` made, where no other engine and no session is left in it."""
    with contextlib.suppress(OSError):
        (trees / "engines").rmdir()
        (trees / "sessions").rmdir()
        (trees / "discarded").rmdir()
        walk.delete(trees)
