"""Conversations that go on wherever their next turn lands: saved to the store at each turn's end, and restored there.

Redis says at which version a conversation is and whose turn it is (`runs.turns`); a version is a manifest and its packs
(`runs.snapshot`). This machine's tree is one of a version, or of none, which a note beside says: it is marked before a
turn, so that what a killed invoker has left half done is not gone on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
from redis.exceptions import RedisError

from claude_contract.versions import UnknownVersion
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.cli.walk import TooMuch
from claude_invoker.disk import Kept
from claude_invoker.problem import Problem
from claude_invoker.runs import snapshot
from claude_invoker.runs.kept import away
from claude_invoker.runs.sessions import Session, Sessions, away_of, line_of, record_name
from claude_invoker.runs.snapshot import Manifest
from claude_invoker.runs.turns import Lost, Turn, Turns
from claude_invoker.store.store import Away, Missing, Store

_log = logging.getLogger(__name__)
_FOLDER = "sessions"
_NAME = re.compile(r"[0-9a-f]{64}")
_HALF_MADE = re.compile(r"([0-9a-f]{64})\.(?:pack|new)")
_SAVE_S = 30.0
"""How long an answer waits at most for its session to be in the store."""


class Note(msgspec.Struct, frozen=True):
    """What this machine's tree is. `base`: the version that it is, or began from; `dirty`: a turn has begun since;
    `before`: the version that `base` was made from here. `manifest`: the last that the store has had of here, that of
    version `known`; `unsaved`: it does not have `base`."""

    base: str = ""
    before: str = ""
    dirty: bool = False
    known: str = ""
    manifest: Manifest | None = None
    unsaved: bool = False


class _Unsaved(msgspec.Struct, frozen=True):
    """What is looked for in every note every few seconds: the rest of one may have some 40 MB."""

    unsaved: bool = False


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Note).decode
_DECODE_UNSAVED = msgspec.msgpack.Decoder(_Unsaved).decode


class Moving:
    """`notes`: a directory of ours. Where `turns` or `store` is None sessions stay on this machine."""

    def __init__(self, sessions: Sessions, notes: Path, turns: Turns | None, store: Store | None) -> None:
        self._sessions = sessions
        self._notes = notes
        self._turns = turns
        self._store = store
        self._looked: dict[str, tuple[int, bool]] = {}
        """Of notes by their names: when they were written, and whether they are of an unsaved version."""
        self.before_restoring: Callable[[Session], Awaitable[None]] | None = None
        """Sees to it that nothing has the session's directory."""

    @property
    def _moves(self) -> bool:
        return self._turns is not None and self._store is not None

    @asynccontextmanager
    async def hold(self, subject: str, wish: str, lost: Callable[[], None]) -> AsyncIterator[Session]:
        """The session for one run, as `Sessions.hold` says; `lost` is called where another invoker has taken it, which
        is possible for one that was paused. Raises Problem 404, 409, 503; and 409 at its end, where it has been."""
        if self._turns is None or self._store is None:
            with self._sessions.hold(subject, wish) as session:
                yield session
            return
        is_new = wish == "new"
        identity = str(uuid.uuid4()) if is_new else wish
        name = record_name(subject, identity)
        is_here = not is_new and self._sessions.has(name)
        turn = await self._turns.take(name, new=is_new or is_here)
        try:
            if not turn.head and not is_new and not is_here:
                raise Problem(404, "not-found", "there is no such session")
            turn.keep(lost)
            make = is_new or bool(turn.head)
            with self._sessions.hold(subject, identity, make=make, named=turn.tree) as session:
                note = await self._brought(session, turn)
                try:
                    yield session
                finally:
                    await unbroken(self._end(session, turn, note))
        except BaseException:
            await unbroken(turn.give_up())
            raise

    async def _brought(self, session: Session, turn: Turn) -> Note:
        """Makes the tree that of the turn's version, and notes that a turn begins. Raises Problem 503."""
        note = Note()
        if turn.head and not session.is_made:
            note = await asyncio.to_thread(self._note, turn.name)
        is_here = note.base == turn.head and (not note.dirty or not turn.saved)
        if not turn.saved and note.before == turn.head:  # what that became is all that there is of it
            is_here = True
        if turn.head and not is_here:
            if not turn.saved:
                raise Problem(
                    503,
                    "busy",
                    "the session's last turn is on an invoker that could not send it to the store yet",
                    {"Retry-After": "10"},
                )
            if self.before_restoring is not None:
                await self.before_restoring(session)
            note = await self._restored(session.tree, turn, note)
            session.away = away_of(turn.away)
        begun = msgspec.structs.replace(note, base=turn.head, dirty=True)
        try:
            await asyncio.to_thread(self._write, turn.name, begun)
        except OSError as error:
            raise _no_room(error) from error
        return begun

    async def _restored(self, tree: Tree, turn: Turn, note: Note) -> Note:
        """Raises Problem 503."""
        assert self._store is not None
        await asyncio.to_thread(self._forget_note, turn.name)
        is_certain = note.known == note.base and not note.dirty and not note.unsaved
        have = note.manifest if is_certain and note.manifest and note.manifest.root == str(tree.root) else None
        try:
            stored = await self._store.get(_manifest_of(turn.name, turn.head))
            wanted = await asyncio.to_thread(snapshot.decode, stored)
            try:
                fetches = await asyncio.to_thread(snapshot.prepare, tree, wanted, have)
            except OSError:  # such as a directory that its last turn has closed to its owner
                fetches = await asyncio.to_thread(snapshot.prepare, tree, wanted, None)
            for fetch in fetches:
                pieces = await self._store.read(_in(turn.name, fetch.pack), fetch.start, fetch.end)
                content = b"".join([piece async for piece in pieces])
                await asyncio.to_thread(snapshot.place, fetch, content)
            await asyncio.to_thread(snapshot.finish, tree, wanted)
            await asyncio.to_thread(snapshot.settle, tree, wanted)
        except Away as error:
            raise away() from error
        except UnknownVersion as error:
            raise Problem(503, "other-release", str(error)) from error
        except Missing as error:
            _log.error("a session cannot be gone on with: the store has lost a part of it")
            raise Problem(404, "not-found", "there is no such session any more: the store has lost it") from error
        except snapshot.Unusable as error:
            _log.error("a session cannot be gone on with: what the store has of it is not what was saved: %s", error)
            detail = "there is no such session any more: the store has something else in its place"
            raise Problem(404, "not-found", detail) from error
        except OSError as error:
            _log.error("a session cannot be restored: %s", error)
            raise Problem(503, "busy", "the session cannot be restored now", {"Retry-After": "10"}) from error
        return Note(turn.head, known=turn.head, manifest=wanted)

    async def _end(self, session: Session, turn: Turn, note: Note) -> None:
        """Sends what the turn has left and says that it is the conversation's. Raises Problem 409, 503."""
        if not session.tree.root.exists():  # too much to keep
            await turn.end()
            await asyncio.to_thread(self._forget_note, turn.name)
            return
        try:
            after = await self._sent(session.tree, turn.name, turn.next, note, _SAVE_S)
        except TooMuch as error:
            _log.warning("a session ends, since its directory cannot be kept: %s", error)
            await turn.end()
            self._sessions.discard(session.tree)
            return
        try:
            await asyncio.to_thread(self._write, turn.name, after)
        except OSError as error:
            if after.unsaved:
                raise _no_room(error) from error
            # The store has it: as long as the note is that of the turn's beginning, the tree is fetched from there.
        try:
            away = "" if session.away is None else line_of(session.away)
            await turn.commit(session.tree.root.name, saved=not after.unsaved, away=away)
        except Lost as lost:
            if lost.for_certain:
                await self._delete(turn.name, after, Note() if note.manifest is None else note)
            await asyncio.to_thread(self._forget_note, turn.name)
            raise taken() from None
        if not after.unsaved:
            await self._delete(turn.name, note, after)

    async def _sent(self, tree: Tree, name: str, version: str, note: Note, within_s: float | None = None) -> Note:
        """The tree as that version, in the store where that is there and takes it in time. Raises TooMuch."""
        assert self._store is not None
        pack = self._notes / f"{name}.pack"
        try:
            manifest = await asyncio.to_thread(snapshot.save, tree, note.manifest, pack, version)
            async with asyncio.timeout(within_s):
                if manifest.packs and manifest.packs[-1][0] == version:
                    await self._store.put(_in(name, version), pack)
                await self._store.put(_manifest_of(name, version), await asyncio.to_thread(snapshot.encode, manifest))
        except (Away, TimeoutError):
            pass
        except OSError as error:  # such as a disk without room for the pack
            _log.error("a session cannot be sent to the store, that is tried again: %s", error.strerror)
        else:
            return Note(version, note.base, known=version, manifest=manifest)
        finally:
            pack.unlink(missing_ok=True)
        return Note(version, note.base, known=note.known, manifest=note.manifest, unsaved=True)

    async def _delete(self, name: str, old: Note, new: Note) -> None:
        """What `old` has in the store and `new` does not need. Raises nothing: what stays goes with the session."""
        if old.manifest is None or old.known == new.known:
            return
        kept = {pack for pack, _ in (new.manifest.packs if new.manifest else ())}
        names = [_in(name, pack) for pack, _ in old.manifest.packs if pack not in kept]
        assert self._store is not None
        with contextlib.suppress(Away):
            await self._store.delete([_manifest_of(name, old.known), *names])

    async def send_again(self) -> None:
        """Sends what the store could not have. Raises RedisError, OSError."""
        if self._turns is None or self._store is None or not self._notes.is_dir():
            return
        unsaved = await asyncio.to_thread(self._tidied)
        # By chance: the store may refuse one alone, which would be the first each time, and the last that is tried.
        for name in random.sample(unsaved, len(unsaved)):
            if not self._store.seems_away:
                with contextlib.suppress(Problem):  # its next turn has begun, or it is over
                    await self._send_one_again(await self._turns.take(name, new=False))

    def _tidied(self) -> list[str]:
        """Deletes notes of sessions that are over, and what a killed invoker was writing. The names of those that the
        store does not have. Raises OSError."""
        unsaved, looked = [], self._looked
        self._looked = {}
        for path in list(self._notes.iterdir()):
            if half := _HALF_MADE.fullmatch(path.name):
                with self._sessions.at(half[1]) as tree:
                    if tree is not None or not self._sessions.has(half[1]):
                        path.unlink(missing_ok=True)
            elif _NAME.fullmatch(path.name):
                if not self._sessions.has(path.name):
                    path.unlink(missing_ok=True)
                    continue
                with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                    written = path.stat().st_mtime_ns
                    at, is_unsaved = looked.get(path.name, (0, False))
                    if at != written:
                        is_unsaved = _DECODE_UNSAVED(path.read_bytes()).unsaved
                    self._looked[path.name] = written, is_unsaved
                    unsaved += [path.name] if is_unsaved else []
        return unsaved

    async def _send_one_again(self, turn: Turn) -> None:
        assert self._turns is not None
        try:
            with self._sessions.at(turn.name) as tree:
                note = await asyncio.to_thread(self._note, turn.name)
                if tree is None or note.base != turn.head or not note.unsaved or note.dirty:
                    return
                turn.keep(lambda: None)
                after = await self._sent(tree, turn.name, turn.head, note)
                if not after.unsaved:
                    await asyncio.to_thread(self._write, turn.name, after)
                    await self._turns.saved(turn.name, turn.head)
                    await self._delete(turn.name, note, after)
        except TooMuch:
            return
        finally:
            await turn.give_up()

    async def expire(self, ttl_s: float) -> None:
        """Deletes what the store has of conversations that are over. One that Redis does not know is deleted only when
        its last turn was as long ago as it would have lived: a Redis that has lost its data loses no sessions."""
        if self._turns is None or self._store is None:
            return
        try:
            folders = await self._store.folders(_FOLDER)
            for name in random.sample(folders, len(folders)):  # as above
                if not _NAME.fullmatch(name) or await self._turns.exists(name):
                    continue
                found = [each async for each in self._store.found(f"{_FOLDER}/{name}")]
                if found and min(each.age_s for each in found) > ttl_s:
                    await self._store.delete(each.name for each in found)
        except (Away, RedisError, OSError):
            return

    async def kept(self) -> list[Kept]:
        """The sessions of this machine. Those that the store has can be had again; those that it does not have, and
        shall, stay. Raises OSError."""
        found = await asyncio.to_thread(self._sessions.kept)
        if not self._moves:
            return found
        return [
            replace(each, is_spare=True, in_use=each.in_use or self._looked.get(each.name, (0, False))[1])
            for each in found
        ]

    async def drop(self, name: str) -> bool:
        """Raises OSError."""
        return await asyncio.to_thread(self._drop, name)

    def _drop(self, name: str) -> bool:
        return not (self._moves and self._note(name).unsaved) and self._sessions.drop(name)

    async def close(self) -> None:
        if self._turns is not None:
            await self._turns.close()

    def _note(self, name: str) -> Note:
        """An empty one where there is none that can be read."""
        try:
            return _DECODE((self._notes / name).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return Note()

    def _write(self, name: str, note: Note) -> None:
        """Raises OSError."""
        self._notes.mkdir(mode=0o700, exist_ok=True)
        made = self._notes / f"{name}.new"
        try:
            with made.open("wb") as file:
                file.write(_ENCODE(note))
                file.flush()
                os.fsync(file.fileno())
            made.replace(self._notes / name)
        except OSError:
            made.unlink(missing_ok=True)
            raise

    def _forget_note(self, name: str) -> None:
        (self._notes / name).unlink(missing_ok=True)


def taken() -> Problem:
    """What ends the run of an invoker that was paused for too long."""
    return Problem(
        409, "conflict", "another invoker has gone on with this session meanwhile: this turn is no part of it"
    )


def _no_room(error: OSError) -> Problem:
    _log.error("a session cannot be noted on this machine's disk: %s", error.strerror)
    detail = f"the session cannot be kept, this machine's disk does not take it: {error.strerror}"
    return Problem(507, "no-room", detail, {"Retry-After": "60"}, extra={"limit": "disk"})


def _in(name: str, pack: str) -> str:
    return f"{_FOLDER}/{name}/{pack}.pack"


def _manifest_of(name: str, version: str) -> str:
    return f"{_FOLDER}/{name}/{version}.manifest"
