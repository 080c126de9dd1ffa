"""User ids for runs: one of its own for each where we are root."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from claude_invoker.cli.kill import owners
from claude_invoker.locking import locked

SPAN = 4096
_RESERVED = 3
MACHINE_LOCKS = Path("/run/claude-invoker")
"""Where the invokers of one machine see each other's locks, whatever their state directories."""


class NoUserFree(RuntimeError):
    """Every user id is taken, or none can be locked."""


class Users:
    """Hands out the user ids `base + 3` to `base + SPAN - 1`; none (None: our own user) where we are not root.

    `base` itself is the killer's, `base + 1` the metering proxy's, `base + 2` that of git, which fetches repositories:
    none is ever a run's.

    Ending a run kills every process of its user and its trees belong to that user, so no two invokers
    that share a machine or a state directory
    may use an id at once: each id in use is a locked file (flock(2)) in `locks` and in `MACHINE_LOCKS`, which only root
    can enter. The kernel releases the locks however their holder ends.
    """

    def __init__(self, base: int, locks: Path) -> None:
        self.isolated = os.geteuid() == 0
        self.killer = base
        self.meter = base + 1
        self.fetcher = base + 2
        self._first = base + _RESERVED
        # Ids are not the same again after a restart: what a run has left outside of its tree finds no heir soon.
        self._next = random.SystemRandom().randrange(SPAN - _RESERVED)
        self._directories = [locks]
        self._locks: dict[int, ExitStack] = {}
        self.quarantined: dict[int, Path | None] = {}
        """Ids that stay locked, since a process of theirs is left, or the tree that is named could not be removed."""

    def open(self) -> None:
        """Makes the directories of the locks. Raises OSError, where another user could write there too."""
        if not self.isolated:
            return
        _make_private(self._directories[0])
        try:
            _make_private(MACHINE_LOCKS)
        except OSError as error:
            # A container with a read-only root: it sees no processes but its own.
            if error.errno != errno.EROFS:
                raise
        else:
            self._directories = [self._directories[0], MACHINE_LOCKS]

    def take(self) -> int | None:
        """An id that nobody uses. Processes of an earlier use may be left: they are to be ended first.

        Raises NoUserFree.
        """
        if not self.isolated:
            return None
        for _ in range(SPAN - _RESERVED):
            uid = self._first + self._next
            self._next = (self._next + 1) % (SPAN - _RESERVED)
            if uid not in self._locks and (lock := self._lock(uid)) is not None:
                self._locks[uid] = lock
                return uid
        raise NoUserFree("no user id is free for another run")

    def give_back(self, uid: int | None) -> None:
        """Only after every process of the user has ended and no other run can come to its files."""
        if uid is not None:
            self._locks.pop(uid).close()

    def quarantine(self, uid: int | None, tree: Path | None = None) -> None:
        """The id stays taken until `release`: something of its user is left."""
        if uid is not None:
            self.quarantined[uid] = tree

    def release(self, uid: int) -> None:
        """Nothing is left any more."""
        del self.quarantined[uid]
        self.give_back(uid)

    def share(self, uid: int, whose: str) -> bool:
        """Keeps an id that is no run's from invokers of a release that gave it to runs; others use it as well. True
        where none does: what lives under it is left over. Raises NoUserFree where a run has it."""
        if not self.isolated:
            return False
        with ExitStack() as held:
            alone = True
            for directory in self._directories:
                file = held.enter_context((directory / str(uid)).open("wb"))
                alone = locked(file) and alone
                if not _shared(file):
                    raise NoUserFree(f"user {uid} is {whose}, and a run of an older release has it: stop that first")
            self._locks[uid] = held.pop_all()
        return alone

    def orphaned(self) -> list[int]:
        """Ids with living processes that no invoker holds; they are taken (see `give_back`)."""
        if not self.isolated:
            return []
        found = []
        for uid in sorted(owners(range(self._first, self.killer + SPAN))):
            if uid not in self._locks and (lock := self._lock(uid)) is not None:
                self._locks[uid] = lock
                found.append(uid)
        return found

    def close(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def _lock(self, uid: int) -> ExitStack | None:
        with ExitStack() as held:
            for directory in self._directories:
                file = held.enter_context((directory / str(uid)).open("wb"))
                if not locked(file):
                    return None
            return held.pop_all()


def _shared(file: IO[bytes]) -> bool:
    """Whether the lock can be shared; another invoker that starts has it for itself for a moment."""
    for _ in range(100):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0:
        raise PermissionError(errno.EPERM, "not a directory of root's", str(path))
    path.chmod(0o700)
