"""What docker-compose.yml has beside Kong, by its profiles: nginx with TLS in front, Prometheus."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.docker.conftest import MINIKONG, ROOT, ComposeGateway, skip_or_fail
from tests.e2e.conftest import free_port
from tests.support.edge import certificate
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
# Beside Kong in the test's own file: it says which headers came, and asks what is said in its command line.
ECHO = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 9000), Echo).serve_forever()
"""
ASK = """
import ssl, sys, urllib.request as u
url, headers = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
anybody = ssl._create_unverified_context()
print(u.urlopen(u.Request(url, headers=headers), timeout=30, context=anybody).read().decode())
"""
FORGED = (
    "X-Forwarded-For=203.0.113.9",
    "X-Real-IP=203.0.113.9",
    "X-Forwarded-Proto=gopher",
    "X-Forwarded-Host=evil.test",
)


@dataclass
class Edge:
    gateway: ComposeGateway
    more: tuple[str, ...]
    port: int
    plain: int
    certificate: Path

    def run(self, *words: str) -> str:
        return self.gateway.run(*self.more, *words)

    def ask(self, url: str, *headers: str) -> Any:
        """As the container `echo` asks it, which has no address of its own."""
        return json.loads(self.run("exec", "-T", "echo", "python3", "-c", ASK, url, *headers))

    @property
    def address(self) -> str:
        """Of that container on the network of the edge."""
        seen = "import socket; print(socket.create_connection(('kong', 8000)).getsockname()[0])"
        return self.run("exec", "-T", "echo", "python3", "-c", seen).strip()

    def refuses_strangers(self) -> bool:
        asked = httpx.post(
            f"https://127.0.0.1:{self.port}/claude/invoke", json={"prompt": "hi"}, verify=False, timeout=60
        )
        return asked.status_code == 401

    def prometheus(self, path: str) -> Any:
        return self.ask(f"http://prometheus-api:9090/api/v1/{path}")["data"]


