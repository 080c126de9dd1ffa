"""Objects by name, in a directory or in S3: put, read in ranges, listed, deleted, each streamed.

Names are ours: hexadecimal digits and a few words. Nothing that a run or a caller has chosen is ever a part of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from claude_invoker.store.place import Key, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

_log = logging.getLogger(__name__)
PIECE = 1 << 20
_FETCH = 4 << 20
_PART = 8 << 20
"""Of a large file that is sent in parts, two at a time."""
_CONNECT_S = 2.0
_SILENCE_S = 30.0
"""What one request may take, a part of a file included."""
_HALF_WRITTEN = re.compile(r"#\d+$")
_HALF_WRITTEN_S = 3600.0
_SAY_S = 30.0
_REST_S = 5.0
"""For so long after a failure the store counts as away."""


class Missing(Exception):
    """There is no object of that name."""


class Away(Exception):
    """The store cannot be used now. The text names the kind of failure and nothing that is secret."""


@dataclass(frozen=True)
class Found:
    """`age_s`: since it was written, by the store's clock and ours."""

    name: str
    size: int
    age_s: float


class Store:
    """One place. Raises ValueError, OSError for one that cannot be used at all."""

    def __init__(self, place: Place, key: Key | None) -> None:
        self.place = place
        self._store: ObjectStore = _directory(place.directory) if place.kind == "file" else _bucket(place, key)
        self._away_since = 0.0
        self._failed_at = -_REST_S
        self._said = -_SAY_S

    @property
    def seems_away(self) -> bool:
        """Whether it has just failed: who can do without does not try."""
        return time.monotonic() - self._failed_at < _REST_S

    async def put(self, name: str, content: bytes | Path) -> None:
        """Over what is there. Raises Away, and FileNotFoundError for a file that is gone."""
        if isinstance(content, Path) and not content.is_file():
            raise FileNotFoundError(content)
        with self._asking(is_put=True):
            await obstore.put_async(self._store, name, content, chunk_size=_PART, max_concurrency=2)

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, which it has. Returns once the store has begun to answer. Raises Missing,
        Away; the iteration does as well.

        Each piece is a request: one for all would be under way for as long as a slow client reads, which no store and
        no time-out bears."""
        return self._ranges(name, await self._range(name, start, end), start, end)

    async def _ranges(self, name: str, piece: bytes, start: int, end: int) -> AsyncIterator[bytes]:
        while piece:
            yield piece
            start += len(piece)
            piece = await self._range(name, start, end)

    async def _range(self, name: str, start: int, end: int) -> bytes:
        """The next piece; empty at the end."""
        if start >= end:
            return b""
        with self._asking():
            found = await obstore.get_range_async(self._store, name, start=start, end=min(end, start + _FETCH))
        return bytes(found)

    async def get(self, name: str) -> bytes:
        """All of one that fits into memory. Raises Missing, Away."""
        with self._asking():
            answer = await obstore.get_async(self._store, name)
            return bytes(await answer.bytes_async())

    async def found(self, prefix: str) -> AsyncIterator[Found]:
        """Those whose names begin with the segments of `prefix`. Raises Away."""
        stream = obstore.list(self._store, prefix, chunk_size=1000)
        while True:
            with self._asking():
                try:
                    batch = await anext(stream)
                except (StopAsyncIteration, FileNotFoundError):
                    return
            now = time.time()
            for found in batch:
                yield Found(found["path"], found["size"], now - found["last_modified"].timestamp())

    async def folders(self, prefix: str) -> list[str]:
        """The segments that follow `prefix`. Raises Away."""
        with self._asking():
            try:
                listed = await obstore.list_with_delimiter_async(self._store, prefix)
            except FileNotFoundError:
                return []
        return [path.rsplit("/", 1)[-1] for path in listed["common_prefixes"]]

    async def delete(self, names: Iterable[str]) -> None:
        """Those that are there. Raises Away."""
        for name in names:
            with self._asking():
                try:
                    await obstore.delete_async(self._store, name)
                except FileNotFoundError:
                    continue

    async def expire(self, prefix: str, older_than_s: float) -> int:
        """Deletes what was written longer ago; how many that were. Raises Away."""
        old = [found.name async for found in self.found(prefix) if found.age_s > older_than_s]
        random.shuffle(old)  # so that one that the store keeps (a lock, a rule of its own) keeps not all behind it
        await self.delete(old)
        return len(old)

    async def tidy(self) -> None:
        """Deletes what was never written to its end. (A bucket has a lifecycle rule for that.)"""
        if self.place.kind == "file":
            await asyncio.to_thread(_delete_half_written, self.place.directory)

    @contextmanager
    def _asking(self, *, is_put: bool = False) -> Iterator[None]:
        """What the library raises becomes ours: its texts have the whole answer of the server, and addresses. That
        nothing is there is no failure, unless it is the bucket that is not."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not is_put and "NoSuchBucket" not in str(error):
                raise Missing from None
            self._failed_at = time.monotonic()
            reason = _reason(error)
            if time.monotonic() - self._said >= _SAY_S:
                self._said = time.monotonic()
                _log.warning("the store cannot be used, what it is to keep waits on the disk: %s", reason)
            raise Away(reason) from None


