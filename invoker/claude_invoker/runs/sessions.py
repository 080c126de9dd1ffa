"""Conversations that go on over several runs: one directory tree each, owned by a subject."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from claude_contract import versions
from claude_contract.versions import UnknownVersion
from claude_invoker.cli import usage
from claude_invoker.cli.tree import Discarded, Tree
from claude_invoker.cli.walk import TooMuch
from claude_invoker.disk import Kept, subject_digest
from claude_invoker.locking import locked
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
VERSION = 1
"""Of records. Release 0.1.0, version 0, had none: its trees were named `<digest of the subject>/<id>`. They stay where
they are, since the CLI finds a conversation by the directory it was held in."""
_NAME = re.compile(r"[0-9a-f]{32}(?:/[0-9a-f-]{36})?")
_UNCLAIMED_S = 60.0
"""A tree without a record is younger than this while its session is being made."""


@dataclass(frozen=True)
class Away:
    """What a job has left in a session where it was put away: a call of that tool, which waits to be allowed.
    `is_own`: the session is the job's alone."""

    job: str
    tool: str
    is_own: bool = False


@dataclass
class Session:
    """`id` is what its owner calls it. Nothing that a run can see is derived from it: the tree has its own name."""

    id: str
    tree: Tree
    name: str = field(default="", compare=False)
    """Of its record."""
    mark: int = field(default=0, compare=False)
    """Another after each use of it on this machine."""
    is_made: bool = field(default=False, compare=False)
    """Whether there was nothing of it on this machine."""
    remembered: tuple[str, ...] = field(default=(), compare=False)
    """What its earlier turns have left here for later ones, a line each."""
    away: Away | None = field(default=None, compare=False)
    """Who holds it says what it is when it is let go."""

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
        self._sizes: dict[str, tuple[int, int]] = {}
        """Of records by their names: their time when the tree was last counted, and its bytes on the disk."""

    @contextlib.contextmanager
    def hold(self, subject: str, wish: str, *, make: bool = False, named: str = "") -> Iterator[Session]:
        """The session for one run; `wish` is `new` or an id. `make`: it is known to be, and gets what it lacks here,
        a directory of the name `named`.

        Raises Problem 404 for one that is not there, expired or another's, 409 while it is in use, and 503 for one that
        another release has stored.
        """
        identity = str(uuid.uuid4()) if wish == "new" else wish
        path = self._records / record_name(subject, identity)
        old = None if wish == "new" else self._tree_of_version_0(subject, identity)
        is_made = wish == "new"
        with contextlib.ExitStack() as stack:
            try:
                mode = "x+" if wish == "new" else "r+" if old is None and not make else "a+"
                record = stack.enter_context(path.open(mode))
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError as error:
                raise _no_such_session() from error
            except BlockingIOError as error:
                raise Problem(409, "conflict", "the session has a run in progress") from error
            if wish == "new":
                tree = Tree(self._trees / secrets.token_hex(16))
                self._write(record, tree, subject)
                tree.root.mkdir(mode=0o700)
            else:
                if old is not None and record.seek(0, os.SEEK_END) == 0:
                    self._write(record, old, subject)
                try:
                    found = self._tree(record)
                except UnknownVersion as error:
                    raise Problem(503, "other-release", str(error)) from error
                if make and (found is None or not found.root.exists()):
                    is_made = True
                    name = named if _NAME.fullmatch(named) and not (self._trees / named).exists() else ""
                    found = found or Tree(self._trees / (name or secrets.token_hex(16)))
                    record.truncate(0)
                    self._write(record, found, subject)
                    found.root.mkdir(mode=0o700)
                if found is None or not (make or self._is_alive(record)) or not found.root.exists():
                    raise _no_such_session()
                tree = found
            try:
                lines = _remembered_in(record)
                mark = os.fstat(record.fileno()).st_mtime_ns
                session = Session(identity, tree, path.name, mark, is_made, lines, _last_away(lines))
                yield session
            finally:
                if tree.root.exists():
                    if session.away != _last_away(_remembered_in(record)):
                        self._note(session)
                    os.utime(path)
                else:  # what the run has left in it was too much to keep
                    path.unlink(missing_ok=True)

    def remember(self, session: Session, lines: Sequence[str]) -> None:
        """For the later turns of a session that is held. A line that was not written to its end is none. Raises
        OSError."""
        with (self._records / session.name).open("a") as record:
            record.writelines(f"\n{line}" for line in lines)

    def leave(self, session: Session, away: Away) -> None:
        """Before it is left in a session that is held: whoever comes after this process finds it. Raises OSError."""
        self.remember(session, [line_of(away)])
        session.away = away

    def _note(self, session: Session) -> None:
        """What a job has left in it, or that it is there no more. Raises Problem 507."""
        try:
            self.remember(session, [line_of(session.away)])
        except OSError as error:
            if session.away is not None:
                raise Problem(507, "no-room", f"the session cannot be noted: {error.strerror}") from error
            _log.error("a session cannot be noted on this machine's disk: %s", error.strerror)

    def mark(self, name: str) -> int:
        """As `Session.mark`, 0 for none."""
        try:
            return (self._records / name).stat().st_mtime_ns
        except OSError:
            return 0

    def has(self, name: str) -> bool:
        """Whether there is a record of that name here."""
        return (self._records / name).is_file()

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[Tree | None]:
        """The tree of that record, which is locked meanwhile; None where there is none, or a run has it."""
        with contextlib.ExitStack() as stack:
            tree = None
            with contextlib.suppress(FileNotFoundError, BlockingIOError, UnknownVersion):
                record = stack.enter_context((self._records / name).open("r+"))
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tree = self._tree(record)
            yield tree if tree is not None and tree.root.exists() else None

    def kept(self) -> list[Kept]:
        """The sessions that are here; `subject` is its digest. What a run has now is as large as it was. Raises
        OSError."""
        found, sizes = [], self._sizes
        self._sizes = {}
        for path in list(self._records.iterdir()):
            try:
                record = path.open("r+")
            except FileNotFoundError:
                continue
            with record:
                try:
                    tree, subject = self._tree(record), _subject_of(record)
                except UnknownVersion:
                    continue  # `expire` says so
                used_at = os.fstat(record.fileno()).st_mtime_ns
                in_use = tree is None or not locked(record)
            at, size = sizes.get(path.name, (0, 0))
            if tree is not None and (not at or (at != used_at and not in_use)):
                at, size = used_at, usage.files(tree.root).bytes
            self._sizes[path.name] = at, size
            found.append(Kept(path.name, subject, used_at / 1e9, size, in_use))
        return found

    def drop(self, name: str) -> bool:
        """Deletes what is here of a session that has no run. Whether it is gone. Raises OSError."""
        with self.at(name) as tree:
            if tree is None:
                return False
            self.discard(tree)
            (self._records / name).unlink()
        return True

    def left_by_jobs(self) -> list[tuple[str, Away]]:
        """The records here of sessions that are a job's alone, which was put away there. Raises OSError."""
        found = []
        for path in list(self._records.iterdir()):
            with contextlib.suppress(FileNotFoundError), path.open() as record:
                away = _last_away(_remembered_in(record))
                if away is not None and away.is_own:
                    found.append((path.name, away))
        return found

    def discard(self, tree: Tree) -> None:
        """Deletes what was too much to keep. Raises OSError."""
        self._discarded.delete_soon(self._discarded.take(tree.root))

    def expire(self) -> int:
        """Deletes sessions that nobody used for their time to live, and trees that no session has; how many sessions
        there were. What goes wrong with one is logged and keeps no other. A record that cannot be read may have any
        tree: then none counts as nobody's."""
        trees = {self._name(tree) for tree in self._all_trees() if self._is_unclaimed(tree)}
        gone, claimed = 0, set()
        for path in list(self._records.iterdir()):
            try:
                with path.open("r+") as record:
                    tree = self._tree(record)
                    if tree is not None:
                        claimed.add(self._name(tree))
                    fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_alive(record) and tree is not None:
                        continue
                    if tree is not None and tree.root.exists():
                        self._discarded.delete(self._discarded.take(tree.root))
                    path.unlink()
                    gone += 1
            except (BlockingIOError, FileNotFoundError):
                continue
            except UnknownVersion as error:
                _log.error("sessions that another release keeps are left alone: %s", error)
                trees.clear()  # any of them may be this session's
            except OSError as error:
                _log.error("a session cannot be ended: %s: %s", path.name, error.strerror)
                trees = set()
        for name in trees - claimed:
            with contextlib.suppress(FileNotFoundError):
                self._discarded.delete(self._discarded.take(self._trees / name))
            if "/" in name:
                with contextlib.suppress(OSError):
                    (self._trees / name).parent.rmdir()  # the last one of its subject
        return gone

    def recover(self) -> None:
        """Takes back the trees of sessions whose invoker died during a run. Only once nothing of such runs is alive."""
        for path in list(self._records.iterdir()):
            with contextlib.suppress(OSError, UnknownVersion), path.open("r+") as record:
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tree = self._tree(record)
                if tree is not None and tree.root.exists():
                    self._take_back(tree)
        for tree in self._all_trees():
            if "/" in self._name(tree):  # release 0.1.0 let them to their last runs
                with contextlib.suppress(OSError):
                    self._take_back(tree)

    def _take_back(self, tree: Tree) -> None:
        owner = tree.root.lstat().st_uid
        if owner != os.geteuid():
            try:
                tree.take_back(owner)
            except TooMuch:
                self._discarded.delete(self._discarded.take(tree.root))

    def _write(self, record: IO[str], tree: Tree, subject: str) -> None:
        json.dump({"v": VERSION, "tree": self._name(tree), "of": subject_digest(subject)}, record)
        record.flush()

    def _tree(self, record: IO[str]) -> Tree | None:
        """None for a record that was not written to its end. Raises UnknownVersion."""
        record.seek(0)
        try:
            stored = json.loads(record.readline())
            versions.check("the session", stored.get("v"), VERSION)
            name = _NAME.fullmatch(stored["tree"])
        except UnknownVersion:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return Tree(self._trees / name[0]) if name else None

    def _name(self, tree: Tree) -> str:
        return str(tree.root.relative_to(self._trees))

    def _all_trees(self) -> Iterator[Tree]:
        for path in self._trees.iterdir():
            yield from map(Tree, _sessions_of_version_0(path) or [path])

    def _tree_of_version_0(self, subject: str, identity: str) -> Tree | None:
        digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        tree = Tree(self._trees / digest / identity)
        return tree if is_id(identity) and tree.root.is_dir() and not self._is_unclaimed(tree) else None

    def _is_unclaimed(self, tree: Tree) -> bool:
        """Whether a tree without a record is no session's: too old to be one that is being made, or one of 0.1.0."""
        kept_s = self._ttl_s if "/" in self._name(tree) else _UNCLAIMED_S
        try:
            return not 0 <= time.time() - tree.root.lstat().st_mtime <= kept_s
        except FileNotFoundError:  # another invoker has deleted it
            return False

    def _is_alive(self, record: IO[str]) -> bool:
        status = os.fstat(record.fileno())
        return status.st_nlink > 0 and status.st_mtime + self._ttl_s > time.time()


