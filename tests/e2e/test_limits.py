"""Limits are changed on a running stack, by the command that an admin has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.audit.log import locked, pairs
from tests.e2e.conftest import COMMAND, ROOT, Gateway, own_environment
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("e2e")
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
PROMPT = {"prompt": "hi", "system": "Be brief."}


@pytest.fixture(scope="module")
def token(gateway: Gateway) -> str:
    made = subprocess.run(
        [COMMAND, "token", "--sub", "root", "--role", "claude:invoke", "--role", "admin"],
        env=own_environment(gateway.home), capture_output=True, text=True, check=True, timeout=HANG_S,
    )  # fmt: skip
    return made.stdout.strip()


def limits(gateway: Gateway, *arguments: str, token: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    more = {"CLAUDE_TOKEN": token, "CLAUDE_GATEWAY_URL": gateway.url, **environment}
    return subprocess.run(
        [COMMAND, "limits", *arguments],
        env=own_environment(gateway.home) | {name: value for name, value in more.items() if value},
        capture_output=True, text=True, check=False, timeout=HANG_S,
    )  # fmt: skip


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def audit_of(gateway: Gateway, until: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """The lines with their details; once there is one of that kind about that subject."""
    directory, deadline = gateway.home / "runs" / "audit", time.monotonic() + HANG_S
    while True:
        with locked(directory, shared=True):
            files = [(each.lines.read_bytes(), each.details.read_bytes()) for each in pairs(directory)]
        rows = [
            json.loads(row) | json.loads(its_details)
            for lines, details in files
            for row, its_details in zip(lines.splitlines(), details.splitlines(), strict=True)
        ]
        if until is None or until in [(row["kind"], row["subject"]) for row in rows]:
            return rows
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)


def invoke(gateway: Gateway, subject: str) -> tuple[int, Mapping[str, Any]]:
    with gateway.client(subject, "--tier", "pro") as client:
        answer = client.post("/claude/invoke", json=PROMPT)
    return answer.status_code, answer.json()


def test_the_stack_of_the_directory_is_found(gateway: Gateway, token: str) -> None:
    """And asked as its admin; a token that is made for it goes to no other gateway."""

    def here(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = own_environment(gateway.home) | more
        command = [COMMAND, "limits", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    done(here("set", "--sub", "here", "minute=7", "--for", "10m", "--why", "a test"))
    assert "minute=7" in done(here("get", "--sub", "here"))
    assert "by local: a test" in done(here("get", "--sub", "here"))
    assert "by local: a test" in done(here("get", "--sub", "here", CLAUDE_TOKEN=token)), "one that is given is taken"
    done(here("reset", "--sub", "here"))
    for refused in (here("get", "--url", gateway.url), here("get", CLAUDE_GATEWAY_URL=gateway.url)):
        assert refused.returncode == 2 and "no token" in refused.stderr
    assert here("get", CLAUDE_TOKEN="of-nobody").returncode == 2


def test_an_admin_changes_explains_and_takes_back_limits_of_a_running_stack(gateway: Gateway, token: str) -> None:
    assert invoke(gateway, "lena")[0] == 200
    said = done(limits(gateway, "set", "--sub", "lena", "minute=1", "--for", "10m", "--why", "a test", token=token))
    assert said.startswith("sub lena: minute=1 until ") and said.endswith("by root: a test\n")
    status, answer = invoke(gateway, "lena")
    assert (status, answer["limit"], answer["allowed"]) == (429, "minute", 1)
    assert invoke(gateway, "otto")[0] == 200

    assert "sub lena" in done(limits(gateway, "get", token=token))
    assert done(limits(gateway, "get", "--sub", "otto", token=token)) == "no changes\n"
    explained = done(limits(gateway, "explain", "--sub", "lena", "--tier", "pro", token=token))
    assert "(configuration: 60): a test" in explained and "binds first: minute" in explained
    told = json.loads(done(limits(gateway, "explain", "--sub", "lena", "--tier", "pro", "--json", token=token)))
    assert told["binds"]["limit"] == "minute" and told["binds"]["from"]["by"] == "root"

    done(limits(gateway, "set", "--sub", "lena", "blocked=true", "--why", "left us", token=token))
    status, answer = invoke(gateway, "lena")
    assert status == 403 and answer["limit"] == "blocked" and "left us" not in str(answer)
    assert done(limits(gateway, "reset", "--sub", "lena", token=token)) == "reset: sub lena\n"
    assert invoke(gateway, "lena")[0] == 200

    # The invoker has written it down: each change, and each run with what it cost.
    kinds = [(row["kind"], row["actor"], row["subject"]) for row in audit_of(gateway, until=("limits.reset", "lena"))]
    assert kinds.count(("limits.change", "root", "lena")) == 2 and ("run.start", "lena", "lena") in kinds
    (change, *_) = [row for row in audit_of(gateway) if row["kind"] == "limits.change" and row["subject"] == "lena"]
    assert change["details"]["after"]["limits"] == {"minute": 1} and change["details"]["why"] == "a test"
    ends = [row["details"] for row in audit_of(gateway) if row["kind"] == "run.end" and row["actor"] == "lena"]
    assert ends[0]["end"] == "succeeded" and ends[0]["cost_usd"] > 0 and ends[0]["tier"] == "pro"
    assert ends[0]["isolation"] and ends[0]["model"]


def test_the_documents_commands_do_what_they_say(gateway: Gateway, token: str) -> None:
    """The block of docs/rate-tiers.md, as it stands there, with this gateway and this token."""
    (block,) = [found for found in SHELL.findall((ROOT / "docs/rate-tiers.md").read_text()) if "limits set" in found]
    commands = [line for line in block.splitlines() if line.startswith("kong-claude limits")]
    assert len(commands) == 6 and len(commands) + 2 == len(block.splitlines())
    more = {"CLAUDE_TOKEN": token, "CLAUDE_GATEWAY_URL": gateway.url}
    path = {"PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}"}
    said = subprocess.run(
        ["sh", "-ec", "\n".join(commands)], env=own_environment(gateway.home) | more | path,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "tier free: concurrent=2" in said.stdout and "binds first:" in said.stdout
    assert said.stdout.endswith("reset: sub alice\n")
    for target in (("--tier", "free"), ("--sub", "bob")):
        done(limits(gateway, "reset", *target, token=token))


def test_the_command_says_what_is_missing(gateway: Gateway, token: str, tmp_path: Any) -> None:
    nobody = limits(gateway, "get")
    assert nobody.returncode == 2 and "CLAUDE_TOKEN" in nobody.stderr
    made = subprocess.run(
        [COMMAND, "token", "--sub", "lena"], env=own_environment(gateway.home), capture_output=True, text=True,
        check=True, timeout=HANG_S,
    )  # fmt: skip
    other = limits(gateway, "get", token=made.stdout.strip())
    assert other.returncode == 2 and "403: this needs the role admin" in other.stderr
    # Beside the role that the rules demand (docs/rate-tiers.md).
    alone = limits(gateway, "get", token=gateway.token("lena", "--role", "admin"))
    assert alone.returncode == 2 and "403: roles must hold one of: claude:invoke" in alone.stderr
    wrong = limits(gateway, "set", "--sub", "lena", "minutes=1", "--why", "x", token=token)
    assert wrong.returncode == 2 and "422: limits.minutes: is no limit" in wrong.stderr
    away = limits(gateway, "get", token=token, CLAUDE_GATEWAY_URL="http://127.0.0.1:9")
    assert away.returncode == 2 and "does not answer" in away.stderr and token not in away.stderr
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(0o644)
    open_to_all = limits(gateway, "get", "--token-file", str(file))
    assert open_to_all.returncode == 2 and "chmod" in open_to_all.stderr
    file.chmod(0o600)
    assert limits(gateway, "get", "--token-file", str(file)).returncode == 0
