"""What an earlier release has left in Redis, as JSON: `{key: {"type": …, "value": …}}`; bytes are `{"base64": …}`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from redis import Redis


def recorded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def restore(redis: Redis, keys: dict[str, Any]) -> None:
    """Writes the keys as they were, without their times to live."""
    for key, entry in keys.items():
        value = entry["value"]
        match entry["type"]:
            case "string":
                redis.set(key, _bytes(value))
            case "hash":
                redis.hset(key, mapping=value)
            case "list":
                redis.rpush(key, *value)
            case "zset":
                redis.zadd(key, value)
            case "stream":
                for event_id, fields in value:
                    redis.xadd(key, fields, id=event_id)
            case kind:
                raise ValueError(kind)


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else str(value).encode()