def record_name(subject: str, identity: str) -> str:
    """Another for each pair, whatever is in the two."""
    parts = (part.encode("utf-8", "surrogatepass") for part in (subject, identity))
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()


def _subject_of(record: IO[str]) -> str | None:
    """Its digest; None where the record was made by a release that noted none."""
    record.seek(0)
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(record.readline()).get("of")
        return found if isinstance(found, str) else None
    return None


def _remembered_in(record: IO[str]) -> tuple[str, ...]:
    record.seek(0)
    record.readline()
    return tuple(line for line in record.read().splitlines() if line)


_AWAY = '{"away":'


def line_of(away: Away | None) -> str:
    """As `away_of` reads it."""
    return f"{_AWAY} {json.dumps(away and asdict(away))}}}"


def away_of(line: str) -> Away | None:
    """None also for another line."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(line)["away"]
        return Away(str(found["job"]), str(found["tool"]), found.get("is_own") is True)
    return None


def _last_away(lines: Sequence[str]) -> Away | None:
    return next((away_of(line) for line in reversed(lines) if line.startswith(_AWAY)), None)


def _sessions_of_version_0(path: Path) -> list[Path]:
    """The trees in a directory that release 0.1.0 made for a subject. A tree is none, whatever its runs do to it: while
    it is theirs it is not ours, and it holds more than directories with names of sessions."""
    try:
        inside = list(path.iterdir()) if path.is_dir() and path.stat().st_uid == os.geteuid() else []
    except OSError:
        return []
    return inside if all(is_id(child.name) for child in inside) else []


def is_id(text: str) -> bool:
    """Whether it is a session's id."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _no_such_session() -> Problem:
    return Problem(404, "not-found", "there is no such session")
