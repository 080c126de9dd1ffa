"""Files by themselves, put for requests that come later: each by the SHA-256 of its content.

What such a name stands for never changes: a request that names one means the same each time, and so does its
repetition. They lie in the store, where every invoker has them; without one in a directory of this invoker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from claude_invoker.disk import Bounds, Kept, refusal
from claude_invoker.model import Upload
from claude_invoker.problem import Problem
from claude_invoker.store.place import Place
from claude_invoker.store.store import Away, Missing, Store
from claude_invoker.workspace.files import Content, Uploaded
from claude_invoker.workspace.intake import Intake

FOLDER = "uploads"
NAME = re.compile(r"[0-9a-f]{64}")
MOST_FILES = 1000
"""Of one owner."""
MOST_BYTES = 512 << 20
"""Of all that one request names, as often as it does."""
_COUNT_S = 60.0
"""For so long what all have together is not counted anew: what other invokers take in meanwhile is not seen."""


class Uploads:
    """`directory`: where they lie without a store. `owner`s are digests (`Caller.owner`), which names in the store
    begin with. What is on its way counts within `bounds`, as if it was there."""

    def __init__(self, store: Store | None, directory: Path, bounds: Bounds, kept_s: float, intake: Intake) -> None:
        self._shared = store
        self._own: Store | None = None
        self._directory = directory
        self._bounds = bounds
        self._kept_s = kept_s
        self._intake = intake
        self._coming: dict[object, tuple[str, int]] = {}
        self._in_all = 0
        self._counted_at = -_COUNT_S

    def open(self) -> None:
        """Makes the directory, where there is no store. Raises OSError."""
        if self._shared is None:
            self._own = Store(Place("file", directory=self._directory), None)

    @property
    def _store(self) -> Store:
        found = self._shared or self._own
        assert found is not None
        return found

    async def held(self, owner: str) -> dict[str, Upload]:
        """What an owner has, by their names. Raises Problem 503."""
        now = time.time()
        with _answering():
            return {
                name: Upload(sha256=name, size=found.size, expires_at=round(now + self._kept_s - found.age_s, 3))
                async for found in self._store.found(f"{FOLDER}/{owner}")
                if found.age_s < self._kept_s and NAME.fullmatch(name := found.name.rpartition("/")[2])
            }

    @contextlib.asynccontextmanager
    async def room(self, owner: str, name: str, size: int) -> AsyncIterator[bool]:
        """For one of so many bytes, which is on its way; whether it was there before. Raises Problem 503, 507."""
        on_its_way = dict(self._coming)  # what arrives while it is counted is counted twice rather than not
        there = await self.held(owner)
        before = there.pop(name, None)
        in_all = await self._all()
        coming = list((on_its_way | self._coming).values())
        theirs = [upload.size for upload in there.values()] + [held for whose, held in coming if whose == owner]
        if len(theirs) >= MOST_FILES:
            said = f"you have {MOST_FILES:,} files here, and no more: delete some, or wait until they expire"
            raise Problem(507, "no-room", said, {"Retry-After": "30"})
        if self._bounds.per_subject and sum(theirs) + size > self._bounds.per_subject:
            raise refusal("uploads", self._bounds, of_all=False)
        if self._bounds.in_all and in_all + sum(held for _, held in coming) + size > self._bounds.in_all:
            raise refusal("uploads", self._bounds, of_all=True)
        mine = object()
        self._coming[mine] = owner, size
        try:
            yield before is not None
        finally:
            del self._coming[mine]

    async def _all(self) -> int:
        """Bytes of all that is kept. Raises Problem 503."""
        if time.monotonic() - self._counted_at > _COUNT_S:
            with _answering():
                self._in_all = sum([found.size async for found in self._store.found(FOLDER)])
            self._counted_at = time.monotonic()
        return self._in_all

    async def keep(self, owner: str, name: str, content: Path) -> Upload:
        """From now on, for as long as any is kept. Raises Problem 503."""
        size = content.stat().st_size
        with _answering():
            await self._store.put(_path(owner, name), content)
        self._in_all += size
        return Upload(sha256=name, size=size, expires_at=round(time.time() + self._kept_s, 3))

    async def read(self, owner: str, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes of one that is held, from `start` up to `end`. Raises Problem 404, 503."""
        with _answering():
            return await self._store.read(_path(owner, name), start, end)

    async def delete(self, owner: str, name: str) -> None:
        """Harmless where it is not there. Raises Problem 503."""
        with _answering():
            await self._store.delete([_path(owner, name)])
        self._counted_at = -_COUNT_S

    async def refuse_missing(self, owner: str, files: Sequence[tuple[str, Content | Uploaded]]) -> dict[str, Upload]:
        """What the files of a request name. Raises Problem 422 where the owner has one of them not, or not any more, or
        where they are too large together; 503."""
        named = [(number, found.name) for number, (_, found) in enumerate(files) if isinstance(found, Uploaded)]
        if not named:
            return {}
        held = await self.held(owner)
        for number, name in named:
            if name not in held:
                said = "there is no such file of yours here, or it has expired: put it first"
                raise Problem(422, "invalid", f"files[{number}].upload: {said} (PUT /files/{name})")
        if sum(held[name].size for _, name in named) > MOST_BYTES:
            raise Problem(422, "invalid", f"files: what they name has more than {MOST_BYTES:,} bytes together")
        return {name: held[name] for _, name in named}

    @contextlib.asynccontextmanager
    async def brought(
        self, subject: str, owner: str, files: Sequence[tuple[str, Content | Uploaded]]
    ) -> AsyncIterator[Iterable[tuple[str, Content]]]:
        """The same files with what they name on this machine's disk, as long as the block runs. Raises Problem 422,
        503, 507, OSError."""
        named = await self.refuse_missing(owner, files)
        directory = None
        try:
            if named:
                size = sum(upload.size for upload in named.values())
                directory = await self._intake.made(subject, size)
                for upload in named.values():
                    await self._bring(owner, upload, directory / upload.sha256)
            yield [(path, _here(found, directory)) for path, found in files]
        finally:
            if directory is not None:
                await asyncio.to_thread(self._intake.delete, directory)

    async def _bring(self, owner: str, upload: Upload, into: Path) -> None:
        with into.open("xb") as file, _answering():
            digest = hashlib.sha256()
            async for piece in await self._store.read(_path(owner, upload.sha256), 0, upload.size):
                await asyncio.to_thread(_take, piece, file, digest)
        if digest.hexdigest() != upload.sha256:
            raise Problem(422, "invalid", f"the upload {upload.sha256} is not what was put: put it again")

    async def expire(self) -> None:
        """Deletes what is kept no longer; what cannot be deleted now is later."""
        await self._store.tidy()
        with contextlib.suppress(Away):
            await self._store.expire(FOLDER, self._kept_s)

    async def kept(self) -> list[Kept]:
        """What lies on this machine's disk, where there is no store (see `disk.Source`). Raises OSError."""
        if self._shared is not None:
            return []
        now = time.time()
        try:
            return [Kept(each.name, None, now - each.age_s, each.size) async for each in self._store.found(FOLDER)]
        except Away as error:
            raise OSError(f"what is uploaded cannot be counted: {error}") from error

    async def drop(self, name: str) -> bool:
        """Raises OSError."""
        try:
            await self._store.delete([name])
        except Away as error:
            raise OSError(f"an upload cannot be deleted: {error}") from error
        return True


def _here(found: Content | Uploaded, directory: Path | None) -> Content:
    if not isinstance(found, Uploaded):
        return found
    assert directory is not None
    return directory / found.name


def _take(piece: bytes, file: IO[bytes], digest: hashlib._Hash) -> None:
    file.write(piece)
    digest.update(piece)


def _path(owner: str, name: str) -> str:
    return f"{FOLDER}/{owner}/{name}"


def no_such_file() -> Problem:
    """What is said of one that is not there, and of another's."""
    return Problem(404, "not-found", "there is no such file of yours here")


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except Missing as error:
        raise no_such_file() from error
    except Away as error:
        raise Problem(503, "busy", "what is uploaded cannot be had now", {"Retry-After": "5"}) from error
