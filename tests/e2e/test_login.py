"""A person logs in at an authorization server of Authlib's, and Claude Code asks `kong-claude` for tokens: `docs/clients.md`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_invoker.cli.binary import find_cli
from tests.e2e.conftest import COMMAND, ROOT, Gateway, standing
from tests.identity.test_pages import BLOCK
from tests.invoker.conftest import tool
from tests.support import oauth
from tests.support.oauth import CLIENT, Issuer
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("e2e")
HAIKU = "claude-haiku-4-5"
DOCUMENT = (ROOT / "docs" / "clients.md").read_text()
TTL_S = 8
ISSUERS = """
issuers:
- {issuer: "ISSUER", algorithms: [ES256], discovery: true, allow_insecure_jwks: true}
leeway: 0
audience: [claude-code]
rules: [{claim: roles, any_of: ["claude:invoke"]}]
"""


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with oauth.running() as found:
        yield found


@pytest.fixture(scope="module")
def trusting(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose tokens are that issuer's."""
    folder = tmp_path_factory.mktemp("trusting")
    block = textwrap.indent(ISSUERS.replace("ISSUER", issuer.url).lstrip(), "      ")
    text, times = BLOCK.subn(lambda _: block, (ROOT / "kong.yml").read_text())
    assert times == 1
    (folder / "kong.yml").write_text(text)
    with standing(folder / "state", config=folder / "kong.yml") as found:
        yield found


@pytest.fixture
def person(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody's shell, with `claude` and `kong-claude` to be had."""
    for name in ("bin", "claude", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "claude").symlink_to(find_cli(None))
    (tmp_path / "bin" / "kong-claude").symlink_to(COMMAND)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"),
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "IS_SANDBOX": "1",
    }


def shown(pattern: str) -> str:
    (found,) = re.findall(pattern, DOCUMENT, re.MULTILINE)
    return str(found)


def logged_in(issuer: Issuer, person: dict[str, str]) -> None:
    command = shown(r"^kong-claude login .*$").replace("https://sso.example.com/realms/acme", issuer.url)
    assert f"--client-id {CLIENT}" in command
    done = subprocess.run(
        ["sh", "-c", command], env=person, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr


def claude(person: dict[str, str], prompt: str) -> dict[str, Any]:
    """What it says at its end."""
    command = ["claude", "--model", HAIKU, "-p", "--output-format", "json", "--dangerously-skip-permissions", prompt]
    work = Path(person["HOME"]) / "work"
    done = subprocess.run(command, env=person, cwd=work, capture_output=True, text=True, timeout=240, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


LONGER_THAN_A_TOKEN = f"{tool('Bash', command=f'sleep {TTL_S + 2}')} [[say Done.]]"


def test_claude_code_goes_on_when_its_token_expires(trusting: Gateway, issuer: Issuer, person: dict[str, str]) -> None:
    issuer.ttl_s = TTL_S
    logged_in(issuer, person)
    settings = shown(r'^\{"apiKeyHelper": .*\}$').replace("https://gateway.example.com", trusting.url)
    (Path(person["CLAUDE_CONFIG_DIR"]) / "settings.json").write_text(settings)
    before = issuer.grants("refresh_token")
    told = claude(person, LONGER_THAN_A_TOKEN)
    assert (told["subtype"], told["is_error"], told["result"]) == ("success", False, "Done.")
    assert told["duration_ms"] > TTL_S * 1000
    assert issuer.grants("refresh_token") > before
    logout = subprocess.run([COMMAND, "logout"], env=person, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert "revoked" in logout.stdout
    # Nobody is asked anything: who is logged out is told what to do.
    helper = subprocess.run(
        [COMMAND, "token", "--helper"], env=person, capture_output=True, text=True, timeout=HANG_S, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (helper.returncode, helper.stdout) == (1, "") and "kong-claude login" in helper.stderr


@pytest.mark.slow
def test_control_a_token_that_nobody_refreshes_ends_it(
    trusting: Gateway, issuer: Issuer, person: dict[str, str]
) -> None:
    issuer.ttl_s = TTL_S
    logged_in(issuer, person)
    token = subprocess.run(
        [COMMAND, "token", "--helper"], env=person, capture_output=True, text=True, timeout=HANG_S, check=True
    ).stdout.strip()
    own = {"ANTHROPIC_BASE_URL": f"{trusting.url}/claude", "ANTHROPIC_AUTH_TOKEN": token}
    told = claude({**person, **own, "CLAUDE_CODE_MAX_RETRIES": "0"}, LONGER_THAN_A_TOKEN)
    assert told["is_error"] and "401" in told["result"]


def test_a_token_of_another_issuer_is_refused(trusting: Gateway, issuer: Issuer, person: dict[str, str]) -> None:
    issuer.ttl_s = 3600
    logged_in(issuer, person)
    good = subprocess.run(
        [COMMAND, "token", "--helper"], env=person, capture_output=True, text=True, timeout=HANG_S, check=True
    ).stdout.strip()
    for token, status in ((good, 200), (trusting.token("alice"), 401)):
        got = httpx.get(f"{trusting.url}/claude/limits", headers={"authorization": f"Bearer {token}"}, timeout=HANG_S)
        assert got.status_code == status, got.text
