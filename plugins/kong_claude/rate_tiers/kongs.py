"""The names that Kong's own `rate-limiting` has for what this plugin calls otherwise. Pure."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from claude_contract.errors import ConfigError
from kong_claude.rate_tiers.schema import KongsRedis, RedisConfig

C = TypeVar("C", bound=RedisConfig)


def folded(config: C) -> C:
    """The same in this plugin's own names: those of Kong's are then at their defaults. Raises ConfigError where two of
    them contradict each other."""
    return _place(_tolerance(config))


def _tolerance(config: C) -> C:
    if config.fault_tolerant is None:
        return config
    other = "local" if config.on_error == "local" else "deny" if config.fault_tolerant else "allow"
    if config.on_error == other != "deny":  # deny is also what nobody has said
        raise ConfigError("fault_tolerant", f"contradicts on_error: {other}; take one of them away")
    on_error = "allow" if config.fault_tolerant else "deny"
    return dataclasses.replace(config, fault_tolerant=None, on_error=on_error)


def _place(config: C) -> C:
    if config.redis_timeout is not None:
        config = dataclasses.replace(config, timeout_ms=config.redis_timeout, redis_timeout=None)
    redis = config.redis
    if redis is None or not (redis.host or redis.sentinel_nodes):  # Kong fills in the record of `policy: local`, too
        return dataclasses.replace(config, redis=None)
    if config.redis_url:
        raise ConfigError("redis", "and redis_url name two places; take one of them away")
    if config.redis_host not in (None, redis.host):  # equal: as Kong's own Admin API shows both
        raise ConfigError("redis.host", f"and redis_host name two places, {redis.host} and {config.redis_host}")
    return dataclasses.replace(
        config,
        redis=None,
        redis_url=_sentinels(redis),
        redis_host=redis.host,
        redis_port=redis.port,
        redis_database=redis.database,
        redis_username=redis.username,
        redis_password=redis.password,
        redis_sentinel_username=redis.sentinel_username,
        redis_sentinel_password=redis.sentinel_password,
        redis_ssl=redis.ssl,
        redis_ssl_verify=redis.ssl_verify,
        redis_server_name=redis.server_name,
        timeout_ms=redis.timeout or config.timeout_ms,
    )


def _sentinels(redis: KongsRedis) -> str | None:
    """The URL of a master that Sentinels know; None without them."""
    if not redis.sentinel_nodes:
        if redis.sentinel_master:
            raise ConfigError("redis.sentinel_nodes", "is needed to ask for redis.sentinel_master")
        return None
    if redis.host:
        raise ConfigError("redis.host", "and redis.sentinel_nodes name two places; take one of them away")
    if not redis.sentinel_master:
        raise ConfigError("redis.sentinel_master", "is needed: the Sentinels' name of the master")
    nodes = ",".join(f"{in_url(node.host)}:{node.port}" for node in redis.sentinel_nodes)
    scheme = "rediss" if redis.ssl else "redis"
    return f"{scheme}+sentinel://{nodes}/{redis.sentinel_master}/{redis.database}"


def in_url(host: str) -> str:
    """A host as URLs have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
