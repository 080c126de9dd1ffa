"""An invoker in a container with what docker-compose.yml gives its service: user, capabilities, file systems, options.

The image is Debian's smallest by debootstrap, since no registry may be at hand; this checkout and its Python are mounted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.invoker.conftest import (
    KEY,
    Invoker,
    StandInProcess,
    clean_environment,
    closed_cli,
    free_port,
    user_ids,
    wait_for,
)
from tests.support.processes import gone
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
# What runs need of the machine, as invoker/Dockerfile installs it, and what tests call.
PACKAGES = "bubblewrap,ca-certificates,curl,git,libseccomp2,procps,python3"
HOME = 0o711  # of root's home, where our Python may be, which is mounted: an ordinary user starts it, too
IMAGE = f"kong-claude/escape-test:bookworm-{hashlib.sha256(f'{PACKAGES} {HOME}'.encode()).hexdigest()[:8]}"


def missing() -> str | None:
    """Why no such container can be started here, or None."""
    for program in ("docker", "debootstrap"):
        if shutil.which(program) is None:
            return f"no program {program}"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    return None


def build_image() -> None:
    """About two minutes, once for an engine."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory(prefix="escape-image-") as folder:
        tree = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1200)
        (tree / "root").chmod(HOME)
        packed = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", IMAGE], stdin=packed.stdout, check=True, stdout=subprocess.DEVNULL)
        assert packed.wait() == 0


FILES = {
    "landlock": ("docker-compose.yml",),
    "namespaces": ("docker-compose.yml", "docker-compose.namespaces.yml"),
}
"""Those of compose for each strength that they ask for."""


def service_of_compose(service: str, strength: str) -> dict[str, Any]:
    """As compose puts its files together: what the later one says, lists one behind the other."""
    found: dict[str, Any] = {}
    for file in FILES[strength]:
        for member, value in yaml.safe_load((ROOT / file).read_text())["services"][service].items():
            before = found.get(member)
            if isinstance(value, dict) and isinstance(before, dict):
                found[member] = before | value
            else:
                found[member] = [*before, *value] if isinstance(before, list) else value
    return found


def options_of_compose(strength: str = "landlock", service: str = "invoker") -> list[str]:
    """The service's lines in the files that decide what a process in it may do, as `docker run` takes them."""
    found = service_of_compose(service, strength)
    options = [f"--{name}" for member, name in (("init", "init"), ("read_only", "read-only")) if found.get(member)]
    for member, name in (
        ("user", "user"),
        ("pids_limit", "pids-limit"),
        ("mem_limit", "memory"),
        ("pid", "pid"),
        ("ipc", "ipc"),
        ("userns_mode", "userns"),
        ("privileged", "privileged"),
    ):
        if member in found:
            options.append(f"--{name}={found[member]}")
    for member, name in (
        ("cap_drop", "cap-drop"),
        ("cap_add", "cap-add"),
        ("security_opt", "security-opt"),
        ("tmpfs", "tmpfs"),
        ("group_add", "group-add"),
    ):
        options += [f"--{name}={value}" for value in found.get(member, ())]
    # Compose reads the profile's path from where its file is, docker from where it is called.
    return [option.replace("seccomp=./", f"seccomp={ROOT}/") for option in options]


def with_dockers_own_profile() -> list[str]:
    """The same without ours: the control."""
    return [option for option in options_of_compose() if "seccomp=" not in option]


class Containers:
    """Starts invokers; all end with `stop`."""

    def __init__(self, stand_in: StandInProcess, shared: set[Path]) -> None:
        self.stand_in = stand_in
        self.names: list[str] = []
        self.logs: list[subprocess.Popen[bytes]] = []
        self.folders = [Path(tempfile.mkdtemp(prefix="invoker-test-cli-"))]
        self.folders[0].chmod(0o711)
        self.cli = closed_cli(self.folders[0])
        self.bases = user_ids()
        self.readable_cli = self.folders[0] / "readable"  # which one that is not root's cannot make by itself
        shutil.copyfile(self.cli, self.readable_cli)
        self.readable_cli.chmod(0o755)
        self.shared = shared  # what the machine's services listen in, and what invokers read besides

    def start(
        self,
        *,
        without: tuple[str, ...] = (),
        options: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        one_user: bool = False,
        **settings: Any,
    ) -> Invoker:
        """The network is the machine's: what is tried there is what any process of it could reach. `options` are those of
        docker-compose.yml if there are no others. `one_user`: the container's user is an ordinary one."""
        folder = Path(tempfile.mkdtemp(prefix="invoker-test-"))
        folder.chmod(0o711)
        first = next(self.bases)
        self.folders.append(folder)
        name = f"escape-{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        port = free_port()
        chosen: dict[str, Any] = {
            "trust": "open",
            "cli_path": self.cli,
            "port": port,
            "state_dir": folder / "state",
            "anthropic_base_url": self.stand_in.url,
            "anthropic_api_key": KEY,
            "idle_s": 60,
            "pool_size": 0,
            # Whoever ends runs on the machine itself reaches those in a container that have the same number.
            "uid_base": first,
        } | settings
        command = [
            "docker",
            "run",
            "--detach",
            f"--name={name}",
            "--network=host",
            *(options_of_compose() if options is None else options),
        ]
        if one_user:
            os.chown(folder, first, first)
            command.append(f"--user={first}:{first}")
        base = Path(sys.base_prefix)
        readable = {ROOT, Path(sys.prefix), self.cli.parent} | self.shared | ({base} if base != Path("/usr") else set())
        for path in sorted(readable):
            command.append(f"--volume={path}:{path}:ro")
        command.append(f"--volume={folder}:{folder}")
        variables = {f"INVOKER_{n.upper()}": str(v) for n, v in chosen.items()} | dict(environment or {})
        command += [f"--env={variable}={value}" for variable, value in variables.items()]
        program = ["tests.invoker.weakened", *without] if without else ["claude_invoker"]
        command += [f"--workdir={ROOT}", IMAGE, sys.executable, "-m", *program]
        subprocess.run(command, check=True, env=clean_environment(), stdout=subprocess.DEVNULL, timeout=120)
        shown = subprocess.run(
            ["docker", "inspect", "--format={{.State.Pid}}", name], capture_output=True, text=True, check=True
        )
        log = folder / "log"
        with log.open("wb") as file:
            follow = ["docker", "logs", "--follow", name]
            self.logs.append(subprocess.Popen(follow, stdout=file, stderr=subprocess.STDOUT))
        base = chosen["uid_base"]
        invoker = Invoker(f"http://127.0.0.1:{port}", int(shown.stdout), folder / "state", log, base, self.cli)
        wait_for(lambda: invoker.ready() or gone(invoker.pid), 180, what="readiness")
        assert invoker.ready(), log.read_text()
        return invoker

    def stop(self) -> None:
        if self.names:
            subprocess.run(["docker", "rm", "--force", *self.names], capture_output=True, check=False)
        for process in self.logs:
            process.wait(HANG_S)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def isolation_of(invoker: Invoker) -> str:
    return str(httpx.get(f"{invoker.url}/readyz").json()["checks"]["isolation"])


def skip_or_fail() -> None:
    if (reason := missing()) is None:
        return
    if os.environ.get("KONG_CLAUDE_DOCKER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
