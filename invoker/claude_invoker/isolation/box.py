"""The `landlock` strength: made once for an invoker, entered by each CLI before it starts."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.isolation import confine, domains, filters, network, shell
from claude_invoker.isolation.network import Way
from claude_invoker.isolation.strength import Property, Strength

_ABI = 6
"""The first Landlock that keeps signals and abstract sockets inside (Linux 6.12)."""


@dataclass(frozen=True)
class Kind:
    """The filter that a CLI enters, the shell that it is told to use, and the port that both may connect to (0: no)."""

    shell: Path
    filter: bytes
    port: int = 0


@dataclass(frozen=True)
class Box:
    """What a CLI enters, in two kinds."""

    programs: tuple[Path, ...]
    """What it may execute besides the system's programs."""
    closed: Kind
    """Of runs that reach no network."""
    open: Kind
    """Of runs that have a network of their own (see `network`), and reach the listener in it."""

    @contextmanager
    def around(self, tree: Path, kind: Kind) -> Iterator[Callable[[], None]]:
        """For a CLI in this tree: what its process has to call before exec, while the context lasts. Raises OSError."""
        domain = confine.ruleset(domains.of_cli(tree, self.programs), kind.port)
        try:
            yield functools.partial(confine.enter, domain, kind.filter)
        finally:
            os.close(domain)

    @property
    def intact(self) -> bool:
        """Whether commands still get a domain of their own."""
        return shell.intact(self.closed.shell) and shell.intact(self.open.shell)


@functools.cache
def least() -> Callable[[], None] | None:
    """What a CLI that enters no box calls before exec, where there are filters: its run makes no namespaces."""
    try:
        return functools.partial(confine.filtered, filters.of_users())
    except filters.NoSeccomp:
        return None


def make(programs: Path, cli: Path, uid: int | None) -> tuple[Box | None, list[Property]]:
    """A box, and what was tried for it: None where one of its parts does not work. Raises OSError.

    `programs`: a directory of ours for the shell. `uid`: a user id as runs have it, or None for ours.
    """
    obstacles: dict[str, str | None] = dict.fromkeys(
        (f"Landlock with scopes (ABI {_ABI})", "system call filters", "an interpreter for the shell's wrapper")
    )
    landlock, seccomp, interpreter = obstacles
    python = ""
    made: dict[bool, tuple[bytes, bytes]] = {}
    if (abi := confine.abi()) < _ABI:
        obstacles[landlock] = f"the kernel has {f'ABI {abi}' if abi else 'none, or the container forbids it'}"
    try:
        made = {tcp: (filters.of_cli(tcp=tcp), filters.of_shells(tcp=tcp)) for tcp in (False, True)}
    except filters.NoSeccomp as error:
        obstacles[seccomp] = str(error)
    try:
        python = shell.interpreter(uid)
    except shell.NoInterpreter as error:
        obstacles[interpreter] = str(error)
    tried = [Property(name, Strength.LANDLOCK, obstacle) for name, obstacle in obstacles.items()]
    if any(obstacles.values()):
        return None, tried

    def kind(*, tcp: bool) -> Kind:
        of_cli, of_shells = made[tcp]
        port = network.PORT if tcp else 0
        content = shell.text(python, domains.of_shells((cli,)), of_shells, port)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return Kind(shell.install(programs, f"bash-{digest}", content), of_cli, port)

    box = Box((programs, cli), kind(tcp=False), kind(tcp=True))
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
        with box.around(Path("/nonexistent"), box.closed) as enter:
            said = subprocess.run(
                command, env={}, cwd="/", capture_output=True, timeout=30, preexec_fn=enter, **shell.as_user(uid)
            )
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be started: {error}"
    return _judged(said)


def _judged(said: subprocess.CompletedProcess[bytes]) -> str | None:
    *escapes, last = said.stdout.decode().splitlines() or [""]
    if last != "tried":
        return f"ends with {said.returncode}"
    return ", ".join(escapes) or None


_TRIES_INSIDE = """
import socket, sys
def tried(name, wanted, *arguments):
    try:
        with socket.socket(*arguments[:-1]) as made:
            if arguments[-1]: made.connect(arguments[-1])
    except OSError:
        if wanted: print(name)
    else:
        if not wanted: print(name)
inet, stream = socket.AF_INET, socket.SOCK_STREAM
tried("does not reach the filter", True, inet, stream, ({host!r}, {port}))
tried("reaches the machine", False, inet, stream, ({host!r}, int(sys.argv[1])))
tried("has datagrams", False, inet, socket.SOCK_DGRAM, None)
tried("has raw sockets", False, inet, socket.SOCK_RAW, None)
tried("has IPv6", False, socket.AF_INET6, stream, None)
tried("has netlink", False, socket.AF_NETLINK, socket.SOCK_RAW, None)
tried("has another protocol of streams", False, inet, stream, 262, None)
print("tried")
"""


def network_of_its_own(box: Box, uid: int | None) -> tuple[Way | None, str | None]:
    """How runs come by a network in which they reach a filter of ours and nothing else; or None, and why not."""
    obstacles = []
    for way in Way:
        obstacle = _escapes_network(box, way, uid)
        if obstacle is None:
            return way, None
        obstacles.append(f"{way.value}: {obstacle}")
    return None, "; ".join(obstacles)


def _escapes_network(box: Box, way: Way, uid: int | None) -> str | None:
    """The same for a program that reaches a filter."""
    source = _TRIES_INSIDE.format(host=network.HOST, port=network.PORT)
    try:
        with (
            box.around(Path("/nonexistent"), box.open) as enter,
            socket.create_server((network.HOST, 0)) as service,
        ):
            command = [shell.interpreter(uid), "-ISB", "-c", source, str(service.getsockname()[1])]

            def start(go_inside: Callable[[], None]) -> subprocess.CompletedProcess[bytes]:
                def confined() -> None:
                    go_inside()
                    enter()

                return subprocess.run(
                    command, env={}, cwd="/", capture_output=True, timeout=30, preexec_fn=confined, **shell.as_user(uid)
                )

            said, listener = network.started(way, start)
            listener.close()
    except OSError as error:
        return error.strerror or str(error)
    except (subprocess.SubprocessError, shell.NoInterpreter) as error:
        return str(error)
    return _judged(said)


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
