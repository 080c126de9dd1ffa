"""Where the artifacts of a run are: on this machine, in the store, or still on their way from the one to the other.

In the store a file's name is its run's id and the SHA-256 of its content: what a run calls its files is in no name
there, and none is read but for a caller to whom the run's record belongs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.cli import usage
from claude_invoker.cli.walk import delete
from claude_invoker.disk import Kept, subject_digest
from claude_invoker.model import Artifact
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts
from claude_invoker.settings import Settings
from claude_invoker.store.outbox import Letter, Outbox
from claude_invoker.store.store import PIECE, Away, Missing, Store

_log = logging.getLogger(__name__)
_FOLDER = "artifacts"
ANSWERS = "answers"
"""Where the store has those of runs that are over, with their events (`replicas.register`)."""
_SENT_S = 2.0
"""How long an answer waits at most for its files to be in the store."""
_LOOK_S = 2.0
_LATE_S = 3600.0
"""Clocks of the store and of machines, and how long a run's record may be written after its files."""
_RUN = re.compile(r"(?:run|job)_[0-9a-f]{24}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def away() -> Problem:
    return Problem(503, "busy", "the store of the files does not answer", {"Retry-After": "5"})


def pending() -> Problem:
    """The file is on the disk of the machine that ran it, which is not there."""
    detail = "the file is not in the store yet, and the invoker that has it does not answer"
    return Problem(503, "busy", detail, {"Retry-After": "10"}, extra={"pending": True})


def name_of(run_id: str, artifact: Artifact) -> str:
    """In the store. Raises Problem 404 for what no run of ours can have kept."""
    if not _RUN.fullmatch(run_id) or not _DIGEST.fullmatch(artifact.sha256):
        raise Problem(404, "not-found", "the run left no such file")
    return f"{_FOLDER}/{run_id}/{artifact.sha256}"


@dataclass(frozen=True)
class Files:
    """The files of one run; `store` is None where only `directory` can have them."""

    run: str
    directory: Path
    store: Store | None

    def here(self, artifact: Artifact) -> Path | None:
        """Where this machine has it."""
        path = self.directory / artifact.path
        return path if path.is_file() else None

    async def read(self, artifact: Artifact, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from `start` up to `end`. Raises Problem 404, 503, before the first of them."""
        path = self.here(artifact)
        if path is not None:
            return _of_file(path, start, artifact.size if end is None else end)
        if self.store is None:
            raise gone()
        try:
            return await self.store.read(name_of(self.run, artifact), start, artifact.size if end is None else end)
        except Missing as error:
            raise (pending() if artifact.pending else gone()) from error
        except Away as error:
            raise away() from error


def gone() -> Problem:
    return Problem(404, "not-found", "the files are gone with the invoker that had them")


async def _of_file(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            piece = await asyncio.to_thread(file.read, min(PIECE, end - start))
            if not piece:
                return
            start += len(piece)
            yield piece


class Keeping:
    """What an engine keeps of its runs' files. Without a store: where they were collected."""

    def __init__(self, settings: Settings, store: Store | None) -> None:
        self._settings = settings
        self.store = store
        self._subjects: dict[str, str] = {}
        """Digests of those whose runs have left files here, by the runs' ids."""
        self.goes_on: Callable[[str], bool] = lambda run_id: False
        """Whether the run is not over."""
        self.outbox: Outbox | None = None
        if store is not None:
            self.outbox = Outbox(
                store, settings.state_dir / "outbox", lambda run_id: artifacts.directory(settings, run_id)
            )

    def files(self, run_id: str) -> Files:
        return Files(run_id, artifacts.directory(self._settings, run_id), self.store)

    async def keep(self, run_id: str, subject: str, found: Sequence[Artifact], for_s: float) -> list[Artifact]:
        """Sends them to the store, for a moment waited for; the same with `pending` where they are not there yet."""
        if found:
            self._subjects[run_id] = subject_digest(subject)
        if self.outbox is None or not found:
            return list(found)
        letter = Letter(
            run_id, tuple((name_of(run_id, artifact), artifact.path) for artifact in found), time.time() + for_s
        )
        try:
            self.outbox.drop(run_id)  # of an attempt before
            over = self.outbox.put(letter)
        except OSError as error:
            _log.error("run %s: its files stay where they are, their way cannot be noted: %s", run_id, error.strerror)
            return list(found)
        assert self.store is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05 if self.store.seems_away else _SENT_S):
                await over.wait()
        return [artifact.model_copy(update={"pending": not over.is_set()}) for artifact in found]

    async def now(self, run_id: str, found: list[Artifact]) -> list[Artifact]:
        """The same files, `pending` as it is by now. Never raises: where that cannot be told, as it was."""
        if self.store is None or self.outbox is None or not any(artifact.pending for artifact in found):
            return found
        if run_id in self.outbox.runs:
            return found
        there: set[str] = set()
        try:
            async with asyncio.timeout(_LOOK_S):
                async for kept in self.store.found(f"{_FOLDER}/{run_id}"):
                    there.add(kept.name)
        except (Away, TimeoutError):
            return found
        return [
            artifact.model_copy(update={"pending": artifact.pending and name_of(run_id, artifact) not in there})
            for artifact in found
        ]

    async def forget(self, run_id: str, found: Sequence[Artifact] = ()) -> None:
        """Deletes the run's files, wherever they are; what the store does not delete now goes by its age."""
        if self.outbox is not None:
            self.outbox.drop(run_id)
        if self.store is not None and found and not self.store.seems_away:
            with contextlib.suppress(Away):
                await self.store.delete(name_of(run_id, artifact) for artifact in found)
        await asyncio.to_thread(delete, artifacts.directory(self._settings, run_id))

    async def kept(self) -> list[Kept]:
        """The files of each run that has some on this machine; of whom, as far as this process has run it. Raises
        OSError."""
        found = await asyncio.to_thread(_sizes, artifacts.root(self._settings))
        here = {path.name for path, *_ in found}
        self._subjects = {run_id: subject for run_id, subject in self._subjects.items() if run_id in here}
        waiting = set() if self.outbox is None else self.outbox.runs
        return [
            Kept(
                path.name,
                self._subjects.get(path.name),
                written_at,
                size,
                in_use=self.goes_on(path.name),
                is_spare=self.store is not None and path.name not in waiting,
            )
            for path, written_at, size in found
        ]

    async def drop(self, name: str) -> bool:
        """Raises OSError."""
        if self.goes_on(name):
            return False
        if self.outbox is not None:
            self.outbox.drop(name)
        await asyncio.to_thread(delete, artifacts.root(self._settings) / name)
        return True

    async def expire(self) -> None:
        """Deletes what no record can name any more."""
        if self.store is None:
            return
        await self.store.tidy()
        for folder in (_FOLDER, ANSWERS):
            try:
                await self.store.expire(folder, self._settings.longest_retention_s + _LATE_S)
            except Away:
                return


def _sizes(root: Path) -> list[tuple[Path, float, int]]:
    """Directories of runs, when each was written, bytes on the disk."""
    return [(path, path.stat().st_mtime, usage.files(path).bytes) for path in root.iterdir()]
