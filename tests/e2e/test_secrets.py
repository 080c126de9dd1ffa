"""What a Bash tool of a run learns of the house's secrets: nothing. Each attack has its control, where it succeeds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from claude_contract.attestation import HEADER, Signer, parse_pem
from claude_contract.claims import body_hash
from kong_claude import PLUGINS
from minikong.entities import PluginEntity
from tests.e2e.conftest import COMMAND, ROOT, Gateway, free_port, own_environment, up
from tests.support.attest import signed
from tests.support.processes import command_line
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs have users of their own only where the stack runs as root")


def bash(gateway: Gateway, command: str) -> str:
    """A caller of tier team, no admin, lets the CLI's Bash tool run a command; what it printed."""
    with gateway.client("nosy", "--tier", "team") as client:
        body = {"prompt": f"[[tool Bash {json.dumps({'command': command})}]]", "model": "haiku", "tools": ["Bash"]}
        answer = client.post("/claude/invoke", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"])


def as_a_run(command: str) -> str:
    """What it prints with a user id of its own and nothing else around it, which is what a run has at least."""
    uid = 990_000 + os.getpid() % 9_000
    arguments = ["/bin/bash", "-c", command]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        arguments, user=uid, group=uid, extra_groups=(), env=environment, cwd="/", capture_output=True, timeout=HANG_S
    )
    return (done.stdout + done.stderr).decode()


# Asks every listener of an address, and every unix socket of a directory, for Kong's plugins; prints the values of
# `secret` that it is told. /proc/net is open to every user.
ATTACK = r"""
import pathlib, re, socket, struct
def told(family, where):
    with socket.socket(family) as s:
        s.settimeout(5)
        s.connect(where)
        s.sendall(b"GET /plugins HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = b""
        while piece := s.recv(65536):
            text += piece
        return set(re.findall(r'"secret":"([^"]*)"', text.decode("utf-8", "replace")))
targets = []
for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
    local, state = line.split()[1], line.split()[3]
    host = socket.inet_ntoa(struct.pack("<I", int(local[:8], 16)))
    if state == "0A" and host == ADDRESS:
        targets.append((socket.AF_INET, (host, int(local[9:], 16))))
for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]:
    path = line.split()[-1]
    if path.startswith(DIRECTORY + "/"):
        targets.append((socket.AF_UNIX, path))
found = set()
for family, where in targets:
    try:
        found |= told(family, where)
    except OSError as error:
        print("refused", where, error)
print("asked", len(targets))
for secret in found:
    print("learned", secret)
"""


def attack(address: str, directory: str) -> str:
    script = ATTACK.replace("ADDRESS", repr(address)).replace("DIRECTORY", repr(directory))
    return f"id -u; /usr/bin/python3 - <<'ATTACK'\n{script}ATTACK"


def learned(address: str, directory: str) -> tuple[int, set[str]]:
    """How many listeners a process with a run's user id found, and the secrets that they told it."""
    printed = as_a_run(attack(address, directory))
    asked = re.search(r"^asked (\d+)", printed, re.MULTILINE)
    assert asked, printed
    return int(asked[1]), set(re.findall(r"^learned (.*)", printed, re.MULTILINE))


