"""The plugins pa, pb and pc of the recorded process cases, in one process on one socket: kong-pdk's own server.

`multi.py --dump pa` prints the dump of one; `multi.py --sock PATH [-g]` serves all three.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

SCHEMA = [{"tag": {"type": "string"}}, {"auth": {"type": "boolean"}}]


def make(name: str) -> Any:
    class Plugin:
        def __init__(self, config: Any) -> None:
            self.config = config

        def access(self, kong: Any) -> None:
            action = kong.request.get_header("x-action")
            if action == "raise":
                raise RuntimeError("as asked")
            if self.config.get("auth") and kong.request.get_header("x-credential") != "good":
                kong.response.exit(403, {"message": "refused"})
                return
            kong.service.request.set_header(f"x-{name}", str(os.getpid()))
            if action == "raise-after":
                raise RuntimeError("as asked")
            kong.ctx.shared.set(f"mark_{name}", self.config.get("tag"))

    return Plugin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dump")
    parser.add_argument("--sock", type=Path)
    parser.add_argument("-g", action="store_true")
    parser.add_argument("--terms", type=Path, help="note each SIGTERM here")
    options = parser.parse_args()
    if options.g:
        from gevent import monkey

        monkey.patch_all()
    from kong_pdk.listener import UnixStreamServer
    from kong_pdk.module import Module
    from kong_pdk.server import PluginServer

    server = PluginServer(loglevel=40, use_gevent=options.g, lua_style=False)
    for priority, name in ((1003, "pa"), (1002, "pb"), (1001, "pc")):
        code = type(name, (), {"Plugin": make(name), "Schema": SCHEMA, "version": "1.0.0", "priority": priority})
        server.plugins[name] = Module(name, module=code)
    if options.dump:
        sys.stdout.write(json.dumps([server.get_plugin_info(options.dump)]))
        return
    if options.terms:

        def note(number: int, frame: Any) -> None:
            with options.terms.open("a") as file:
                file.write(f"{number}\n")
            os._exit(0)

        signal.signal(signal.SIGTERM, note)
    UnixStreamServer(
        server, str(options.sock.parent), sock_name=options.sock.name, use_gevent=options.g
    ).serve_forever()


if __name__ == "__main__":
    main()
