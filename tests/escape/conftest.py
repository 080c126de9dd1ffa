"""Two tenants' runs at once, and services of the machine that neither should reach."""

from __future__ import annotations

import itertools
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.invoker.conftest import (
    Invoker,
    bash,
    invoker_processes,
    invokers_end_with_their_test,
    program,
    stand_in,
    start_invoker,
    wait_for,
)
from tests.invoker.names import OUTSIDE
from tests.support.site import Site, serving

__all__ = ["invoker_processes", "invokers_end_with_their_test", "stand_in", "start_invoker"]
ATTACKS = Path(__file__).with_name("attacks.py").read_text()
NOTHING_BUT_A_USER = (
    "a_kernel_without_landlock",
    "a_readable_cli",
    "namespaces_for_everybody",
    "programs_that_give_rights",
)
_names = itertools.count()


@dataclass(frozen=True)
class Raid:
    """What an attacker's run has got out by, and what its neighbour said at its own end."""

    outcomes: dict[str, str]
    neighbour: str
    secret: str


@pytest.fixture(scope="session")
def services() -> Iterator[dict[str, Any]]:
    """Listeners of the machine's: by TCP, by abstract and by named sockets, as a database might have them."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="escape-")))
        folder.chmod(0o755)
        abstract = f"escape-{os.getpid()}"
        tcp = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        for kind, address in (
            (socket.SOCK_STREAM, f"\0{abstract}"),
            (socket.SOCK_STREAM, str(folder / "stream")),
            (socket.SOCK_DGRAM, str(folder / "datagrams")),
        ):
            made = held.enter_context(socket.socket(socket.AF_UNIX, kind))
            made.bind(address)
            if kind == socket.SOCK_STREAM:
                made.listen(100)
        for path in folder.iterdir():
            path.chmod(0o666)
        yield {
            "port": tcp.getsockname()[1],
            "abstract": abstract,
            "socket": str(folder / "stream"),
            "datagrams": str(folder / "datagrams"),
        }


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """What is on the internet of tests."""
    with serving(tmp_path_factory.mktemp("site"), OUTSIDE, "example.test") as found:
        yield found


def seen_by(invoker: Invoker, pid: int) -> int:
    """The number that a process has where the invoker runs, which may be a container."""

    def numbers(of: int) -> list[str]:
        (line,) = [line for line in Path(f"/proc/{of}/status").read_text().splitlines() if line.startswith("NSpid:")]
        return line.split()[1:]

    return int(numbers(pid)[len(numbers(invoker.pid)) - 1])


def process_at_work(home: Path) -> int:
    """One of the run's commands: none of the processes around it has another number for itself than for its children."""
    for found in psutil.process_iter(["environ", "name"]):
        if found.info["name"] in ("bash", "sleep") and (found.info["environ"] or {}).get("HOME") == str(home):
            return int(found.pid)
    raise AssertionError("the neighbour is not at work")


def around(invoker: Invoker) -> dict[str, Any]:
    """What a command could find of the invoker and of its machine."""
    root = Path(f"/proc/{invoker.pid}/root")
    proxies = [child.pid for child in invoker.children() if "claude_invoker.metering" in " ".join(child.cmdline())]
    directories = {}
    for name in ("tmp", "var/tmp", "dev/shm", "run/lock", "dev/mqueue"):
        with suppress(FileNotFoundError):
            status = (root / name).stat()
            directories[f"/{name}"] = [status.st_dev, status.st_ino]
    return {
        "invoker": seen_by(invoker, invoker.pid),
        "proxy": seen_by(invoker, proxies[0]),
        "state": str(invoker.state),
        "directories": directories,
        "programs": [str(invoker.cli), *map(str, invoker.state.glob("trees/bin/*-*"))],
    }


def raid(invoker: Invoker, services: dict[str, Any]) -> Raid:
    """A tenant that opens its directory to everybody and works there, and beside it one that attacks."""
    secret = f"tenant-{os.urandom(8).hex()}"
    mark = f"{os.getpid()}-{next(_names)}"
    works = f"""
umask 022; chmod 711 "$PWD/.."; chmod 755 .; echo {secret} > secret-{mark}
for i in $(seq 600); do [ -e over ] && break; sleep 0.1; done
cat secret-{mark}; ls; echo undisturbed
"""
    with invoker.client() as api, ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(bash, api, works)
        found: list[Path] = []

        def at_work() -> bool:
            found[:] = invoker.state.glob(f"trees/engines/*/*/work/secret-{mark}")
            return bool(found) and found[0].stat().st_size > 0

        wait_for(at_work, 180, what="the neighbour")
        (file,) = found
        pid = process_at_work(file.parents[1] / "home")
        at = services | around(invoker) | {"neighbour": seen_by(invoker, pid), "neighbour_file": str(file)}
        try:
            answer = bash(api, program(ATTACKS, f"'{json.dumps(at)}'"))
        finally:
            (file.parent / "over").touch()
        assert answer.status_code == 200, answer.text
        said = neighbour.result()
        assert said.status_code == 200, said.text
    outcomes = json.loads(answer.json()["result"].splitlines()[-1])
    return Raid(outcomes, said.json()["result"], secret)


@pytest.fixture(scope="session")
def in_namespaces(start_invoker: Callable[..., Invoker], services: dict[str, Any]) -> Raid:
    return raid(start_invoker(isolation="namespaces", pool_size=0, idle_s=60), services)


@pytest.fixture(scope="session")
def confined(start_invoker: Callable[..., Invoker], services: dict[str, Any]) -> Raid:
    without = ("a_machine_without_bubblewrap",)
    return raid(start_invoker(isolation="landlock", without=without, pool_size=0, idle_s=60), services)


@pytest.fixture(scope="session")
def users_only(start_invoker: Callable[..., Invoker], services: dict[str, Any]) -> Raid:
    """What `user` promises: as the control, but with a CLI that cannot be read."""
    without = ("a_kernel_without_landlock",)
    return raid(start_invoker(isolation="user", without=without, pool_size=0, idle_s=60), services)


@pytest.fixture(scope="session")
def unconfined(start_invoker: Callable[..., Invoker], services: dict[str, Any]) -> Raid:
    """The control: a user id for each run, and nothing else."""
    return raid(start_invoker(isolation="user", without=NOTHING_BUT_A_USER, pool_size=0, idle_s=60), services)
