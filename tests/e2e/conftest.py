"""The whole stack, once per run: real plugin server, Redis, CLI; minikong stands for Kong, or with KONG=… Kong for itself."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kong_claude_local import token as tokens
from tests.support.git_server import GitServer, serving
from tests.support.ports import free_port as free_port
from tests.support.ssh_server import SSHD, SshServer, ssh_serving
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).parent / "kong-claude")
# What must not leak into a stack under test.
FOREIGN = ("ANTHROPIC_", "CLAUDE", "KONG_", "INVOKER_", "REDIS_URL")
_IN_ONE_HOME = threading.Lock()
PASSWORD = "s3cret-of-the-git-server"


def own_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"KONG_CLAUDE_HOME": str(home)}


@dataclass
class Gateway:
    """What a scenario needs of a stack, whichever gateway runs it."""

    url: str
    invoker: str
    home: Path
    pid: int

    def token(self, subject: str = "alice", *options: str) -> str:
        """As `kong-claude token` makes it, without a process of half a second for each."""
        parser = argparse.ArgumentParser()
        tokens.arguments(parser)
        given = parser.parse_args(["--sub", subject, *options])
        roles = [] if given.no_role else given.role or ["claude:invoke"]
        with _IN_ONE_HOME, pytest.MonkeyPatch.context() as patch:
            patch.setenv("KONG_CLAUDE_HOME", str(self.home))
            patch.delenv("CLAUDE_JWT_SECRET", raising=False)
            return tokens.make(given.sub, given.tier, roles, given.ttl, tokens.claims(given.claim))

    def client(self, subject: str | None = None, *options: str, timeout: float = 60) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token(subject, *options)}"} if subject else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def record(self) -> list[dict[str, Any]]:
        """What reached the stand-in of the Messages API."""
        path = self.home / "standin.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self, word: str) -> list[psutil.Process]:
        """The stack's own processes whose command line has `word`."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def knocking(gateway: Gateway, clients: int = 4) -> Iterator[list[int]]:
    """Clients without a token ask without pause; yields the list in which their answers' statuses gather."""
    answered: list[int] = []
    stop = threading.Event()

    def knock() -> None:
        with gateway.client() as nobody:
            while not stop.is_set():
                try:
                    answered.append(nobody.post("/claude/invoke", json={"prompt": "hi"}).status_code)
                except httpx.TransportError:  # a connection that the gateway closed: no answer, and not the end
                    continue

    threads = [threading.Thread(target=knock) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG_S)


def gateway_option() -> list[str]:
    """As `make test-kong` runs these: on the Kong that the variable KONG names."""
    return ["--kong", os.environ["KONG"]] if os.environ.get("KONG") else []


def up(
    home: Path, port: int, *options: str, config: Path = ROOT / "kong.yml", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "up", "--detach", "--port", str(port), "--config", str(config), *gateway_option(), *options]
    own = own_environment(home) | environment
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=110, check=False)


@contextmanager
def standing(home: Path, *options: str, config: Path = ROOT / "kong.yml", **environment: str) -> Iterator[Gateway]:
    """A stack of its own, as long as the block runs."""
    started = up(home, free_port(), *options, config=config, **environment)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        running = json.loads((home / "stack.json").read_text())
        yield Gateway(running["proxy"], running["invoker"], home, running["pid"])
    finally:
        subprocess.run([COMMAND, "down"], env=own_environment(home), check=True, timeout=HANG_S)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with standing(tmp_path_factory.mktemp("stack")) as found:
        yield found


# What tests/e2e/test_workspace.py says of repositories, and others that need some.


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving(tmp_path_factory.mktemp("git"), PASSWORD) as server:
        server.create("org/app")
        server.create("other/app")
        server.commit("other/app", {"a.txt": "x"})
        yield server


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer | None]:
    """OpenSSH, for the repositories of the same folder; None where it is not installed."""
    if not (Path(SSHD).exists() and shutil.which("ssh")):
        yield None
        return
    with ssh_serving(tmp_path_factory.mktemp("ssh") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def stack(served: GitServer, ssh: SshServer | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """As kong.yml and docs/workspace.md say it: the claim at the gateway, the file at the invoker."""
    home = tmp_path_factory.mktemp("stack")
    text = (ROOT / "kong.yml").read_text()
    rules = "      rules: [{claim: roles, any_of: ["
    assert text.count(rules) == 1
    (home / "kong.yml").write_text(text.replace(rules, "      repo_claim: repos\n      push_claim: pushes\n" + rules))
    (home / "token").write_text(PASSWORD)
    (home / "token").chmod(0o400)
    policy = (
        '  refs: [main, "feature/*"]\n  refresh_s: 0\n'
        "  push: {branches: claude/*, author: Claude <claude@example.com>}\n"
    )
    by_http = f'"**":\n  url: "{served.url}/{{repository}}.git"\n  token_file: {home}/token\n'
    known = {"INVOKER_REPOSITORIES": str(home / "repositories.yml")}
    by_ssh = ""
    if ssh is not None:
        by_ssh = f'"org/ssh-*":\n  url: "{ssh.url}{served.root}/{{repository}}.git"\n'
        by_ssh += f"  key_file: {ssh.key}\n  known_hosts: {ssh.known_hosts}\n{policy}"
        # git's own user, two above: it has to have a name.
        known["INVOKER_UID_BASE"] = str(pwd.getpwnam("nobody").pw_uid - 2)
    (home / "repositories.yml").write_text(f"{by_ssh}{by_http}{policy}")
    with standing(home, config=home / "kong.yml", **known) as found:
        yield found
