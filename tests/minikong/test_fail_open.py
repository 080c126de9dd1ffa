"""Where Kong lets a request pass although a plugin did not run, minikong does too; Kong's own guard closes it.

Every server here is a real kong-pdk process that is really killed, stopped or made to fail.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minikong import app, conf
from minikong.pytest_plugin import MiniKong, Start
from tests.support.waiting import HANG_S

PLUGIN = """
import os
import time

Schema = ({"mark": {"type": "string"}},)
version = "0.1.0"
priority = 100

class Plugin:
    def __init__(self, config):
        self.mark = config.get("mark", "")

    def access(self, kong):
        what = kong.request.get_header("x-do")[0]
        if what == "raise":
            raise ValueError("on purpose")
        if what == "hang":
            time.sleep(30)
        if what == "die":
            os._exit(3)
        if what == "refuse":
            return kong.response.exit(403, "refused by the plugin")
        kong.service.request.set_header("x-marked", self.mark)
        kong.ctx.shared.set("mark", self.mark)
"""
CONFIG = """
_format_version: "3.0"
services:
- name: up
  url: http://127.0.0.1:{port}
  routes:
  - name: open
    paths: [/open]
    plugins: [{{name: marker, config: {{mark: open}}}}]
  - name: guarded
    paths: [/guarded]
    plugins:
    - {{name: marker, config: {{mark: guarded}}}}
    - name: post-function
      config:
        access:
        - |
          return function()
            if kong.ctx.shared.mark ~= "guarded" then
              return kong.response.exit(503, {{ message = "service temporarily unavailable" }}, {{ ["Retry-After"] = "1" }})
            end
          end
"""


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the mark that the plugin put on the request, or "unmarked"."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.headers.get("x-marked", "unmarked").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def kong(minikong: Start, service: int, tmp_path: Path) -> MiniKong:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "marker.py").write_text(PLUGIN)
    return minikong(
        CONFIG.format(port=service),
        plugins=directory,
        nginx_http_lua_socket_read_timeout="500ms",
        log_level="crit",
    )


def get(kong: MiniKong, path: str, do: str = "") -> tuple[int, str]:
    host, _, port = kong.base_url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=HANG_S)
    connection.request("GET", path, headers={"X-Do": do} if do else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def server_pid(kong: MiniKong) -> int:
    pid = kong._app.gateway.processes[0].pid
    assert pid is not None
    return pid


def wait_until_marked(kong: MiniKong, path: str, mark: str) -> None:
    deadline = time.monotonic() + HANG_S
    while get(kong, path) != (200, mark):
        assert time.monotonic() < deadline, f"{path} never came back"
        time.sleep(0.05)


def test_the_plugin_runs_and_can_refuse(kong: MiniKong) -> None:
    assert get(kong, "/open") == (200, "open")
    assert get(kong, "/guarded") == (200, "guarded")
    assert get(kong, "/open", "refuse") == (403, "refused by the plugin")


@pytest.mark.parametrize("failure", ["raise", "hang"])
def test_a_silent_plugin_lets_this_and_later_requests_pass_unless_guarded(kong: MiniKong, failure: str) -> None:
    wait_until_marked(kong, "/open", "open")
    wait_until_marked(kong, "/guarded", "guarded")
    assert get(kong, "/open", failure) == (200, "unmarked")
    # As in Kong the silent connection went back into the pool: what comes next waits on it in vain.
    assert get(kong, "/open") == (200, "unmarked")
    status, body = get(kong, "/guarded")
    assert status == 503
    assert "service temporarily unavailable" in body


def test_a_plugin_that_ends_its_server_lets_the_request_pass_unless_guarded(kong: MiniKong) -> None:
    wait_until_marked(kong, "/open", "open")
    wait_until_marked(kong, "/guarded", "guarded")
    assert get(kong, "/open", "die") == (200, "unmarked")
    wait_until_marked(kong, "/guarded", "guarded")
    assert get(kong, "/guarded", "die")[0] == 503
    wait_until_marked(kong, "/open", "open")


def test_a_killed_server_fails_open_then_comes_back_as_a_new_process(kong: MiniKong) -> None:
    wait_until_marked(kong, "/open", "open")
    wait_until_marked(kong, "/guarded", "guarded")
    before = server_pid(kong)
    os.kill(before, signal.SIGKILL)
    assert get(kong, "/open") == (200, "unmarked")
    assert get(kong, "/guarded")[0] == 503
    wait_until_marked(kong, "/guarded", "guarded")
    assert server_pid(kong) != before


def test_a_stopped_server_fails_open_after_the_read_timeout(kong: MiniKong) -> None:
    wait_until_marked(kong, "/open", "open")
    pid = server_pid(kong)
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert get(kong, "/open") == (200, "unmarked")
        assert time.monotonic() - started > 0.4  # it did wait
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until_marked(kong, "/open", "open")


async def test_an_instance_that_was_never_started_fails_closed(service: int, tmp_path: Path) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text(
        '[{"Name": "marker", "Phases": ["access"], "Priority": 1, "Version": "0.1.0", "Schema": '
        '{"name": "marker", "fields": [{"config": {"type": "record", "fields": [{"mark": {"type": "string"}}]}}]}}]'
    )
    settings = {
        "prefix": str(tmp_path),
        "proxy_listen": "127.0.0.1:0",
        "admin_listen": "off",
        "plugins": "bundled,marker",
        "pluginserver_names": "marker",
        "pluginserver_marker_socket": str(tmp_path / "nobody.sock"),
        "pluginserver_marker_query_cmd": f"cat {dump}",
        "declarative_config_string": CONFIG.format(port=service),
        "log_level": "emerg",
    }
    running = await app.start(conf.load(overrides=settings))
    try:
        reader, writer = await asyncio.open_connection(*running.proxy_addresses[0])
        writer.write(b"GET /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 500 ")
        writer.close()
    finally:
        await running.stop()
