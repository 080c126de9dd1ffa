"""Python-style and Lua-style returns, side by side: writes down what calls returned."""

from typing import Any

version = "1"


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        pass

    def access(self, kong: Any) -> None:
        got = kong.request.get_header("host")
        try:
            failed = kong.request.get_query_arg("bad")
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        kong.ctx.shared.set("got", repr(got))
        kong.ctx.shared.set("failed", repr(failed))
