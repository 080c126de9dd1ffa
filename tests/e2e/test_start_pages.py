"""docs/start: each page's commands as they stand. What needs an engine or a cluster is held against what is named by it."""

from __future__ import annotations

import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, free_port, own_environment
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]
PROGRAMS = Path(sys.executable).parent
REAL = os.environ.get("KONG")


def page(name: str) -> str:
    return (ROOT / "docs" / "start" / f"{name}.md").read_text()


def blocks(name: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)


def run(script: str, folder: Path, **more: str) -> str:
    environment = own_environment(folder / "home")
    environment |= {"PATH": f"{folder / 'bin'}:{PROGRAMS}:{environment['PATH']}"} | more
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_this_machine(tmp_path: Path) -> None:
    port = free_port()
    script = "".join(blocks("local"))
    for was, now in (
        ("make setup ", ": "),  # what runs this has done it
        (".venv/bin/kong-claude ", "kong-claude "),
        ("kong-claude up --detach", f"kong-claude up --detach --port {port}"),
        ("127.0.0.1:8000", f"127.0.0.1:{port}"),
    ):
        assert was in script
        script = script.replace(was, now)
    shutil.copy(ROOT / "kong.yml", tmp_path)
    said = run(f"trap 'kong-claude down' ERR\n{script}", tmp_path)
    assert f"127.0.0.1:{port}" in said and '"result":' in said and '"tier":"pro"' in said
    assert said.rstrip().endswith("stopped")


class _Reports(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the reports\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def reports() -> Iterator[int]:
    """The service that somebody has."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Reports) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


# `kong start` returns when Kong answers; minikong, which takes the same variables, stays in the foreground.
KONG = """#!/bin/bash
[ "$1" = start ]
unset KONG_CLAUDE_HOME
{python} -m minikong > minikong.log 2>&1 &
echo $! > pid
until curl -s -o /dev/null "$URL"; do kill -0 $! || {{ cat minikong.log; exit 1; }}; sleep 0.1; done
"""


def test_a_kong_that_is_there(tmp_path: Path, reports: int) -> None:
    """Minikong in its place, or with KONG=… a real one."""
    port = free_port()
    installing, starting, asking = blocks("kong")
    assert "'kong-claude[tools]' kong-claude-local" in installing  # tests/packaging does it
    (declared,) = blocks("kong", "yaml")
    assert "127.0.0.1:9000" in declared
    (tmp_path / "kong.yml").write_text(declared.replace("127.0.0.1:9000", f"127.0.0.1:{reports}"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kong").write_text(
        f'#!/bin/sh\nunset KONG_CLAUDE_HOME\nexec {REAL} "$@"\n' if REAL else KONG.format(python=sys.executable)
    )
    (tmp_path / "bin" / "kong").chmod(0o755)
    (tmp_path / "prefix").mkdir()
    url = f"http://127.0.0.1:{port}"
    own = {
        "URL": url,
        "KONG_PREFIX": str(tmp_path / "prefix"),
        "KONG_PROXY_LISTEN": f"127.0.0.1:{port}",
        "KONG_ADMIN_LISTEN": "off",
        "KONG_NGINX_USER": "root root",
    }
    starting = starting.replace("PATH=/opt/kong-claude/bin:$PATH\n", "")
    asked = "$(curl -s -o /dev/null -w '%{http_code}' \"$URL/reports\")"
    script = f'{starting}while [ "{asked}" = 500 ]; do sleep 0.1; done\n{asking}'.replace("http://127.0.0.1:8000", url)
    script = script.replace("env --plugin", f"env --prefix {tmp_path / 'prefix'} --plugin").replace(
        "curl -i", "curl -sS -i"
    )
    stop = "kong stop" if REAL else 'kill "$(cat pid)"'
    said = run(f"trap '{stop} >&2' EXIT\n{script}", tmp_path, **own)
    assert re.findall(r"HTTP/1\.1 (\d+)", said) == ["401", "200"], said
    assert said.endswith("the reports\n")


def test_docker_names_what_the_compose_file_has() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    profiles = {name for service in compose["services"].values() for name in service.get("profiles", ())}
    text = page("docker")
    assert set(re.findall(r"--profile (\w+)", text)) <= profiles
    for words in map(shlex.split, re.findall(r"docker compose ((?:run|exec) [^\n)]+)", text)):
        service = next(word for word in words[1:] if not word.startswith("-"))
        assert service in compose["services"], words
    standin = compose["services"]["standin"]
    assert re.findall(r"http://(\w+):(\d+) docker", text) == [("standin", "8101")] and "8101" in str(standin)


def test_kubernetes_exports_what_is_shipped(tmp_path: Path) -> None:
    """Its secrets are made by tests/deploy."""
    (script,) = [block for block in blocks("kubernetes") if "export kubernetes" in block]
    shutil.copy(ROOT / "kong.yml", tmp_path)
    shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "deploy" / "kubernetes")
    routes = tmp_path / "deploy" / "kubernetes" / "routes.yaml"
    routes.unlink()
    run(script, tmp_path)
    assert routes.read_text() == (ROOT / "deploy" / "kubernetes" / "routes.yaml").read_text()
    applied = re.findall(r"(?:-f|-k) (deploy/\S+)", "".join(blocks("kubernetes")))
    assert applied and all((ROOT / path).exists() for path in applied)
