"""Invokers that an ordinary user starts: this one, or nobody where we are root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.cli.binary import find_cli
from tests.invoker.conftest import KEY, Invoker, StandInProcess, clean_environment, free_port, wait_for
from tests.support.waiting import HANG_S

NOBODY = 65_534
AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def interpreter() -> str:
    """A Python of this version that an unprivileged user can start (ours may be in a closed home)."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run([candidate, "-c", ""], check=True, **AS_NOBODY)
        except OSError:
            continue
        return candidate
    pytest.skip("no Python that an unprivileged user can start")


def environment_of_its(folder: Path) -> Path:
    """The Python of a virtual environment that has what this process can import, also for programs that are started
    with -I (the egress filter)."""
    found = Path(interpreter())
    made = folder / "venv"
    packages = made / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for path in (packages, made / "bin"):
        path.mkdir(parents=True)
    # redis-py needs this backport before Python 3.11.3, which the system's may be.
    (packages / "async_timeout.py").write_text("from asyncio import timeout\n")
    (packages / "ours.pth").write_text("\n".join(filter(None, sys.path)))
    (made / "pyvenv.cfg").write_text(f"home = {found.parent}\n")
    (made / "bin" / "python").symlink_to(found)
    return made / "bin" / "python"


@contextmanager
def folder_of_its(parent: str | None = None) -> Iterator[Path]:
    """A directory of that user's. `parent`: where; None: where temporary files are."""
    with tempfile.TemporaryDirectory(prefix="invoker-test-", dir=parent) as name:
        if AS_NOBODY:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def cli_of_its(folder: Path) -> Path:
    """A CLI that belongs to that user, as with a virtual environment of its own."""
    path = folder / "claude"
    shutil.copyfile(find_cli(None), path)
    path.chmod(0o755)
    if AS_NOBODY:
        os.chown(path, NOBODY, NOBODY)
    return path


@contextmanager
def started(
    stand_in: StandInProcess, folder: Path, *, without: tuple[str, ...] = (), **settings: Any
) -> Iterator[Invoker]:
    """In the folder, until the block ends. `without`: defences to take out (see `weakened`)."""
    port = free_port()
    chosen: dict[str, Any] = {
        "trust": "open",
        "isolation": "none",
        "port": port,
        "state_dir": folder / "state",
        "anthropic_base_url": stand_in.url,
        "anthropic_api_key": KEY,
        "cli_path": find_cli(None),
    } | settings
    environment = clean_environment() | {f"INVOKER_{name.upper()}": str(value) for name, value in chosen.items()}
    environment["HOME"] = str(folder)
    program = ["tests.invoker.weakened", *without] if without else ["claude_invoker"]
    log = folder / "log"
    process = subprocess.Popen(
        [environment_of_its(folder), "-m", *program],
        env=environment,
        cwd=folder,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        **AS_NOBODY,
    )
    url = f"http://127.0.0.1:{port}"
    invoker = Invoker(url, process.pid, chosen["state_dir"], log, 0, Path(chosen["cli_path"]))
    try:
        wait_for(lambda: invoker.ready() or process.poll() is not None, 180, what="readiness")
        assert process.poll() is None, log.read_text()
        yield invoker
    finally:
        process.terminate()
        process.wait(HANG_S)
