"""Writes the audit log of an invoker or a worker: what it notes itself, and what the gateway has left in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError, ResponseError

from claude_contract.ledger.live import OUTBOX
from claude_invoker import redis_clients
from claude_invoker.audit import anchor
from claude_invoker.audit.anchor import Anchor
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import ROTATE_BYTES, Log
from claude_invoker.audit.shipping import OtherLog, Shipping
from claude_invoker.ending import ended
from claude_invoker.settings import Settings
from claude_invoker.store.store import Away, Store, open_store

_log = logging.getLogger(__name__)
ANCHOR_S = 60.0
_RETRY_S = 1.0
_REDIS_RETRY_S = 5.0
_TOLD_AFTER = 6  # failures in a row
_GROUP = "audit"
_OF_GATEWAY = "limits."
"""What its lines are. What the log says of itself, by which lines and details may be gone, comes from no Redis."""
_BATCH = 200
_BLOCK_MS = 2000
_ABANDONED_MS = 60_000
"""After so long what another writer has taken and not written is taken from it."""
_MOST_WAITING = 10_000


class Audit:
    """`note` from anywhere in the loop; what waits is written while `async with` lasts, and at its end."""

    def __init__(
        self,
        log: Log,
        anchors: Sequence[Anchor],
        redis_url: str | None,
        shipping: Shipping | None = None,
        most_bytes: int = 0,
    ) -> None:
        """`most_bytes`: beyond which what the store has is deleted here; 0: nothing is."""
        self._files = log
        self._most_bytes = most_bytes
        self._anchors = anchors
        self._shipping = shipping
        self._redis: Any = None
        if redis_url is not None:
            self._redis = redis_clients.client_of(redis_url, OUTBOX, socket_timeout=10.0)
        self._waiting: deque[Entry] = deque()
        self._lost = 0
        self._failed = 0  # times in a row that the gateway's could not be taken
        self._some = asyncio.Event()
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._undisturbed: set[asyncio.Task[None]] = set()
        """What is never left half done: else it would be done twice."""

    def note(self, entry: Entry) -> None:
        """Never waits. Where the disk takes nothing for long the oldest are given up, which is noted, too."""
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(entry)
        self._some.set()

    async def __aenter__(self) -> Audit:
        """Raises OSError, ValueError where there can be no log."""
        await asyncio.to_thread(self._files.open)
        await self._anchor()
        self._tasks = [asyncio.create_task(self._write_on()), asyncio.create_task(self._anchor_on())]
        if self._redis is not None:
            self._tasks.append(asyncio.create_task(self._take_on()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(*self._tasks)
        await asyncio.gather(*self._undisturbed, return_exceptions=True)
        try:
            await self._write()
        except (OSError, ValueError) as error:
            _log.error("%d entries of the audit log are lost: %s", len(self._waiting), error)
        await self._anchor()
        if self._shipping is not None:
            await self._send(self._shipping)
            self._shipping.close()
        if self._redis is not None:
            await self._redis.aclose()

    async def _write_on(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                await self._do(self._write())
            except (OSError, ValueError) as error:
                _log.error("the audit log cannot be written, it is tried again: %s", error)
                self._some.set()
                await asyncio.sleep(_RETRY_S)

    async def _write(self) -> None:
        """Raises OSError, ValueError."""
        while self._waiting or self._lost:
            lost = self._lost
            batch = [*self._waiting][:_BATCH]
            more = [Entry("log.lost", "", "", {"entries": lost})] if lost else []
            await self._append([*more, *batch])
            self._lost -= lost
            written = {id(entry) for entry in batch}
            while self._waiting and id(self._waiting[0]) in written:
                self._waiting.popleft()

    async def _append(self, entries: Sequence[Entry]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._files.append, entries)

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """To its end, also where whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._undisturbed.add(task)
        task.add_done_callback(self._undisturbed.discard)
        await asyncio.shield(task)

    async def _anchor_on(self) -> None:
        """Once is no trouble: an anchor may be away for a while."""
        before: list[str] = []
        while True:
            await asyncio.sleep(ANCHOR_S)
            troubles = await self._anchor()
            if troubles and before:
                _log.error("the audit log is not anchored: %s", "; ".join(troubles))
            before = troubles
            if self._shipping is not None:
                await self._send(self._shipping, may_let_go=not troubles)

    async def _send(self, shipping: Shipping, *, may_let_go: bool = False) -> None:
        """`may_let_go`: no anchor is behind, so that none will be held against lines that are gone."""
        try:
            await shipping.send()
            if may_let_go and self._most_bytes:
                await self._do(shipping.let_go(self._most_bytes))
        except Away:  # the store says so itself, and what it does not have yet it gets later
            return
        except (OtherLog, OSError, ValueError) as error:
            _log.error("the audit log is not sent to its store: %s", error)

    async def _anchor(self) -> list[str]:
        return await asyncio.to_thread(anchor.advance, self._files, self._anchors)

    async def _take_on(self) -> None:
        """Writes what the gateway has left. It is taken off Redis when it is on the disk: each at least once."""
        while True:
            try:
                await self._take()
            except (RedisError, OSError, ValueError) as error:
                self._failed += 1
                if self._failed == _TOLD_AFTER:  # once it is told it is known
                    _log.warning("what the gateway has left for the audit log waits: %s", error)
                await asyncio.sleep(_REDIS_RETRY_S)

    async def _take(self) -> None:
        with contextlib.suppress(ResponseError):  # it is there
            await self._redis.xgroup_create(OUTBOX, _GROUP, id="0", mkstream=True)
        me = f"{self._files.head.log}:{os.getpid()}"
        while True:
            _, left, *_ = await self._redis.xautoclaim(OUTBOX, _GROUP, me, _ABANDONED_MS, count=_BATCH)
            if not left:
                found = await self._redis.xreadgroup(_GROUP, me, {OUTBOX: ">"}, count=_BATCH, block=_BLOCK_MS)
                left = found[0][1] if found else []
            self._failed = 0
            if left := [(number, fields) for number, fields in left if fields]:
                await self._do(self._keep(left))

    async def _keep(self, left: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Raises RedisError, OSError, ValueError."""
        await self._append([_left(number.decode(), fields) for number, fields in left])
        numbers = [number for number, _ in left]
        await self._redis.xack(OUTBOX, _GROUP, *numbers)
        await self._redis.xdel(OUTBOX, *numbers)


def open_audit(settings: Settings) -> Audit:
    """As the settings have it."""
    anchors: list[Anchor] = []
    if settings.audit_anchor is not None:
        anchors.append(anchor.FileAnchor(settings.audit_anchor))
    if settings.redis_url is not None:
        anchors.append(anchor.RedisAnchor(settings.redis_url))
    most = settings.audit_in_all
    log = Log(settings.audit_directory, min(ROTATE_BYTES, most // 8) if most else ROTATE_BYTES)
    store = store_of(settings)
    # Below the bound by what comes until it is looked again: beyond it no run begins.
    return Audit(log, anchors, settings.redis_url, None if store is None else Shipping(log, store), most // 2)


def store_of(settings: Settings) -> Store | None:
    """Where the log is sent to; None: nowhere."""
    return open_store(settings.audit_store, settings.key_of_audit_store)


def _left(number: str, fields: dict[bytes, bytes]) -> Entry:
    """What the gateway has left under that number of the stream, whose first part is Redis's time."""
    at = datetime.fromtimestamp(int(number.partition("-")[0]) / 1000, UTC)
    try:
        said = json.loads(fields[b"line"])
        before, after = (json.loads(fields.get(side, b"") or b"null") for side in (b"before", b"after"))
        details = {**said["details"], "before": before, "after": after, "stream": number}
        if not (kind := str(said["kind"])).startswith(_OF_GATEWAY):
            raise ValueError(kind)
        return Entry(kind, str(said["actor"]), str(said["subject"]), details, at)
    except (ValueError, KeyError, TypeError):
        return Entry("limits.unreadable", "", "", {"stream": number}, at)
