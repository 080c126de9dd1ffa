"""Events of every kind in one instance: the request's first header says which."""

import time
from typing import Any

version = "1"


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        pass

    def access(self, kong: Any) -> None:
        kind = kong.request.get_header("x-kind")
        if kind == "normal":
            kong.ctx.shared.set("seen", kong.request.get_header("host"))
        elif kind == "exit later":
            kong.response.exit(403, {"message": "no"}, {"x-a": "b"})
        elif kind == "exception":
            raise RuntimeError("lost")
        elif kind == "abandoned":
            kong.request.get_header("never answered")
        elif kind == "timeout":
            time.sleep(60)
        elif kind == "body":
            kong.ctx.shared.set("length", len(kong.request.get_raw_body(0)))
        elif kind == "large body back":
            kong.service.request.set_raw_body(b"x" * (1 << 20))

    def log(self, kong: Any) -> None:
        kong.response.exit(200)

    def rewrite(self, kong: Any) -> None:
        raise ValueError("before the first call")
