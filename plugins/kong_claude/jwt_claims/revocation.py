"""Asks Redis whether a token or its subject has been revoked: one SMISMEMBER per request."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from claude_contract.errors import ConfigError
from claude_contract.identity import Identity

TIMEOUT = 0.5  # seconds, to connect and to answer
MAX_CONNECTIONS = 64


class Revocation:
    """The set at `key` has members `jti:<jti>` and `sub:<subject>` (with the issuer's `subject_prefix`)."""

    def __init__(self, url: str, key: str) -> None:
        """Connects on first use. Raises ConfigError for an unusable URL."""
        if not url:
            raise ConfigError("revocation_redis_url", "is empty (an unresolved vault reference?)")
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=TIMEOUT,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                # Once more, since a pooled connection may have been closed by the server meanwhile.
                retry=Retry(NoBackoff(), 1),
                retry_on_error=[redis.ConnectionError],
            )
        except (ValueError, TypeError) as error:
            # The text of the error could hold the URL with its password.
            raise ConfigError("revocation_redis_url", "is not a redis URL that can be used") from error
        self._redis = redis.Redis(connection_pool=pool)
        self._key = key

    def revoked(self, identity: Identity) -> bool:
        """Raises redis.RedisError where Redis does not answer."""
        members = [f"sub:{identity.subject}"]
        if identity.token_id:
            members.append(f"jti:{identity.token_id}")
        found: Any = self._redis.smismember(self._key, members)  # typed for the asyncio client too
        return any(found)

    def close(self) -> None:
        self._redis.connection_pool.disconnect()
