"""The real CLI, in a real invoker process, against the stand-in of the Messages API."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from claude_invoker.cli.binary import find_cli
from claude_invoker.cli.users import SPAN
from claude_invoker.ledger import Ledger
from tests.rate_tiers.servers import RedisProcess
from tests.support.ports import free_port as free_port
from tests.support.processes import command_line, gone
from tests.support.waiting import HANG_S
from tests.support.waiting import wait_for as wait_for

KEY = "sk-ant-dummy-key-of-the-tests"
# What must not leak into a process under test.
FOREIGN = ("ANTHROPIC_", "CLAUDE", "INVOKER_", "REDIS_URL")


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def user_ids() -> Iterator[int]:
    """`uid_base` for one invoker after the other, of every test process of this machine its own.

    A test takes out the locks of user ids, or kills the invoker that holds them: to any other invoker with the same
    ids, those runs are left over from one that died, and are ended."""
    first = 1_000_000 + os.getpid() % 8_000 * 64 * SPAN
    return itertools.cycle(range(first, first + 64 * SPAN, SPAN))


@dataclass
class StandInProcess:
    url: str
    record: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []


@dataclass
class Invoker:
    """A running invoker, and what can be seen of it from outside."""

    url: str
    pid: int
    state: Path
    log: Path
    uid_base: int
    cli: Path = Path()

    @property
    def uids(self) -> range:
        """The user ids that its runs can have."""
        return range(self.uid_base + 2, self.uid_base + SPAN)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=HANG_S, **options)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """As an orchestrator stops it."""
        os.kill(self.pid, signal.SIGTERM)
        wait_for(lambda: gone(self.pid), what="the invoker's end")

    def children(self) -> list[psutil.Process]:
        """The CLI processes it has, and all that they have started."""
        return psutil.Process(self.pid).children(recursive=True)

    def clis(self) -> list[psutil.Process]:
        """Those of the CLI itself: not what holds its namespaces, which has its words in its command line."""
        found = [(child, command_line(child)) for child in self.children()]
        return [child for child, line in found if "--print" in line and not line.startswith("/usr/bin/bwrap")]

    def trees(self) -> list[Path]:
        return [path for path in self.state.glob("trees/engines/*/*") if path.is_dir() and path.name != "api"]


@pytest.fixture
async def ledger(redis_server: RedisProcess) -> AsyncIterator[Ledger]:
    """The invoker's side of the limits, by itself."""
    found = Ledger(redis_server.url)
    yield found
    await found.close()


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInProcess]:
    record = tmp_path_factory.mktemp("stand-in") / "record.jsonl"
    port = free_port()
    command = [sys.executable, "-m", "kong_claude_local.standin", "--port", str(port), "--record", str(record)]
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "stand-in" in process.stdout.readline()
    yield StandInProcess(f"http://127.0.0.1:{port}", record)
    process.terminate()
    assert process.wait(HANG_S) == 0


def closed_cli(folder: Path) -> Path:
    """The CLI where all runs reach it and none can read it: else each invoker would make a copy of 380 MB."""
    path = folder / "claude"
    for earlier in _CLOSED:  # of another folder's fixture
        with contextlib.suppress(OSError):
            os.link(earlier, path)
            return path
    shutil.copyfile(find_cli(None), path)
    path.chmod(0o711)
    _CLOSED.append(path)
    return path


_CLOSED: list[Path] = []


@pytest.fixture(scope="session")
def invoker_processes() -> list[subprocess.Popen[bytes]]:
    """All that were started."""
    return []


