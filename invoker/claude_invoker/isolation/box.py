"""The `landlock` strength: made once for an invoker, entered by each CLI before it starts."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.isolation import confine, domains, filters, shell
from claude_invoker.isolation.strength import Property, Strength

_ABI = 6
"""The first Landlock that keeps signals and abstract sockets inside (Linux 6.12)."""


@dataclass(frozen=True)
class Box:
    """What a CLI enters, and the shell that it is told to use."""

    programs: tuple[Path, ...]
    """What it may execute besides the system's programs."""
    shell: Path
    filter: bytes

    @contextmanager
    def around(self, tree: Path) -> Iterator[Callable[[], None]]:
        """For a CLI in this tree: what its process has to call before exec, while the context lasts. Raises OSError."""
        domain = confine.ruleset(domains.of_cli(tree, self.programs))
        try:
            yield functools.partial(confine.enter, domain, self.filter)
        finally:
            os.close(domain)

    @property
    def intact(self) -> bool:
        """Whether commands still get a domain of their own."""
        return shell.intact(self.shell)


def make(programs: Path, cli: Path, uid: int | None) -> tuple[Box | None, list[Property]]:
    """A box, and what was tried for it: None where one of its parts does not work. Raises OSError.

    `programs`: a directory of ours for the shell. `uid`: a user id as runs have it, or None for ours.
    """
    obstacles: dict[str, str | None] = dict.fromkeys(
        (f"Landlock with scopes (ABI {_ABI})", "system call filters", "an interpreter for the shell's wrapper")
    )
    landlock, seccomp, interpreter = obstacles
    python, of_cli, of_shells = "", b"", b""
    if (abi := confine.abi()) < _ABI:
        obstacles[landlock] = f"the kernel has {f'ABI {abi}' if abi else 'none, or the container forbids it'}"
    try:
        of_cli, of_shells = filters.of_cli(), filters.of_shells()
    except filters.NoSeccomp as error:
        obstacles[seccomp] = str(error)
    try:
        python = shell.interpreter(uid)
    except shell.NoInterpreter as error:
        obstacles[interpreter] = str(error)
    tried = [Property(name, Strength.LANDLOCK, obstacle) for name, obstacle in obstacles.items()]
    if any(obstacles.values()):
        return None, tried
    content = shell.text(python, domains.of_shells((cli,)), of_shells)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    box = Box((programs, cli), shell.install(programs, f"bash-{digest}", content), of_cli)
    held = Property("a process in the box", Strength.LANDLOCK, _escapes(box, python, uid))
    return (None if held.obstacle else box), [*tried, held]


_TRIES = """
import os, socket
def tried(name, *arguments):
    try: arguments[0](*arguments[1:])
    except OSError: return
    print(name)
tried("reads /etc/passwd", open, "/etc/passwd")
tried("lists processes", os.listdir, "/proc")
tried("reads its own memory's map", open, "/proc/self/maps")
tried("signals its parent", os.kill, os.getppid(), 0)
tried("has an internet socket", socket.socket, socket.AF_INET, socket.SOCK_STREAM)
print("tried")
"""


def _escapes(box: Box, python: str, uid: int | None) -> str | None:
    """Runs a program in it. What it could do and should not; None where there is nothing."""
    command = [python, "-ISB", "-c", _TRIES]
    try:
        with box.around(Path("/nonexistent")) as enter:
            said = subprocess.run(
                command, env={}, cwd="/", capture_output=True, timeout=30, preexec_fn=enter, **shell.as_user(uid)
            )
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be started: {error}"
    *escapes, last = said.stdout.decode().splitlines() or [""]
    if last != "tried":
        return f"ends with {said.returncode}"
    return ", ".join(escapes) or None


def own_users(uid: int | None) -> Property:
    """Whether a process can be given to a run's user."""
    obstacle = None
    if uid is None:
        obstacle = "the invoker is not started as root"
    else:
        try:
            subprocess.run(["/bin/true"], check=True, **shell.as_user(uid))
        except (OSError, subprocess.SubprocessError) as error:
            obstacle = f"the capabilities SETUID and SETGID are needed: {error}"
    return Property("a user id for each run", Strength.USER, obstacle)
