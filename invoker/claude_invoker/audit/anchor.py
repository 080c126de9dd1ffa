"""The head of the log, kept where whoever can write its files cannot: so that it cannot be written anew, or cut.

An anchor is never put back: where the log does not have the line that an anchor names, the anchor stays, and that is
logged, for then lines were removed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from redis.exceptions import RedisError

from claude_contract import redis_place
from claude_contract.ledger import DEPLOYMENT, NAMESPACE
from claude_contract.redis_place import Place
from claude_invoker.audit.log import Head, Log

_log = logging.getLogger(__name__)
KEY = f"{NAMESPACE}:{{{DEPLOYMENT}}}:audit:heads"
"""A hash of Redis: log → its head."""
_SWAP = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class Unreachable(Exception):
    """An anchor that cannot be read or written now."""


class Anchor(Protocol):
    """Blocks: for threads. All raise Unreachable."""

    def heads(self) -> list[tuple[str, Head]]:
        """What is known of logs: of which place each is, oldest first."""

    def put(self, place: str, head: Head, before: Head | None) -> None:
        """`before`: the one that this goes on from. Does nothing where that is not the last any more."""


class FileAnchor:
    """Lines of JSON, only ever added to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def heads(self) -> list[tuple[str, Head]]:
        try:
            rows = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unreachable(f"{self.path}: {error.strerror}") from error
        return [_head(row) for row in rows]

    def put(self, place: str, head: Head, before: Head | None) -> None:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, _row(place, head) + b"\n")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise Unreachable(f"{self.path}: {error.strerror}") from error


class RedisAnchor:
    """The last head of each log."""

    def __init__(self, url: str) -> None:
        within = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}
        self._place = Place.parse(url).but(within, within)
        self._client: Any = None

    def __str__(self) -> str:
        return str(self._place)

    def _redis(self) -> Any:
        """Made when it is needed: a Cluster is asked for its nodes at once. Raises RedisError."""
        if self._client is None:
            self._client = redis_place.client(self._place)
        return self._client

    def heads(self) -> list[tuple[str, Head]]:
        try:
            found: dict[bytes, bytes] = self._redis().hgetall(KEY)
        except (RedisError, OSError) as error:
            raise Unreachable(f"{self}: {error}") from error
        return [_head(row) for row in found.values()]

    def put(self, place: str, head: Head, before: Head | None) -> None:
        old = b"" if before is None else _row(place, before)
        try:
            self._redis().eval(_SWAP, 1, KEY, head.log, old, _row(place, head))
        except (RedisError, OSError) as error:
            raise Unreachable(f"{self}: {error}") from error


def place_of(directory: Path) -> str:
    """Of which machine's directory a log is: there, one may not take the place of another."""
    return f"{socket.gethostname()}:{directory.resolve()}"


def advance(log: Log, anchors: Sequence[Anchor]) -> list[str]:
    """Anchors the log's head wherever it goes on from what is anchored; what has kept it from that. Never raises."""
    place, troubles = place_of(log.directory), []
    for anchor in anchors:
        try:
            _advance(log, anchor, place)
        except (Unreachable, OSError, ValueError) as error:
            troubles.append(str(error))
    return troubles


def _advance(log: Log, anchor: Anchor, place: str) -> None:
    before = None
    for at, head in anchor.heads():
        if head.log == log.head.log:
            before = head if before is None or head.seq >= before.seq else before
        elif at == place:
            _log.error("the audit log %s of %s is gone, it had %d lines (%s)", head.log, at, head.seq, anchor)
    head = log.head
    if before == head or (before is not None and before.seq > head.seq and log.chain_at(before.seq) == before.chain):
        return  # another process has anchored more
    if before is not None and log.chain_at(before.seq) != before.chain:
        _log.error("the audit log was cut or changed: line %d is not as it was anchored in %s", before.seq, anchor)
        return
    anchor.put(place, head, before)
    _log.info("the audit log %s has %d lines, chain %s", head.log, head.seq, head.chain)


def relevant(anchors: Sequence[Anchor], directory: Path, logs: Sequence[str]) -> list[Head]:
    """What is known of a directory's logs: of those that are there, and of others that were in that place.
    Raises Unreachable."""
    place = place_of(directory)
    return [head for anchor in anchors for at, head in anchor.heads() if head.log in logs or at == place]


def known(anchors: Sequence[Anchor]) -> list[Head]:
    """Of all logs, wherever they are, the oldest first. Raises Unreachable."""
    return [head for anchor in anchors for _, head in anchor.heads()]


def _row(place: str, head: Head) -> bytes:
    return json.dumps({"place": place, **asdict(head)}, separators=(",", ":")).encode()


def _head(row: bytes) -> tuple[str, Head]:
    """Raises Unreachable."""
    try:
        found = json.loads(row)
        return str(found["place"]), Head(str(found["log"]), int(found["seq"]), str(found["chain"]))
    except (ValueError, KeyError, TypeError):
        raise Unreachable("an anchor cannot be read") from None
