"""Remembers tokens that were verified, so that a repeated token costs a digest and a look-up."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from kong_claude.jwt_claims.caller import Caller
from kong_claude.jwt_claims.keys import KeySet


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified token's caller, and what it stays true for."""

    caller: Caller
    keys: KeySet  # the issuer's keys when it was verified
    until: float  # Unix seconds: exp and leeway


class VerifiedTokens:
    """A bounded least-recently-used map from a token's digest to its entry. `size` 0 remembers nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def digest(token: str) -> bytes:
        """The key: the token itself is not kept."""
        return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

    def get(self, digest: bytes, now: float) -> Entry | None:
        """The entry, unless its token has expired."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if now >= entry.until:
            self.drop(digest)
            return None
        try:
            self._entries.move_to_end(digest)
        except KeyError:  # another thread dropped it
            pass
        return entry

    def put(self, digest: bytes, entry: Entry) -> None:
        if self._size <= 0:
            return
        self._entries[digest] = entry
        while len(self._entries) > self._size:
            try:
                self._entries.popitem(last=False)
            except KeyError:  # another thread was faster
                break

    def drop(self, digest: bytes) -> None:
        self._entries.pop(digest, None)
