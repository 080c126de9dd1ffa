"""An error of the server's own code must refuse as well: its bookkeeping is broken on purpose here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.waiting import HANG_S

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import _socket, socket, sys
import gevent, msgpack
from kong_claude.server import core, plugins

class Module:
    phases = ["access"]
    mod = None
    class cls:
        def __init__(self, config): pass
        def access(self, kong):
            if "first" not in sys.argv: kong.request.get_header("host")
            raise RuntimeError

def broken(*_): raise KeyError("broken on purpose")

server = core.Server({})
instance = plugins.Instance(7, plugins.Plugin("p", Module), {}, Module.cls({}))
server.instances.by_id[7] = instance
ours, kong = socket.socketpair(socket.AF_UNIX)
server.accept(_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach()))
server.failed = broken
unpacker = msgpack.Unpacker()

def call(method, arg):
    kong.sendall(msgpack.packb([0, 1, method, [arg]]))
    unpacker.feed(kong.recv(4096))
    return next(iter(unpacker))[3]

result = call("plugin.HandleEvent", {"InstanceId": 7, "EventName": "access"})
if result["Data"]["Method"] == "kong.request.get_header":
    result = call("plugin.Step", {"EventId": result["EventId"], "Data": "h"})
server.sweep(float("inf"))
print(result["Data"]["Method"], result["Data"]["Args"][0], len(server.events))
"""


@pytest.mark.parametrize("when", ["first", "after a call"])
def test_a_broken_server_refuses(when: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, when], capture_output=True, text=True, timeout=HANG_S)
    assert done.stdout == "kong.response.exit 503 0\n", done.stderr