@as_root
def test_a_tool_learns_nothing_from_the_admin_api(gateway: Gateway) -> None:
    running = json.loads((gateway.home / "stack.json").read_text())
    admin = Path(running["admin"].removeprefix("unix:"))
    assert admin.is_socket()
    where = str(urlsplit(running["invoker"]).hostname), str(admin.parent)
    asked, secrets = learned(*where)
    assert secrets == set()
    # It did look: at the sockets of Redis, plugin server and Admin API, at the ports of invoker, stand-in and metrics.
    assert asked >= 6
    # The tool itself, with whatever else surrounds runs here.
    assert "learned" not in bash(gateway, attack(*where))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    # Not one of pytest's directories: those are closed to the users that runs have.
    path = Path(tempfile.mkdtemp(prefix="kc-open-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@as_root
@pytest.mark.parametrize(
    ("listen", "mode", "resolved", "learns"),
    [
        ("tcp", None, True, "secret"),  # as it was
        ("tcp", None, False, "reference"),
        ("unix", 0o666, True, "secret"),
        ("unix", None, True, "nothing"),
    ],
    ids=["control-port-and-values", "port-and-references", "control-socket-for-all", "socket-of-its-owner"],
)
def test_the_same_attack_on_a_gateway_without_a_defence(
    gateway: Gateway,
    minikong: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    open_directory: Path,
    listen: str,
    mode: int | None,
    resolved: bool,
    learns: str,
) -> None:
    """Each of the two defences holds alone, and without both the tool learns what signs the tokens."""
    secret = (gateway.home / "jwt-secret").read_text().strip()
    monkeypatch.setenv("CLAUDE_JWT_SECRET", secret)
    if resolved:
        shown = PluginEntity.as_pdk
        monkeypatch.setattr(PluginEntity, "as_pdk", lambda self: shown(self) | {"config": self.config})
    address = f"127.9.{free_port() >> 8}.9"
    socket = open_directory / "admin.sock"
    reference = "{vault://env/claude-jwt-secret}"
    config = {
        "_format_version": "3.0",
        "consumers": [{"username": "a"}],
        "plugins": [
            {
                "name": "claude-jwt-claims",
                "config": {
                    "issuers": [{"issuer": "i", "algorithms": ["HS256"], "secret": reference}],
                    "audience": ["a"],
                },
            }
        ],
    }
    minikong(
        json.dumps(config),
        plugins=PLUGINS,
        admin_listen=f"{address}:0" if listen == "tcp" else f"unix:{socket}",
    )
    if mode is not None:
        socket.chmod(mode)
    asked, found = learned(address, str(open_directory))
    assert asked == 1
    # Beside a resolved value stands its reference, in "$refs".
    assert found == {"secret": {secret, reference}, "reference": {reference}, "nothing": set()}[learns]


SECRETS = (
    "kong/jwt-secret",
    "kong/attestation-key",
    "kong/redis-url",
    "redis/redis-password",
    "redis/redis.conf",
    "redis-runs/redis-password",
    "redis-runs/redis.conf",
    "invoker/webhook-secret",
    "invoker/redis-url",
    "invoker/runs-redis-url",
    "invoker/attestation-public-key",
    "tools/jwt-secret",
)


@as_root
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_tool_reads_none_of_the_secrets_that_the_shipped_script_makes(gateway: Gateway, open_directory: Path) -> None:
    """deploy/docker/make-secrets.sh for real; the control opens what it made, as it was once."""
    subprocess.run(
        ["sh", str(ROOT / "deploy/docker/make-secrets.sh")],
        env=dict(os.environ) | {"SECRETS_DIR": str(open_directory)},
        check=True,
        timeout=HANG_S,
    )
    made = {str(path.relative_to(open_directory)) for path in open_directory.rglob("*") if path.is_file()}
    assert made == set(SECRETS)

    def read(run: Callable[[str], str]) -> set[str]:
        printed = run(f"cd {open_directory}; for f in {' '.join(SECRETS)}; do echo $f $(sha256sum < $f); done")
        hashes = {name: subprocess.check_output(["sha256sum", str(open_directory / name)]).split()[0] for name in made}
        return {name for name in made if f"{name} {hashes[name].decode()}" in printed}

    assert read(as_a_run) == set()
    for path in open_directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    assert read(as_a_run) == made
    if httpx.get(f"{gateway.invoker}/readyz").json()["checks"]["isolation"] in ("landlock", "namespaces"):
        assert read(lambda command: bash(gateway, command)) == set(), "the boundary holds where the files do not"


@as_root
def test_a_tool_reads_nothing_of_the_state_directory(gateway: Gateway) -> None:
    home = gateway.home
    printed = bash(gateway, f"cat {home}/* 2>&1; ls {home} 2>&1; echo done")
    assert "done" in printed
    for name in ("jwt-secret", "attestation-key", "webhook-secret"):
        assert (home / name).read_text().split()[-1] not in printed
        assert (home / name).stat().st_mode & 0o077 == 0


def test_the_invoker_holds_nothing_that_signs(gateway: Gateway) -> None:
    """Whoever takes the invoker over verifies attestations, and makes none."""
    (invoker,) = [p for p in gateway.processes("claude_invoker") if "kong_claude_local.standin" not in command_line(p)][
        :1
    ]
    held = "\n".join(psutil.Process(invoker.pid).environ().values())
    private = (gateway.home / "attestation-key").read_text()
    assert "BEGIN PUBLIC KEY" in held
    assert "PRIVATE" not in held
    for secret in ("".join(private.splitlines()[1:-1]), (gateway.home / "jwt-secret").read_text().strip()):
        assert secret not in held
    public = psutil.Process(invoker.pid).environ()["INVOKER_ATTESTATION_KEY"]

    def ask(key: Any) -> int:
        signer = Signer("1", key, {"1": key})
        body = b'{"prompt": "hi"}'
        claims: dict[str, Any] = {"sub": "mallory", "chk": ["jwt-claims", "rate-tiers"], "bsh": body_hash(body)}
        header = signed(signer, "POST", "/claude/invoke", **claims)
        headers = {HEADER: header, "Content-Type": "application/json"}
        return httpx.post(f"{gateway.invoker}/claude/invoke", content=body, headers=headers, timeout=HANG_S).status_code

    assert ask(public.encode()) == 401
    assert ask(parse_pem(private, "control")) == 200  # the control: with the gateway's key it is believed


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="kc-home-"))
    yield path
    subprocess.run([COMMAND, "down"], env=own_environment(path), check=True, timeout=HANG_S)
    shutil.rmtree(path)


@pytest.mark.parametrize("signs_with", ["key", pytest.param("shared-secret", marks=pytest.mark.slow)])
def test_a_state_directory_of_before_still_starts(home: Path, signs_with: str) -> None:
    """With its shared secret lying there: unused by today's kong.yml, used by one of before."""
    (home / "attestation-secret").write_text("q8Zr1xJ0f7VbN3kLw5TgYh2MdC9sEaPu\n")
    (home / "attestation-secret").chmod(0o600)
    config = home / "kong.yml"
    text = (ROOT / "kong.yml").read_text()
    if signs_with == "shared-secret":
        new, old = (
            'private_key: "{vault://env/claude-attestation-key}"',
            'secret: "{vault://env/claude-attestation-secret}"',
        )
        assert new in text
        text = text.replace(new, old)
    config.write_text(text)
    started = up(home, free_port(), "--plugins-directory", str(PLUGINS), config=config)
    assert started.returncode == 0, started.stdout + started.stderr
    assert ("signs attestations with a secret" in started.stdout) is (signs_with == "shared-secret")
    said = subprocess.run(
        [COMMAND, "invoke", "[[say believed]]"],
        env=own_environment(home),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert (said.returncode, said.stdout.strip()) == (0, "believed"), said.stderr


def test_a_state_directory_with_an_open_secret_does_not_start(home: Path) -> None:
    (home / "jwt-secret").write_text("s" * 40)
    (home / "jwt-secret").chmod(0o644)
    refused = up(home, free_port())
    assert refused.returncode == 2
    assert f"chmod 0400 {home / 'jwt-secret'}" in refused.stderr
    assert refused.stderr.count("\n") == 1
