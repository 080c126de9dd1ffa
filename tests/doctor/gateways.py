"""What really passes: a gateway whose plugins run, and one whose plugins do not, as after their server's death.

minikong, or with KONG=… a real Kong.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt

from kong_claude import PLUGINS
from kong_claude.environment import variable
from kong_claude_local import stack
from tests.doctor.cases import TOKEN_SECRET, Case, secrets
from tests.doctor.forms import AUDIENCE, ISSUER
from tests.support.gateway import gateway_alone

LUA = Path(__file__).parent / "lua"
# The plugin takes its configuration and starts; its events never come to anything, which Kong takes for a pass.
SILENT = """

class Plugin(Plugin):
    def access(self, kong):
        pass

    if hasattr(Plugin, "log"):
        def log(self, kong):
            pass
"""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def upstream() -> Iterator[int]:
    """The port of a server that answers everything with 200."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Admin(http.client.HTTPConnection):
    """By the socket that only our own user can connect to."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


@dataclass
class Gateway:
    port: int
    admin: Path

    def load(self, case: Case) -> None:
        """Replaces the configuration, and waits until it is the one that serves."""
        text = case.written.served
        body = text if case.written.served_as == "json" else json.dumps({"config": text})
        connection = Admin(self.admin)
        connection.request("POST", "/config", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        assert answer.status == 201, (said, text)
        deadline = time.monotonic() + 60
        while self.answers((case.beside,), None)[case.beside] == 404:  # Kong's workers take it in their own time
            assert time.monotonic() < deadline, "the configuration is not served"
            time.sleep(0.02)

    def answers(self, paths: tuple[str, ...], token: str | None) -> dict[str, int]:
        """The status of a GET of each path."""
        found = {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for path in paths:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            answer.read()
            found[path] = answer.status
        connection.close()
        return found


def queries(directory: Path) -> dict[str, str]:
    """Kong's query commands, answered from files: asking the server for each plugin would start it five times."""
    server = [stack.script("kong-claude-pluginserver"), "--dump-all-plugins"]
    said = subprocess.run(server, capture_output=True, check=True, timeout=120).stdout
    made = {}
    for dump in json.loads(said):
        file = directory / f"{dump['Name']}.json"
        file.write_text(json.dumps([dump]))
        made[variable(dump["Name"], "QUERY_CMD")] = f"cat {file}"
    return made


@contextmanager
def gateway(plugins: Path, own: Mapping[str, str]) -> Iterator[Gateway]:
    def more(given: Mapping[str, str], proxy: int, spare: int) -> dict[str, str]:
        lua = {"KONG_LUA_PACKAGE_PATH": f"{LUA}/?.lua;" + given["KONG_LUA_PACKAGE_PATH"]}
        return {**own, "KONG_PLUGINS": given["KONG_PLUGINS"] + ",house-answer", **lua, **secrets()}

    with gateway_alone('{"_format_version": "3.0"}', more, plugins) as alone:
        yield Gateway(alone.proxy, alone.directory / "admin.sock")


@dataclass
class Pair:
    """Both gateways."""

    running: Gateway
    silent: Gateway

    def differences(self, case: Case) -> list[str]:
        """Where what passes, and the truth that the case states, part."""
        for one in (self.running, self.silent):
            one.load(case)
        strange = self.running.answers(case.paths, None)
        orphaned = self.silent.answers(case.paths, None)
        known = self.running.answers(case.paths, token())
        passes = {path for path in case.paths if strange[path] < 400 or orphaned[path] < 400}
        shut = {path for path in case.paths if known[path] >= 400}
        told = {path: (strange[path], orphaned[path], known[path]) for path in case.paths}
        return [
            f"{path} {what}: {told[path]}"
            for what, paths in (
                ("passes though nobody opened it", passes - case.opens),
                ("does not pass though it was opened", case.opens - passes),
                ("is shut though nobody shut it", shut - case.shuts),
                ("is not shut", case.shuts - shut),
            )
            for path in sorted(paths)
        ]


def token() -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 3600}
    return jwt.encode(claims, TOKEN_SECRET, "HS256")


@contextmanager
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="kc-silent-") as name:
        silent = Path(name)
        for file in PLUGINS.glob("claude-*.py"):
            (silent / file.name).write_text(file.read_text() + SILENT)
        asked = queries(silent)
        with gateway(PLUGINS, asked) as running, gateway(silent, asked) as dead:
            yield Pair(running, dead)
