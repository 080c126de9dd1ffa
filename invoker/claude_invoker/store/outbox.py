"""Artifacts on their way to the store. They lie on the disk until they are there: also when the store is away, and when
the invoker is started again meanwhile."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from claude_invoker.ending import ended
from claude_invoker.store.store import Away, Store

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_AT_ONCE = 4
_HALF_S = 60.0
"""After which a note that cannot be read is not one that is being written."""


class Letter(msgspec.Struct, frozen=True):
    """What is to be sent of a run: (name in the store, path below the run's directory). `until`: after that nobody asks
    for it any more (seconds since the epoch)."""

    run: str
    files: tuple[tuple[str, str], ...]
    until: float
    v: int = 1


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Letter).decode


@dataclass
class _Waiting:
    letter: Letter
    note: IO[bytes]
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Outbox:
    """`directory` has a note for each run whose files are not all sent; who sends it has a lock on the note (flock(2)),
    so that it is found by another where that one dies. `files_of`: the directory of a run's files."""

    def __init__(self, store: Store, directory: Path, files_of: Callable[[str], Path]) -> None:
        self._store = store
        self._directory = directory
        self._files_of = files_of
        self._waiting: dict[str, _Waiting] = {}
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Also takes up what invokers have left that are no more."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.adopt()
        self._sending = asyncio.create_task(self._send_all())

    async def stop(self) -> None:
        """What is not sent is the next one's."""
        if self._sending is not None:
            await ended(self._sending)
        for waiting in self._waiting.values():
            waiting.note.close()
        self._waiting.clear()

    @property
    def runs(self) -> set[str]:
        """Those with files that are not in the store."""
        return {waiting.letter.run for waiting in self._waiting.values()}

    def put(self, letter: Letter) -> asyncio.Event:
        """Notes what is to be sent, on the disk first. What is set once it is in the store, or nobody wants it any
        more. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{letter.run}.{secrets.token_hex(4)}"
        note = path.open("xb")
        try:
            fcntl.flock(note, fcntl.LOCK_EX)
            note.write(_encode(letter))
            note.flush()
            os.fsync(note.fileno())
        except OSError:
            note.close()
            path.unlink(missing_ok=True)
            raise
        self._waiting[path.name] = waiting = _Waiting(letter, note)
        self._wake.set()
        return waiting.over

    def drop(self, run_id: str) -> None:
        """Nobody wants them any more."""
        for name in [name for name, waiting in self._waiting.items() if waiting.letter.run == run_id]:
            self._done(name)

    def _done(self, name: str) -> None:
        if (waiting := self._waiting.pop(name, None)) is not None:
            (self._directory / name).unlink(missing_ok=True)
            waiting.note.close()
            waiting.over.set()

    def adopt(self) -> None:
        """Takes up the notes that nobody sends."""
        for path in sorted(self._directory.iterdir(), key=_age, reverse=True):
            if path.name not in self._waiting and (waiting := _taken(path)) is not None:
                self._waiting[path.name] = waiting
                self._wake.set()

    async def _send_all(self) -> None:
        pause_s = 0.0
        while True:
            self._wake.clear()
            for name, waiting in list(self._waiting.items()):
                letter, run_id = waiting.letter, waiting.letter.run
                if name not in self._waiting:
                    continue
                try:
                    if letter.until > time.time():
                        await self._send(letter)
                except Away:
                    if name in self._waiting:  # after all others: it may be this one that the store does not take
                        self._waiting[name] = self._waiting.pop(name)
                    pause_s = min(_LONGEST_PAUSE_S, max(1.0, 2 * pause_s))
                    break
                except FileNotFoundError as error:
                    _log.warning("run %s: a file is gone before the store had it: %s", run_id, error)
                except Exception:
                    _log.exception("run %s: its files are not in the store, that is tried again", run_id)
                    pause_s = _LONGEST_PAUSE_S
                    continue
                pause_s = 0.0
                self._done(name)
            if pause_s:
                await asyncio.sleep(pause_s)
            elif not self._waiting:
                await self._wake.wait()

    async def _send(self, letter: Letter) -> None:
        """Raises Away, FileNotFoundError."""
        root = self._files_of(letter.run)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str, path: str) -> None:
            async with gate:
                await self._store.put(name, root / path)

        await _all([one(name, path) for name, path in dict(letter.files).items()])


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for each; then raises what the first that failed has raised."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _taken(path: Path) -> _Waiting | None:
    """A note, locked from now on. None where another has it, or it is none."""
    try:
        note = path.open("r+b")
    except OSError:
        return None
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        letter = _decode(note.read())
        if os.fstat(note.fileno()).st_nlink:
            return _Waiting(letter, note)
    except BlockingIOError:
        pass
    except msgspec.MsgspecError:
        if _age(path) > _HALF_S:  # its writer died over it
            _log.warning("a note of what was to be sent cannot be read: %s", path.name)
            path.unlink(missing_ok=True)
    note.close()
    return None


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
