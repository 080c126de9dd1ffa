"""An attestation is good for one use: which ones were used already."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import RedisError

from claude_contract.redis_place import Place
from claude_invoker import redis_clients
from claude_invoker.problem import Problem

SKEW_S = 5.0
"""Difference of clocks that is forgiven: each end of an attestation's life is so much further away."""


class SeenOnce:
    """Remembers attestation ids for as long as they could be replayed, at whichever invoker: one whose clock is SKEW_S
    ahead of the gateway's may take it first, and one that is as much behind takes it for as long after its end."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis: Any = None
        self._seen: dict[str, float] = {}
        if redis_url:
            self._place = Place.parse(redis_url)
            self._redis = redis_clients.client(redis_url, socket_timeout=2.0)

    async def first(self, jti: str, lives_s: float) -> bool:
        """Whether this id comes for the first time. `lives_s`: from its `iat` to its `exp`. Raises Problem 503 where
        Redis cannot tell."""
        lasts = int(lives_s + 4 * SKEW_S + 1)  # their seconds are whole
        now = time.monotonic()
        if self._redis is not None:
            try:
                return bool(await self._redis.set(f"claude:jti:{jti}", 1, nx=True, ex=lasts))
            except Exception as error:
                raise Problem(503, "busy", "replay protection is not available", {"Retry-After": "2"}) from error
        if len(self._seen) > 10_000:
            self._seen = {known: end for known, end in self._seen.items() if end > now}
        if self._seen.get(jti, 0) > now:
            return False
        self._seen[jti] = now + lasts
        return True

    async def obstacle(self) -> str | None:
        """Which Redis cannot be used and why, without its password. None: it answers, or there is none to be asked."""
        if self._redis is None:
            return None
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            return f"{self._place} cannot be used: {error or type(error).__name__}"
        return None

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
