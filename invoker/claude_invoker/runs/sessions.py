"""Conversations that go on over several runs: one directory tree each, owned by a subject."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.cli.tree import Tree
from claude_invoker.problem import Problem


@dataclass(frozen=True)
class Session:
    id: str
    tree: Tree

    @property
    def begun(self) -> bool:
        """Whether the CLI has written a transcript that can be resumed."""
        return any((self.tree.config / "projects").glob(f"*/{self.id}.jsonl"))


class Sessions:
    """Sessions under `root/<subject's digest>/<id>`; a file lock keeps a session to one run at a time,
    also between processes."""

    def __init__(self, root: Path, locks: Path, ttl_s: float) -> None:
        self._root = root
        self._locks = locks
        self._ttl_s = ttl_s

    @contextlib.contextmanager
    def hold(self, subject: str, wish: str) -> Iterator[Session]:
        """The session for one run; `wish` is `new` or an id.

        Raises Problem 404 for one that is not there, expired or another's, and 409 while it is in use.
        """
        home = self._root / _digest(subject)
        identity = str(uuid.uuid4()) if wish == "new" else wish
        tree = Tree(home / identity)
        if wish != "new" and not self._alive(tree.root):
            raise Problem(404, "not-found", "there is no such session")
        home.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_path = self._locks / f"{_digest(subject)}-{identity}.lock"
        with lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Problem(409, "conflict", "the session has a run in progress") from error
            if wish == "new":
                tree.root.mkdir(mode=0o700)
            elif not tree.root.exists():
                raise Problem(404, "not-found", "there is no such session")
            try:
                yield Session(identity, tree)
            finally:
                os.utime(tree.root)

    def expire(self) -> int:
        """Deletes sessions that nobody used for their time to live; how many there were."""
        gone = 0
        for root in self._root.glob("*/*"):
            if self._alive(root):
                continue
            lock_path = self._locks / f"{root.parent.name}-{root.name}.lock"
            with contextlib.suppress(OSError), lock_path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Tree(root).delete()
                lock_path.unlink()
                gone += 1
        return gone

    def _alive(self, root: Path) -> bool:
        try:
            return root.stat().st_mtime + self._ttl_s > time.time()
        except OSError:
            return False


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]
