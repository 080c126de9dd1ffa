"""A newcomer's first plugin: kong-pdk's py-hello in an empty folder, three lines of configuration."""

from __future__ import annotations

import http.client
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from minikong.declarative import DeclarativeError
from minikong.pytest_plugin import Start
from tests.support.waiting import HANG_S

# The example of kong-pdk's repository (Apache-2.0), without its last section for dedicated processes.
PY_HELLO = """
import os
import kong_pdk.pdk.kong as kong

Schema = (
    {"message": {"type": "string"}},
)

version = '0.1.0'
priority = 0

class Plugin(object):
    def __init__(self, config):
        self.config = config

    def access(self, kong: kong.kong):
        host, err = kong.request.get_header("host")
        if err:
            pass  # error handling
        message = "hello"
        if 'message' in self.config:
            message = self.config['message']
        kong.response.set_header("x-hello-from-python", "Python says %s to %s" % (message, host))
        kong.response.set_header("x-python-pid", str(os.getpid()))
"""
KONG_YML = """\
_format_version: "3.0"
services: [{{name: up, url: "http://127.0.0.1:{port}", routes: [{{name: all, paths: ["/"]}}]}}]
plugins: [{{name: py-hello, config: {{message: bonjour}}}}]
"""


class _Up(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"up\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Up)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "py-hello.py").write_text(PY_HELLO)
    return directory


def test_by_fixture(minikong: Start, service: int, plugins: Path) -> None:
    kong = minikong(KONG_YML.format(port=service), plugins=plugins)
    with urllib.request.urlopen(kong.base_url + "/any") as answer:
        assert answer.read() == b"up\n"
        host = kong.base_url.removeprefix("http://")
        assert answer.headers["x-hello-from-python"] == f"Python says bonjour to {host}"
        assert int(answer.headers["x-python-pid"]) != os.getpid()
    with urllib.request.urlopen(kong.admin_url + "/plugins") as answer:
        assert b'"name":"py-hello"' in answer.read()


def test_a_bad_config_raises_with_its_place(minikong: Start, plugins: Path) -> None:
    bad = KONG_YML.format(port=1).replace("message: bonjour", "massage: bonjour")
    with pytest.raises(DeclarativeError) as refused:
        minikong(bad, plugins=plugins)
    assert refused.value.located("kong.yml") == [
        "kong.yml:3: plugins[1].config.massage (plugin py-hello): unknown field"
    ]


def test_by_command_line(service: int, plugins: Path, tmp_path: Path) -> None:
    config = tmp_path / "kong.yml"
    config.write_text(KONG_YML.format(port=service))
    command = [sys.executable, "-m", "minikong.cli", "--config", str(config), "--plugins-directory", str(plugins)]
    process = subprocess.Popen(
        [*command, "--proxy-listen", "127.0.0.1:0", "--admin-listen", "off"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stderr is not None
        port = next(
            int(m[1]) for line in process.stderr if (m := re.search(r"listening on http://127.0.0.1:(\d+)", line))
        )
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            connection.close()
            if answer.status != 500:  # Kong's answer until the plugin server listens
                break
            time.sleep(0.02)
        assert answer.status == 200
        assert answer.headers["x-hello-from-python"] == f"Python says bonjour to 127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '_format_version: "3.0"\nservices:\n- name: x\n',
            "kong.yml:3: services[1].host (service x): required field missing",
        ),
        (
            '_format_version: "3.0"\nservices: [\n',
            "kong.yml:2: did not find expected node content",
        ),
        (
            '_format_version: "3.0"\nplugins:\n- name: cors\n',
            "kong.yml:3: plugins[1].name (plugin cors): plugin 'cors' not enabled; add it to the 'plugins' configuration property",
        ),
        (
            '_format_version: "3.0"\ncertificates: []\n',
            "kong.yml:2: certificates: minikong does not have this kind of entity",
        ),
    ],
)
def test_a_bad_config_stops_the_start(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "kong.yml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "minikong.cli", "--config", "kong.yml", "--proxy-listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (2, said)


def test_an_unknown_setting_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "kong.conf").write_text("# mine\nproxy_lisen = 127.0.0.1:0\n")
    done = subprocess.run(
        [sys.executable, "-m", "minikong.cli", "--conf", "kong.conf"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (2, "minikong: kong.conf:2: unknown setting 'proxy_lisen'")
