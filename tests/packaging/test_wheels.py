"""Each wheel alone in an environment of its own: it brings what it says, does what its README says, and what is not
there is one sentence. All of them together run the stack.

The environments share this one's libraries by name, as wheels from the index would: only the five of this repository are
installed anew, without their dependencies, and a path file lends the libraries that the wheel itself declares.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import distribution, requires
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from tests.invoker.conftest import wait_for
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("wheels")  # they are built once
ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "contract": ("kong-claude-contract", "claude_contract"),
    "plugins": ("kong-claude", "kong_claude"),
    "invoker": ("claude-invoker", "claude_invoker"),
    "minikong": ("minikong", "minikong"),
    "local": ("kong-claude-local", "kong_claude_local"),
}
OURS = {name for name, _ in PARTS.values()}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution name → its wheel, built as `make wheels` does."""
    folder = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*build, *(f"./{part}" for part in PARTS)], cwd=ROOT, check=True)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert found.keys() == OURS
    return found


class Environment:
    """A fresh venv with some of our wheels and what they need, nothing else."""

    def __init__(self, folder: Path, wheels: dict[str, Path], *wanted: str) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        site = next((folder / "lib").glob("python*/site-packages"))
        names: set[str] = set()
        for text in wanted:
            needed(Requirement(text), names)
        for name in names & OURS:
            pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, str(wheels[name])], check=True)
        for name in names - OURS:
            lend(name, site)

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """In a directory where nothing of the checkout lies."""
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.bin.parent)}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            env=environment,
            cwd=self.bin.parent,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )


def needed(requirement: Requirement, into: set[str]) -> None:
    """The names of all that a requirement needs, by what is installed here."""
    name = requirement.name.lower().replace("_", "-")
    for text in requires(name) or ():
        found = Requirement(text)
        extras = requirement.extras or {""}
        wanted = found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and (found.name.lower().replace("_", "-") not in into or found.extras):
            into.add(name)
            needed(found, into)
    into.add(name)


def lend(name: str, site: Path) -> None:
    """Links a library of this environment into another."""
    for file in distribution(name).files or ():
        top = file.parts[0]
        source = Path(sysconfig.get_paths()["purelib"]) / top
        if top in ("..", "__pycache__") or (site / top).exists() or not source.exists():
            continue
        (site / top).symlink_to(source)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "env"
    shutil.rmtree(tmp_path / "env", ignore_errors=True)


def test_what_is_in_the_wheels(wheels: dict[str, Path]) -> None:
    for name, package in PARTS.values():
        with zipfile.ZipFile(wheels[name]) as wheel:
            files = wheel.namelist()
            (metadata,) = [file for file in files if file.endswith(".dist-info/METADATA")]
            head = Parser().parsestr(wheel.read(metadata).decode())
        assert f"{package}/py.typed" in files
        assert {file.partition("/")[0] for file in files} == {package, metadata.partition("/")[0]}, "one package each"
        assert any("licenses/LICENSE" in file for file in files)
        assert head["Author"] and head["Summary"] and head.get_all("Classifier") and head.get_payload()
        pins = [text for text in head.get_all("Requires-Dist") or () if Requirement(text).name in OURS]
        assert all(re.search(r"==\d", text) for text in pins), "of ours exactly this version"
    with zipfile.ZipFile(wheels["kong-claude"]) as wheel:
        names = wheel.namelist()
    assert sum(name.startswith("kong_claude/kong_plugins/claude-") for name in names) == 5


def test_there_is_one_version(wheels: dict[str, Path]) -> None:
    assert len({path.name.split("-")[1] for path in wheels.values()}) == 1
    changes = (ROOT / "CHANGELOG.md").read_text()
    (number,) = {path.name.split("-")[1] for path in wheels.values()}
    assert f"## {number}\n" in changes


def test_the_contract_alone(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "kong-claude-contract")
    code = "import claude_contract.attestation, claude_contract.ledger, claude_contract.compose, sys\n"
    code += "print([m for m in ('gevent', 'fastapi', 'kong_pdk', 'kong_claude') if m in sys.modules])"
    done = environment.run("python", "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_plugins_alone(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "kong-claude")
    dumped = environment.run("kong-claude-pluginserver", "--dump", "claude-jwt-claims")
    assert '"Name":"claude-jwt-claims"' in dumped.stdout.replace(" ", ""), dumped.stderr
    assert "post-function" in environment.run("kong-claude", "guard").stdout
    pattern = environment.run("kong-claude", "guard", "--lua-path").stdout.strip().removesuffix(";;")
    assert Path(pattern.replace("?", "kong/plugins/claude-guard/handler")).is_file()
    for command, said in {
        "doctor": "yaml is missing: pip install 'kong-claude[tools]'",
        "report": "pip install 'kong-claude[report]'",
        "up": "up is not part of this installation: pip install 'kong-claude-local[stack]'",
        "token": "pip install kong-claude-local",
        "worker": "claude-invoker worker",
    }.items():
        (folder / "log").write_text("")
        done = environment.run("kong-claude", command, *(["log"] if command == "report" else []))
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), f"{command}: {done.stderr}"
        assert said in done.stderr
    for module in ("claude_invoker", "minikong"):
        assert environment.run("python", "-c", f"import {module}").returncode != 0


