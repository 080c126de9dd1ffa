"""The end-to-end scenarios against the compose stack, and what only containers can show."""

from __future__ import annotations

import re
import shlex
import threading
import time

import pytest

from tests.deploy.test_secrets import FILES
from tests.docker.conftest import MINIKONG, ROOT, ComposeGateway
from tests.e2e.conftest import knocking
from tests.e2e.test_main_path import (  # noqa: F401  (the same scenarios, another gateway)
    PROMPT,
    test_a_job_is_accepted_and_done,
    test_a_killed_plugin_server_lets_nobody_in,
    test_a_prompt_is_answered_and_carries_the_gateways_words,
    test_events_arrive_one_by_one,
    test_limits_are_reported,
    test_metrics_show_what_happened,
    test_over_the_limit,
    test_refusals,
    test_the_repository_may_stand_in_the_path,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def test_only_kong_publishes_a_port(gateway: ComposeGateway) -> None:
    for service in ("redis", "invoker", "worker", "standin"):
        assert "->" not in gateway.run("ps", "--format", "{{.Ports}}", service)
    published = gateway.run("ps", "--format", "{{.Ports}}", "kong")
    assert re.search(r"127\.0\.0\.1:\d+->8000", published)


def test_secrets_are_random_and_not_in_any_environment_of_the_image(gateway: ComposeGateway) -> None:
    secret = gateway.run("exec", "-T", "invoker", "cat", "/secrets/webhook-secret").strip()
    assert len(secret) > 40
    assert secret not in gateway.run("config")


def test_the_doctor_finds_no_hole_from_kongs_own_container(gateway: ComposeGateway) -> None:
    doctor = ("with-secrets", "kong-claude", "doctor", "--admin-url", "http://127.0.0.1:8001")
    assert gateway.run("exec", "-T", "kong", *doctor) == ""


def test_what_to_do_when_something_happens_is_done_in_containers(gateway: ComposeGateway) -> None:
    """By the commands that docs/audit.md and docs/incidents.md show."""
    found = re.findall(
        "`docker compose exec ([^`]+)`",
        "".join((ROOT / f"docs/{name}.md").read_text() for name in ("audit", "incidents")),
    )
    spent, revoked = sorted(found)
    with gateway.client("spender", "--tier", "pro") as client:
        assert client.post("/claude/invoke", json=PROMPT).status_code == 200
    assert "spender" in gateway.run("exec", "-T", *shlex.split(spent))
    assert gateway.run("exec", "-T", *shlex.split(revoked)) == "1\n"
    assert gateway.run("exec", "-T", *shlex.split(revoked.replace("SADD", "SREM"))) == "1\n"


@pytest.mark.parametrize("service", ["invoker", "worker"])
def test_where_tools_run_there_is_nothing_that_signs(gateway: ComposeGateway, service: str) -> None:
    listed = gateway.run("exec", "-T", service, "sh", "-c", "stat -c '%a %u %n' /secrets/*")
    assert set(listed.split("\n")) - {""} == {f"400 0 /secrets/{name}" for name in FILES["invoker"]}


@pytest.mark.parametrize("service", ["invoker", "worker"])
@pytest.mark.parametrize("address", ["kong:8001", "kong:8109", "kong:8002", "pluginserver:8109", "prometheus:9090"])
def test_where_tools_run_neither_admin_api_nor_metrics_are_reached(
    gateway: ComposeGateway, service: str, address: str
) -> None:
    code = (
        "import socket, sys\nhost, port = sys.argv[1].split(':')\n"
        "try: socket.create_connection((host, int(port)), 5); print('reached')\n"
        "except OSError: print('not reached')"
    )

    def ask(address: str) -> str:
        return gateway.run("exec", "-T", service, "python", "-c", code, address).strip()

    assert ask("redis:6379") == "reached"
    assert ask(address) == "not reached"


def test_the_invoker_cannot_be_asked_from_beside(gateway: ComposeGateway) -> None:
    code = (
        "import urllib.request as u, urllib.error as e\n"
        "try: u.urlopen(u.Request('http://invoker:8100/invoke', b'{}', {'Content-Type': 'application/json'})); print(200)\n"
        "except e.HTTPError as x: print(x.code)"
    )
    assert gateway.run("exec", "-T", "worker", "python", "-c", code).strip() == "401"


def test_redis_paused_refuses_and_recovers(gateway: ComposeGateway) -> None:
    with gateway.client("paused", "--tier", "pro") as client:
        gateway.run("pause", "redis")
        try:
            assert client.post("/claude/invoke", json=PROMPT).status_code == 503
        finally:
            gateway.run("unpause", "redis")
        deadline = time.monotonic() + 60
        while client.post("/claude/invoke", json=PROMPT).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(1)


def test_an_invoker_restarted_amid_a_stream_ends_the_stream(gateway: ComposeGateway) -> None:
    with gateway.client("restarted", "--tier", "pro") as client:
        body = {"prompt": "slow: a long story"}
        restart = threading.Thread(target=lambda: gateway.run("restart", "-t", "5", "invoker"))
        ended = ""
        try:
            with client.stream("POST", "/claude/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
                for line in answer.iter_lines():
                    if not restart.ident and "content_block_delta" in line:
                        restart.start()
                    ended = line or ended
        except Exception as error:
            ended = type(error).__name__
        restart.join(60)
        assert ended
        deadline = time.monotonic() + 60
        while client.post("/claude/invoke", json=PROMPT).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(1)


@pytest.mark.skipif(MINIKONG, reason="minikong has no `kong reload`")
def test_kong_reload_under_load_lets_nobody_in(gateway: ComposeGateway) -> None:
    with knocking(gateway) as answered:
        for _ in range(2):
            gateway.run("exec", "-T", "kong", "kong", "reload")
            time.sleep(5)
    assert set(answered) <= {401, 500, 503}, set(answered)
    assert 401 in answered[-20:]