@pytest.fixture(scope="module")
def edge(gateway: ComposeGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Beside the stack: the edge with a certificate of the test's on ports of the test's, Prometheus, and a service that
    Kong sends on to without any plugin."""
    skip_or_fail("nginx:1.28-alpine", "prom/prometheus:v3.5.0")
    folder = tmp_path_factory.mktemp("edge")
    certificate(folder / "tls")
    routes = yaml.safe_load((ROOT / "kong.yml").read_text())
    routes["services"].append(
        {"name": "echo", "url": "http://echo:9000", "routes": [{"name": "echo", "paths": ["/echo"]}]}
    )
    (folder / "kong.yml").write_text(yaml.safe_dump(routes))
    (folder / "kong.yml").chmod(0o644)
    port, plain = free_port(), free_port()
    (folder / "compose.yml").write_text(
        f"""
services:
  kong: {{volumes: ["{folder}/kong.yml:/etc/kong/kong.yml:ro"]}}
  edge:
    volumes: ["{folder}/tls:/etc/nginx/tls:ro"]
    ports: !override ["127.0.0.1:{port}:443", "127.0.0.1:{plain}:80"]
  echo:
    image: kong-claude/{"minikong" if MINIKONG else "kong"}
    user: "0"
    entrypoint: ["python3", "-uc", {json.dumps(ECHO)}]
    networks: [edge, dashboards]
    healthcheck:
      test: ["CMD", "python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9000', timeout=3)"]
      interval: 2s
      retries: 30
"""
    )
    more = ("-f", str(folder / "compose.yml"), "--profile", "edge", "--profile", "observability")
    made = Edge(gateway, more, port, plain, folder / "tls/tls.crt")
    try:
        made.run("up", "-d", "--wait", "--no-build", "kong", "edge", "prometheus", "echo")
        assert made.refuses_strangers(), "Kong is healthy when its plugins answer, and not before"
        yield made
    finally:
        print(made.run("logs", "--no-color", "--tail", "40", "kong", "edge", "prometheus"))
        made.run("rm", "--stop", "--force", "edge", "prometheus", "echo")
        gateway.run("up", "-d", "--wait", "--no-build", "kong")


def test_the_edge_speaks_tls_with_the_certificate_beside_it(edge: Edge) -> None:
    assert edge.refuses_strangers()
    assert ssl.get_server_certificate(("127.0.0.1", edge.port)).strip() == edge.certificate.read_text().strip()
    with httpx.Client(base_url=f"https://127.0.0.1:{edge.port}", verify=False, timeout=60) as client:
        bearer = {"Authorization": f"Bearer {edge.gateway.token('by-the-edge', '--tier', 'pro')}"}
        answer = client.post("/claude/invoke", json={"prompt": "hi"}, headers=bearer)
        assert answer.status_code == 200 and "canned answer" in answer.json()["result"], answer.text
    moved = httpx.get(f"http://127.0.0.1:{edge.plain}/claude/limits", headers={"Host": "claude.example"})
    assert (moved.status_code, moved.headers["location"]) == (308, "https://claude.example/claude/limits")


def test_events_leave_one_by_one(edge: Edge) -> None:
    bearer = {"Authorization": f"Bearer {edge.gateway.token('by-the-edge', '--tier', 'pro')}"}
    headers = bearer | {"Accept": "text/event-stream"}
    arrivals = []
    with (
        httpx.Client(base_url=f"https://127.0.0.1:{edge.port}", verify=False, timeout=60) as client,
        client.stream("POST", "/claude/invoke", json={"prompt": "slow: a story"}, headers=headers) as answer,
    ):
        for line in answer.iter_lines():
            if line == "event: content_block_delta":
                arrivals.append(time.monotonic())
    assert len(arrivals) > 3 and arrivals[-1] - arrivals[0] > 0.5


def test_kong_takes_the_clients_address_from_the_edge(edge: Edge) -> None:
    """And what the client says about itself from nobody."""
    seen = edge.ask("https://edge/echo", *FORGED, "Host=claude.example")
    assert seen["x-real-ip"] == edge.address
    assert "203.0.113.9" not in seen["x-forwarded-for"]
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("https", "claude.example")


def test_kong_believes_nobody_else_on_that_network(edge: Edge) -> None:
    """The control is the edge, whose address is believed above."""
    seen = edge.ask("http://kong:8000/echo", *FORGED)
    assert seen["x-real-ip"] == edge.address
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("http", "kong")


def test_who_has_no_address_of_its_own_gets_none_that_is_believed(edge: Edge) -> None:
    """One did, where the edge was not started: the tenth container on that network had its address."""
    config = yaml.safe_load(edge.run("config"))
    [named] = config["networks"]["edge"]["ipam"]["config"]
    assert ipaddress.ip_address(edge.address) in ipaddress.ip_network(named["ip_range"])


def test_prometheus_scrapes_what_it_names_and_takes_the_rules(edge: Edge) -> None:
    named = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]

    def jobs() -> dict[str, str]:
        found = edge.prometheus("targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] + target["lastError"] for target in found}

    wait_for(lambda: jobs() == {job["job_name"]: "up" for job in named}, what="all of them to be scraped", every_s=2)

    def unevaluated() -> list[str]:
        rules = [rule for group in edge.prometheus("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 15
        return [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]

    wait_for(lambda: unevaluated() == [], what="all rules to be evaluated", every_s=2)
    found = edge.prometheus("query?query=claude_requests_total")["result"]
    assert found and all(series["metric"]["job"] == "claude-pluginserver" for series in found)


def test_whom_prometheus_scrapes_does_not_reach_it(edge: Edge) -> None:
    """It is on the network of the invoker, and listens on another. The control is who is on that one."""
    code = (
        "import socket\naddress = socket.gethostbyname('prometheus')\n"
        "try: socket.create_connection((address, 9090), 5); print('reached')\n"
        "except OSError as error: print('not reached')"
    )
    assert edge.run("exec", "-T", "invoker", "python", "-c", code).strip() == "not reached"
    assert edge.prometheus("status/buildinfo")["version"]


def test_an_invoker_that_is_stopped_is_an_alert(edge: Edge) -> None:
    def alerts() -> set[str]:
        return {alert["labels"]["alertname"] for alert in edge.prometheus("alerts")["alerts"]}

    assert "ClaudeInvokerDown" not in alerts()
    edge.run("stop", "--timeout", "5", "invoker")
    try:
        wait_for(lambda: "ClaudeInvokerDown" in alerts(), what="the alert", every_s=2)
    finally:
        edge.run("up", "-d", "--wait", "--no-build", "invoker")
