"""The synchronous redis-py client inside a plugin, as under kong-pdk's own server."""

from typing import Any

import redis

Schema = ({"url": {"type": "string"}},)
version = "1"


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        self.client = redis.Redis.from_url(config["url"], socket_timeout=float(config.get("timeout", 5)))

    def access(self, kong: Any) -> None:
        kong.ctx.shared.set("count", self.client.incr(kong.request.get_header("x-key")))

    def close(self) -> None:
        self.client.close()
