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
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from redis.exceptions import RedisError

from claude_contract.versions import UnknownVersion
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.cli.walk import TooMuch
from claude_invoker.problem import Problem
from claude_invoker.runs import snapshot
from claude_invoker.runs.kept import away
from claude_invoker.runs.sessions import Session, Sessions, record_name
from claude_invoker.runs.snapshot import Manifest
from claude_invoker.runs.turns import Lost, Turn, Turns
from claude_invoker.store.store import Away, Missing, Store

_log = logging.getLogger(__name__)
_FOLDER = "sessions"
_NAME = re.compile(r"[0-9a-f]{64}")


class Note(msgspec.Struct, frozen=True):
    """What this machine's tree is. `base`: the version that it is, or began from; `dirty`: a turn has begun since.
    `manifest`: the last that the store has had of here, that of version `known`; `unsaved`: it does not have `base`."""

    base: str = ""
    dirty: bool = False
    known: str = ""
    manifest: Manifest | None = None
    unsaved: bool = False


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Note).decode


class Moving:
    """`notes`: a directory of ours. Where `turns` or `store` is None sessions stay on this machine."""

    def __init__(self, sessions: Sessions, notes: Path, turns: Turns | None, store: Store | None) -> None:
        self._sessions = sessions
        self._notes = notes
        self._turns = turns
        self._store = store
        self.before_restoring: Callable[[Session], Awaitable[None]] | None = None
        """Sees to it that nothing has the session's directory."""

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
        begun = msgspec.structs.replace(note, base=turn.head, dirty=True)
        await asyncio.to_thread(self._write, turn.name, begun)
        return begun

    async def _restored(self, tree: Tree, turn: Turn, note: Note) -> Note:
        """Raises Problem 503."""
        assert self._store is not None
        await asyncio.to_thread(self._forget_note, turn.name)
        is_certain = note.known == note.base and not note.dirty and not note.unsaved
        have = note.manifest if is_certain and note.manifest and note.manifest.root == str(tree.root) else None
        try:
            wanted = snapshot.decode(await self._store.get(_manifest_of(turn.name, turn.head)))
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
        except (snapshot.Unusable, OSError) as error:
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
            after = await self._sent(session.tree, turn.name, turn.next, note)
        except TooMuch as error:
            _log.warning("a session ends, since its directory cannot be kept: %s", error)
            await turn.end()
            self._sessions.discard(session.tree)
            return
        await asyncio.to_thread(self._write, turn.name, after)
        try:
            await turn.commit(session.tree.root.name, saved=not after.unsaved)
        except Lost:
            await self._delete(turn.name, after, Note() if note.manifest is None else note)
            await asyncio.to_thread(self._forget_note, turn.name)
            raise taken() from None
        if not after.unsaved:
            await self._delete(turn.name, note, after)

    async def _sent(self, tree: Tree, name: str, version: str, note: Note) -> Note:
        """The tree as that version, in the store where that is there. Raises TooMuch, OSError."""
        assert self._store is not None
        pack = self._notes / f"{name}.pack"
        try:
            manifest = await asyncio.to_thread(snapshot.save, tree, note.manifest, pack, version)
            try:
                if manifest.packs and manifest.packs[-1][0] == version:
                    await self._store.put(_in(name, version), pack)
                await self._store.put(_manifest_of(name, version), snapshot.encode(manifest))
            except Away:
                return Note(version, known=note.known, manifest=note.manifest, unsaved=True)
        finally:
            pack.unlink(missing_ok=True)
        return Note(version, known=version, manifest=manifest)

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
        for path in list(self._notes.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            if not self._sessions.has(path.name):
                path.unlink(missing_ok=True)
            elif self._note(path.name).unsaved and not self._store.seems_away:
                with contextlib.suppress(Problem):  # its next turn has begun, or it is over
                    await self._send_one_again(await self._turns.take(path.name, new=False))

    async def _send_one_again(self, turn: Turn) -> None:
        assert self._turns is not None
        try:
            with self._sessions.at(turn.name) as tree:
                note = self._note(turn.name)
                if tree is None or note.base != turn.head or not note.unsaved or note.dirty:
                    return
                turn.keep(lambda: None)
                after = await self._sent(tree, turn.name, turn.head, note)
                if not after.unsaved:
                    self._write(turn.name, after)
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
            for name in await self._store.folders(_FOLDER):
                if not _NAME.fullmatch(name) or await self._turns.exists(name):
                    continue
                found = [each async for each in self._store.found(f"{_FOLDER}/{name}")]
                if found and min(each.age_s for each in found) > ttl_s:
                    await self._store.delete(each.name for each in found)
        except (Away, RedisError, OSError):
            return

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
        with made.open("wb") as file:
            file.write(_ENCODE(note))
            file.flush()
            os.fsync(file.fileno())
        made.replace(self._notes / name)

    def _forget_note(self, name: str) -> None:
        (self._notes / name).unlink(missing_ok=True)


def taken() -> Problem:
    """What ends the run of an invoker that was paused for too long."""
    return Problem(
        409, "conflict", "another invoker has gone on with this session meanwhile: this turn is no part of it"
    )


def _in(name: str, pack: str) -> str:
    return f"{_FOLDER}/{name}/{pack}.pack"


def _manifest_of(name: str, version: str) -> str:
    return f"{_FOLDER}/{name}/{version}.manifest"
