"""The synchronous redis-py client inside a plugin, as under kong-pdk's own server."""

import redis

Schema = ({"url": {"type": "string"}},)
version = "1"


class Plugin:
    def __init__(self, config):
        self.client = redis.Redis.from_url(config["url"], socket_timeout=float(config.get("timeout", 5)))

    def access(self, kong):
        kong.ctx.shared.set("count", self.client.incr(kong.request.get_header("x-key")))

    def close(self):
        self.client.close()