@pytest.fixture(autouse=True)
def invokers_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nobody waits for it: what a test has started is asked to stop when it is over, or hundreds would be idle at once.
    What a fixture of a module or of all tests has started was there before, and stays."""
    if "start_invoker" not in request.fixturenames:
        yield
        return
    processes = request.getfixturevalue("invoker_processes")
    before = len(processes)
    yield
    for process in processes[before:]:
        process.terminate()


@pytest.fixture(scope="session")
def start_invoker(
    stand_in: StandInProcess,
    invoker_processes: list[subprocess.Popen[bytes]],
    shared_redis: RedisProcess,
    emptied_redis: RedisProcess,
) -> Iterator[Callable[..., Invoker]]:
    """Starts invokers with given settings; each is asked to stop at the end and must do so. (Before those
    Redis do: one whose Redis is away takes 14 seconds to stop, and all wait for that.)

    `without`: defences to take out (see `weakened`). `after`: another invoker, to go on with its state and ids.
    `ahead_s`: its clock.
    """
    bases = user_ids()
    # Not one of pytest's directories: those are closed to the users that runs have.
    folders = [Path(tempfile.mkdtemp(prefix="invoker-test-cli-"))]
    folders[0].chmod(0o711)
    cli_path = closed_cli(folders[0])

    def start(
        *,
        wait: bool = True,
        without: tuple[str, ...] = (),
        after: Invoker | None = None,
        ahead_s: int = 0,
        **settings: Any,
    ) -> Invoker:
        folder = Path(tempfile.mkdtemp(prefix="invoker-test-"))
        folder.chmod(0o711)
        folders.append(folder)
        port = free_port()
        chosen: dict[str, Any] = {
            "trust": "open",
            "isolation": "none",
            "cli_path": cli_path,
            "port": port,
            "state_dir": after.state if after else folder / "state",
            "anthropic_base_url": stand_in.url,
            # Bounds of a run are the product's; here they are the machine's unless a test is about them.
            "api_timeout_s": HANG_S,
            "api_retries": 1,
            "first_output_s": HANG_S,
            "idle_s": HANG_S,
            "detach_grace_s": 0.2,
            "heartbeat_s": 0.5,
            "stop_grace_s": 1,
            "pool_size": 0,  # a warm CLI costs as much as the run that may not come
            "pool_max": 2,
            "uid_base": after.uid_base if after else next(bases),
        } | settings
        if "anthropic_api_key" not in chosen:
            chosen["anthropic_api_key_file"] = secret = folder / "api-key"
            secret.write_text(KEY)
            secret.chmod(0o400)
        environment = clean_environment() | {f"INVOKER_{name.upper()}": str(value) for name, value in chosen.items()}
        environment["SECRET_OF_THE_SERVER"] = "must not be inherited"
        log = folder / "log"
        program = ["tests.invoker.weakened", *without] if without else ["claude_invoker"]
        if ahead_s:
            program = ["tests.support.clocks", str(ahead_s), *program]
        process = subprocess.Popen(
            [sys.executable, "-m", *program], env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        invoker_processes.append(process)
        invoker = Invoker(
            f"http://127.0.0.1:{port}", process.pid, Path(chosen["state_dir"]), log, chosen["uid_base"], cli_path
        )
        if wait:
            # It takes seconds, of which asking would have its share.
            wait_for(lambda: invoker.ready() or process.poll() is not None, 180, what="readiness", every_s=0.1)
            assert process.poll() is None, log.read_text()
        return invoker

    yield start
    for process in invoker_processes:
        process.terminate()
    for process in invoker_processes:
        process.wait(120)
    # Not shutil's: a run of a test that has failed may have left a tree of any depth.
    subprocess.run(["rm", "-rf", *folders], check=False)


def without_boundary(start: Callable[..., Invoker]) -> Callable[..., Invoker]:
    """`start_invoker` for attacks on what is below the boundary: within it most of them end before they get there."""

    def started(*, without: tuple[str, ...] = (), **settings: Any) -> Invoker:
        return start(without=("a_kernel_without_landlock", "a_readable_cli", *without), **settings)

    return started


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker]) -> Invoker:
    """One invoker for all tests that only ask it for runs."""
    return start_invoker(pool_size=1)


@pytest.fixture(scope="session")
def unbounded() -> list[Invoker]:
    """The one without the boundary of all modules whose attacks are on what is below it, once it was started; they are a
    group. No process is warm in it, so that those of a run are told from nobody's."""
    return []


@pytest.fixture
def attacked(invoker: Invoker, start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    """The invoker of all tests, or for a control one of its own, which lacks the defence and may be ruined."""

    def chosen(without: tuple[str, ...]) -> Invoker:
        return start_invoker(without=without, pool_size=0) if without else invoker

    return chosen


@pytest.fixture
def api(invoker: Invoker) -> Iterator[httpx.Client]:
    with invoker.client() as client:
        yield client


def defended_and_without(*names: str) -> list[Any]:
    """Values of `without` for a test of a defence: none, and its positive control, in which the attack succeeds. A control
    needs an invoker of its own, and shows of the test that it can fail: it is in `make test-long`."""
    return [(), pytest.param(names, marks=pytest.mark.slow)]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root")


def bash(api: httpx.Client, command: str, **more: Any) -> httpx.Response:
    """A run whose model calls Bash with that command."""
    return api.post("/invoke", json={"prompt": tool("Bash", command=command), "tools": ["Bash"], **more})


def program(source: str, *arguments: str) -> str:
    """A command line that runs a Python program in the run's directory."""
    return f"cat > a.py <<'EOF'\n{source}\nEOF\npython3 a.py {' '.join(arguments)}"


def tool(name: str, **arguments: Any) -> str:
    """A directive for the stand-in: the model calls this tool."""
    return f"[[tool {name} {json.dumps(arguments)}]]"
