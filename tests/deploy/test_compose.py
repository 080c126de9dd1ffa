"""The images' recipes and the compose files as data; tests/docker starts them where there is an engine."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from release.locks import IMAGES, locked

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IN_PLACE_OF_KONG: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.minikong.yml").read_text())[
    "services"
]
FROM_KONGS_IMAGE = {name for name, service in SERVICES.items() if service["image"] == "kong-claude/kong"}


def test_kong_starts_as_its_image_does() -> None:
    """docker-entrypoint.sh is that of Docker's official image; without it the container restarted for ever."""
    recipe = (ROOT / "plugins/Dockerfile").read_text()
    assert recipe.partition("\nFROM ")[2].startswith("kong:")
    assert '\nENTRYPOINT ["/usr/local/bin/with-secrets", "/docker-entrypoint.sh"]\n' in recipe
    assert "RUN test -x /docker-entrypoint.sh " in recipe


@pytest.mark.parametrize("name", sorted(FROM_KONGS_IMAGE))
def test_no_service_is_asked_whether_it_is_kong(name: str) -> None:
    """Kong's image asks for Kong's health, so that a service without a check of its own never got healthy, nor `up --wait`."""
    service = SERVICES[name]
    if service.get("profiles") == ["tools"]:
        return  # a command and its end
    check = " ".join(service["healthcheck"]["test"])
    assert "kong health" not in check and ("'/claude/api/hello'" in check) == (name == "kong")


# Without a check: commands and their end, an image that has one program and no other to ask it, what nobody waits for.
UNASKED = {"secrets", "tools", "oauth2-proxy", "grafana"}


def test_who_goes_on_says_whether_it_is_well() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == UNASKED


def test_kong_is_well_when_its_plugins_are() -> None:
    """`kong health` said so before the plugin server was there, when Kong answers 500, and when it was gone."""
    route = next(
        route
        for service in yaml.safe_load((ROOT / "kong.yml").read_text())["services"]
        for route in service["routes"]
        if route["name"] == "claude-hello"
    )
    assert (route["methods"], route["paths"]) == (["HEAD"], ["~/claude/api/hello$"])
    code, asked = SERVICES["kong"]["healthcheck"]["test"][-1], []

    class Kong(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Kong) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        here = code.replace("8000", str(server.server_port))
        for status, well in ((200, True), (404, True), (500, False), (503, False)):
            done = subprocess.run([sys.executable, "-c", here], check=False)
            assert (done.returncode == 0) == well, status
        server.shutdown()
    assert asked == ["/claude/api/hello"] * 4
    assert subprocess.run([sys.executable, "-c", here], stderr=subprocess.DEVNULL, check=False).returncode, "nobody"


def test_without_kongs_image_nothing_of_it_is_built() -> None:
    assert {*IN_PLACE_OF_KONG} >= FROM_KONGS_IMAGE
    for name in FROM_KONGS_IMAGE:
        assert IN_PLACE_OF_KONG[name]["image"] == "kong-claude/minikong"
        assert IN_PLACE_OF_KONG[name]["build"]["dockerfile"] == "deploy/docker/minikong.Dockerfile"


def test_the_doctor_has_in_the_images_what_it_reads_configurations_with() -> None:
    """`docker compose exec kong … doctor`, as docs/deploy.md has it."""
    for image in IMAGES:
        if "kong-claude" in image.distributions:
            assert "./plugins[tools]" in image.parts
            assert "pyyaml" in locked(image.lock.read_text())


def test_docker_gives_the_known_addresses_to_no_other_network() -> None:
    """It did after some starts, by turns: "Pool overlaps with other one on this address space"."""
    [named] = COMPOSE["networks"]["edge"]["ipam"]["config"]
    subnet = ipaddress.ip_network(unset(named["subnet"]))
    for pool in ("172.16.0.0/12", "192.168.0.0/16"):  # Docker's own, where nobody has set others
        assert not subnet.overlaps(ipaddress.ip_network(pool))


def unset(text: str) -> str:
    """With no variable set."""
    return re.sub(r"\$\{\w+:-([\d.]+)\}", r"\1", text)


def test_docker_gives_no_address_that_is_believed_by_itself() -> None:
    """It did: the tenth container of the network `edge` had nginx's, whose X-Forwarded-For Kong believes, and then nginx
    did not start."""
    [named] = COMPOSE["networks"]["edge"]["ipam"]["config"]
    given = ipaddress.ip_network(unset(named["ip_range"]))
    believed = unset(SERVICES["kong"]["environment"]["KONG_TRUSTED_IPS"]).split(",")
    own = [
        unset(s["networks"]["edge"]["ipv4_address"])
        for s in SERVICES.values()
        if isinstance(s.get("networks"), dict) and "ipv4_address" in (s["networks"].get("edge") or {})
    ]
    assert {*believed} <= {*own} and len(own) == 3
    for address in (*own, unset(named["gateway"])):
        assert ipaddress.ip_address(address) in ipaddress.ip_network(unset(named["subnet"]))
        assert ipaddress.ip_address(address) not in given
    # Whom oauth2-proxy believes: what is on this machine.
    assert unset(SERVICES["oauth2-proxy"]["command"][-1]) == f"--trusted-proxy-ip={unset(named['gateway'])}"


def test_the_key_of_the_edge_is_left_out_of_git_and_of_images() -> None:
    assert "deploy/nginx/tls/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "deploy/nginx/tls" in (ROOT / ".dockerignore").read_text().splitlines()
