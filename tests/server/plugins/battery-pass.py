"""The battery's plugin with `on_error = "pass"`."""

import time

version = "1.0.0"
priority = 999
on_error = "pass"
CLOSED = []


class Plugin:
    def __init__(self, config):
        self.config = config

    def access(self, kong):
        if self.config.get("do") == "sleep":
            time.sleep(60)
        if self.config.get("do") == "closed":
            kong.ctx.shared.set("closed", len(CLOSED))
            return
        raise RuntimeError("lost")

    def close(self):
        CLOSED.append(self)