@pytest.mark.slow
def test_the_plugins_with_their_tools(folder: Path, wheels: dict[str, Path]) -> None:
    """The doctor from a wheel tries what it finds; nothing is silently left out."""
    environment = Environment(folder, wheels, "kong-claude[tools]")
    (folder / "kong.yml").write_text(
        '_format_version: "3.0"\nservices:\n- name: a\n  url: http://a:1\n  routes:\n  - name: r\n    paths: [/r]\n'
        "    plugins:\n    - {name: claude-jwt-claims, config: {issuers: [{issuer: x, algorithms: [none]}]}}\n"
    )
    done = environment.run("kong-claude", "doctor", "kong.yml")
    assert done.returncode == 1, done.stderr
    assert "bad-config: plugin claude-jwt-claims" in done.stdout
    assert "unchecked" not in done.stdout


@pytest.mark.slow
def test_the_invoker_alone(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "claude-invoker")
    assert "INVOKER_" in environment.run("claude-invoker", "--help").stdout
    assert "INVOKER_REDIS_URL is not set" in environment.run("claude-invoker", "worker").stderr
    assert "INVOKER_ATTESTATION_KEY is not set" in environment.run("claude-invoker").stderr
    for module in ("gevent", "kong_pdk", "kong_claude"):
        assert environment.run("python", "-c", f"import {module}").returncode != 0, (
            f"{module} is in the invoker's image"
        )


@pytest.mark.slow
def test_minikong_alone(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "minikong", "pytest", "kong-pdk")
    assert "minikong" in environment.run("minikong", "--help").stdout
    fixtures = environment.run(
        "python", "-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider", str(folder / "bin")
    )
    assert "minikong" in fixtures.stdout, "the fixture comes with the wheel"
    assert environment.run("python", "-c", "import kong_claude").returncode != 0


@pytest.mark.slow
def test_the_local_tools_alone(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "kong-claude-local")
    assert environment.run("kong-claude", "token", "--sub", "alice").stdout.count(".") == 2
    (folder / "kong.yml").write_text('_format_version: "3.0"\n')
    done = environment.run("kong-claude", "up")
    assert done.returncode == 2
    assert "is not installed: pip install 'kong-claude-local[stack]'" in done.stderr
    assert "--record" in environment.run("python", "-m", "kong_claude_local.standin", "--help").stdout


@pytest.mark.slow
def test_all_together_run_the_stack(folder: Path, wheels: dict[str, Path]) -> None:
    environment = Environment(folder, wheels, "kong-claude-local[stack]")
    for name in ("kong.yml",):
        shutil.copy(ROOT / name, folder / name)
    port = str(20_000 + os.getpid() % 5_000)
    try:
        up = environment.run("kong-claude", "up", "--detach", "--port", port)
        assert up.returncode == 0, up.stdout + up.stderr
        asked = environment.run("kong-claude", "invoke", "hi")
        assert "canned answer" in asked.stdout, asked.stderr
        assert environment.run("kong-claude", "status").returncode == 0
    finally:
        environment.run("kong-claude", "down")


@pytest.mark.slow
def test_the_kong_block_of_the_readme_as_it_stands(folder: Path, wheels: dict[str, Path]) -> None:
    """Its commands in a shell that knows nothing, with a `kong` that is minikong, or the real one that KONG names."""
    Environment(folder, wheels, "kong-claude[tools]")
    text = (ROOT / "README.md").read_text().partition("## One plugin on one route of your Kong")[2]
    _, script = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[:2]
    (routes,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for shown, here in (("/opt/kong-claude", str(folder)), (" env ", f" env --prefix {folder} ")):
        assert shown in script
        script = script.replace(shown, here)
    config = {
        "_format_version": "3.0",
        "services": [{"name": "reports", "url": "http://127.0.0.1:1", **yaml.safe_load(routes)}],
    }
    (folder / "kong.yml").write_text(yaml.safe_dump(config))
    real = os.environ.get("KONG")
    kong = folder / "bin" / "kong"
    kong.write_text(f"#!/bin/sh\nexec {real} start\n" if real else f"#!/bin/sh\nexec {sys.executable} -m minikong\n")
    kong.chmod(0o755)
    port = 25_000 + os.getpid() % 5_000
    prefix = folder / "prefix"
    prefix.mkdir()
    settings = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "KONG_DATABASE": "off",
        "KONG_DECLARATIVE_CONFIG": str(folder / "kong.yml"),
        "KONG_PROXY_LISTEN": f"127.0.0.1:{port}",
        "KONG_ADMIN_LISTEN": "off",
        "KONG_PREFIX": str(prefix),
        "KONG_NGINX_DAEMON": "off",
        "KONG_NGINX_USER": "root root",  # nobody could not read what pytest made; without meaning where we are not root
    }
    command = ["sh", "-eu", "-c", script]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, env=settings, stderr=log, stdout=log, start_new_session=True)
    try:
        wait_for(lambda: status(port) == 401, what=f"401 without a token ({folder / 'log'})")
        servers = subprocess.run(
            ["pgrep", "-f", f"{folder}/bin/kong-claude-pluginserver"], capture_output=True, text=True, check=True
        ).stdout.split()
        for server in servers:
            os.kill(int(server), signal.SIGSTOP)
        try:
            assert status(port) == 503, "nobody looked at it: the guard"
        finally:
            for server in servers:
                os.kill(int(server), signal.SIGKILL)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(HANG_S)


def status(port: int) -> int | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/reports", timeout=HANG_S).status_code
    except httpx.HTTPError:
        return None
