"""Asks Redis whether a token or its subject has been revoked: one SMISMEMBER per request."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from claude_contract import redis_place
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.redis_place import BadPlace, Kind, Place

TIMEOUT = 0.5  # seconds, to connect and to answer
MAX_CONNECTIONS = 64


class Revocation:
    """The set at `key` has members `jti:<jti>` and `sub:<subject>` (with the issuer's `subject_prefix`)."""

    def __init__(self, url: str, key: str) -> None:
        """Connects on first use. Raises ConfigError for an unusable URL."""
        if not url:
            raise ConfigError("revocation_redis_url", "is empty (an unresolved vault reference?)")
        within = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
        # Once more, since a pooled connection may have been closed by the server meanwhile.
        again = {"retry": Retry(NoBackoff(), 1)}
        try:
            self._place = Place.parse(url).but(within | again, within | again)
        except BadPlace as error:
            raise ConfigError("revocation_redis_url", str(error)) from None
        self._client: Any = None
        self._key = key

    def revoked(self, identity: Identity) -> bool:
        """Raises redis.RedisError where Redis does not answer."""
        members = [f"sub:{identity.subject}"]
        if identity.token_id:
            members.append(f"jti:{identity.token_id}")
        found = self._ask().smismember(self._key, members)
        return any(found)

    def _ask(self) -> Any:
        """Made on first use: a Cluster is asked for its nodes at once, and Redis may be away when Kong starts."""
        if self._client is None:
            if self._place.kind is Kind.SERVER:  # the only one for which redis-py has a pool that waits
                bounded = {"max_connections": MAX_CONNECTIONS, "timeout": TIMEOUT}
                pool = redis_place.pool(self._place, redis.BlockingConnectionPool, **bounded)
                self._client = redis.Redis.from_pool(pool)  # which it closes
            else:
                self._client = redis_place.client(self._place)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
