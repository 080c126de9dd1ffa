"""User ids for runs: one of its own for each where we are root."""

from __future__ import annotations

import os
import socket

from claude_invoker.cli.kill import kill_user

_SPAN = 4096


class Users:
    """Hands out user ids from `base` on; none (None: our own user) where we are not root.

    Ending a run kills every process of its user, so no two invokers of a machine may use the same id at once:
    each id in use is a bound abstract socket, which the kernel releases however its holder ends.
    """

    def __init__(self, base: int) -> None:
        self.isolated = os.geteuid() == 0
        self._base = base
        self._next = 0
        self._locks: dict[int, socket.socket] = {}

    def take(self) -> int | None:
        """A user id that nobody uses, with no process left from an earlier use. Raises OSError where none is."""
        if not self.isolated:
            return None
        for _ in range(_SPAN):
            uid = self._base + self._next
            self._next = (self._next + 1) % _SPAN
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind(f"\0claude-invoker-uid-{uid}")
            except OSError:
                lock.close()
                continue
            self._locks[uid] = lock
            kill_user(uid)
            return uid
        raise OSError("no user id is free")

    def give_back(self, uid: int | None) -> None:
        """Only after every process of the user has ended and its files are gone."""
        if uid is not None:
            self._locks.pop(uid).close()
