"""Conversations that go on over several runs: one directory tree each, owned by a subject."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from claude_invoker.cli.tree import Discarded, Tree
from claude_invoker.cli.walk import TooMuch
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
_UNCLAIMED_S = 60.0
"""A tree without a record is younger than this while its session is being made."""


@dataclass(frozen=True)
class Session:
    """`id` is what its owner calls it. Nothing that a run can see is derived from it: the tree has its own name."""

    id: str
    tree: Tree

    @property
    def begun(self) -> bool:
        """Whether the CLI has written a transcript to go on with."""
        return self.tree.has_transcript


class Sessions:
    """Each session is a record, which only we can read, and a tree, which is the run's while one of its runs lasts.

    The record is named by a digest of subject and id and says where the tree is; its lock (flock(2)) keeps a session to
    one run at a time, also between processes, and its time is that of the last use.
    """

    def __init__(self, trees: Path, records: Path, discarded: Discarded, ttl_s: float) -> None:
        self._trees = trees
        self._records = records
        self._discarded = discarded
        self._ttl_s = ttl_s

    @contextlib.contextmanager
    def hold(self, subject: str, wish: str) -> Iterator[Session]:
        """The session for one run; `wish` is `new` or an id.

        Raises Problem 404 for one that is not there, expired or another's, and 409 while it is in use.
        """
        identity = str(uuid.uuid4()) if wish == "new" else wish
        path = self._records / record_name(subject, identity)
        with contextlib.ExitStack() as stack:
            try:
                record = stack.enter_context(path.open("x+" if wish == "new" else "r+"))
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError as error:
                raise _no_such_session() from error
            except BlockingIOError as error:
                raise Problem(409, "conflict", "the session has a run in progress") from error
            if wish == "new":
                tree = Tree(self._trees / secrets.token_hex(16))
                json.dump({"v": 1, "tree": tree.root.name}, record)
                record.flush()
                tree.root.mkdir(mode=0o700)
            else:
                found = self._tree(record)
                if found is None or not self._is_alive(record) or not found.root.exists():
                    raise _no_such_session()
                tree = found
            try:
                yield Session(identity, tree)
            finally:
                if tree.root.exists():
                    os.utime(path)
                else:  # what the run has left in it was too much to keep
                    path.unlink(missing_ok=True)

    def expire(self) -> int:
        """Deletes sessions that nobody used for their time to live, and trees that no session has; how many sessions
        there were. What goes wrong with one is logged and keeps no other. A record that cannot be read may have any
        tree: then none counts as nobody's."""
        trees = {path.name for path in self._trees.iterdir() if time.time() - path.lstat().st_mtime > _UNCLAIMED_S}
        gone, claimed = 0, set()
        for path in list(self._records.iterdir()):
            try:
                with path.open("r+") as record:
                    tree = self._tree(record)
                    if tree is not None:
                        claimed.add(tree.root.name)
                    fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_alive(record) and tree is not None:
                        continue
                    if tree is not None and tree.root.exists():
                        self._discarded.delete(self._discarded.take(tree.root))
                    path.unlink()
                    gone += 1
            except (BlockingIOError, FileNotFoundError):
                continue
            except OSError as error:
                _log.error("a session cannot be ended: %s: %s", path.name, error.strerror)
                trees = set()
        for name in trees - claimed:
            with contextlib.suppress(FileNotFoundError):
                self._discarded.delete(self._discarded.take(self._trees / name))
        return gone

    def recover(self) -> None:
        """Takes back the trees of sessions whose invoker died during a run. Only once nothing of such runs is alive."""
        for path in list(self._records.iterdir()):
            with contextlib.suppress(OSError), path.open("r+") as record:
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tree = self._tree(record)
                if tree is None or not tree.root.exists():
                    continue
                owner = tree.root.lstat().st_uid
                if owner != os.geteuid():
                    try:
                        tree.take_back(owner)
                    except TooMuch:
                        self._discarded.delete(self._discarded.take(tree.root))

    def _tree(self, record: IO[str]) -> Tree | None:
        """None for a record that was not written to its end."""
        try:
            return Tree(self._trees / Path(str(json.load(record)["tree"])).name)
        except (ValueError, KeyError, TypeError):
            return None

    def _is_alive(self, record: IO[str]) -> bool:
        status = os.fstat(record.fileno())
        return status.st_nlink > 0 and status.st_mtime + self._ttl_s > time.time()


def record_name(subject: str, identity: str) -> str:
    """Another for each pair, whatever is in the two."""
    parts = (part.encode("utf-8", "surrogatepass") for part in (subject, identity))
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()


def _no_such_session() -> Problem:
    return Problem(404, "not-found", "there is no such session")
