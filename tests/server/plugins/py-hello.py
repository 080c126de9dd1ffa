"""What a plugin author has today: kong-pdk's contract, Lua-style returns, nothing of ours."""

import os
from typing import Any

import kong_pdk.pdk.kong as kong

Schema = ({"message": {"type": "string"}},)
version = "0.1.0"
priority = 0


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def access(self, kong: kong.kong) -> None:
        host, err = kong.request.get_header("host")
        if err:
            pass
        message = self.config.get("message", "hello")
        kong.response.set_header("x-hello-from-python", f"Python says {message} to {host}")
        kong.response.set_header("x-python-pid", str(os.getpid()))


if __name__ == "__main__":
    from kong_pdk.cli import start_dedicated_server

    start_dedicated_server("py-hello", Plugin, version, priority, Schema)