_REASONS = {
    "PermissionDeniedError": "permission denied: may the key read, write, list and delete there?",
    "UnauthenticatedError": "it does not accept the key",
}


def _reason(error: Exception) -> str:
    """In words of ours: the library quotes requests and answers, in which a URL may be signed."""
    if known := _REASONS.get(type(error).__name__):
        return known
    text = str(error).lower()
    for mark, reason in (
        ("nosuchbucket", "there is no such bucket"),
        ("404 not found", "there is no such bucket"),
        ("connection refused", "nobody listens there"),
        ("timed out", "it does not answer in time"),
        ("timeout", "it does not answer in time"),
        ("dns", "its name is not known"),
        ("lookup address", "its name is not known"),
        ("invalidaccesskeyid", "it does not accept the key"),
        ("signaturedoesnotmatch", "it does not accept the key"),
        ("no space left", "its disk is full"),
        ("certificate", "its certificate is not accepted"),
        ("error sending request", "it cannot be reached"),
        ("server error", "it answers with an error"),
    ):
        if mark in text:
            return reason
    return type(error).__name__


def _delete_half_written(directory: Path) -> None:
    """What whoever was killed while he wrote it has left: the library writes beside and renames, and lists no such
    file."""
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            if _HALF_WRITTEN.search(path.name) and time.time() - path.lstat().st_mtime > _HALF_WRITTEN_S:
                path.unlink()


def _directory(path: Path) -> LocalStore:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        raise ValueError(f"INVOKER_STORE: {path} is open to other users of this machine, as runs are: chmod 700 {path}")
    return LocalStore(path, automatic_cleanup=True)


def _bucket(place: Place, key: Key | None) -> S3Store:
    """Without a key the environment's is taken (`AWS_…`, a role of the machine or of Kubernetes)."""
    # A path and not a host name of the bucket's own, where it is not Amazon's: few others have that.
    config: S3Config = {"region": place.region, "virtual_hosted_style_request": place.endpoint is None}
    client: ClientConfig = {"connect_timeout": timedelta(seconds=_CONNECT_S), "timeout": timedelta(seconds=_SILENCE_S)}
    if place.endpoint is not None:
        config["endpoint"] = place.endpoint.rstrip("/")
        client["allow_http"] = place.endpoint.startswith("http://")
    if key is not None:
        config["access_key_id"], config["secret_access_key"] = key.id, key.secret
        if key.token is not None:
            config["session_token"] = key.token
    retries: RetryConfig = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
    options: dict[str, Any] = {"config": config, "client_options": client, "retry_config": retries}
    return S3Store(place.bucket, prefix=place.prefix or None, **options)


def open_store(place: Place | None, key: Key | None) -> Store | None:
    """None where none is configured."""
    return None if place is None else Store(place, key)
