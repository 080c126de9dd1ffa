"""Finds out by doing which boxes hold here: what is made is entered by a program that tries to get out."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from claude_invoker.isolation import confine, domains, filters, namespaces, network, shell
from claude_invoker.isolation.again import WITHIN_S, again
from claude_invoker.isolation.box import Box, Entry, Kind
from claude_invoker.isolation.domain import Domain
from claude_invoker.isolation.namespaces import Namespaces
from claude_invoker.isolation.network import Way
from claude_invoker.isolation.strength import Property, Strength

_ABI = 6
"""The first Landlock that keeps signals and abstract sockets inside (Linux 6.12)."""
_OWN_PROC = (True, False)
"""The ways to make namespaces, the better one first (see `Namespaces.confined`)."""


def boxes(programs: Path, cli: Path, uid: int | None, catalog: Path | None = None) -> tuple[list[Box], list[Property]]:
    """Those that hold, the strongest first, and what was tried. Raises OSError.

    `programs`: a directory of ours for the shell. `uid`: a user id as runs have it, or None for ours. `catalog`: a
    directory in which commands may read what their CLI may.
    """
    common = (cli,) if catalog is None else (cli, catalog)
    obstacles: dict[str, str | None] = dict.fromkeys(
        (f"Landlock with scopes (ABI {_ABI})", "system call filters", "an interpreter for the shell's wrapper")
    )
    landlock, seccomp, interpreter = obstacles
    python = ""
    if (abi := confine.abi()) < _ABI:
        obstacles[landlock] = f"the kernel has {f'ABI {abi}' if abi else 'none, or the container forbids it'}"
    try:
        filters.of_shells(shared=True)
    except filters.NoSeccomp as error:
        obstacles[seccomp] = str(error)
    try:
        python = shell.interpreter(uid)
    except shell.NoInterpreter as error:
        obstacles[interpreter] = str(error)
    tried = [Property(name, Strength.LANDLOCK, obstacle) for name, obstacle in obstacles.items()]
    bwrap = namespaces.program()
    missing = None if bwrap else "it is not installed (Debian: apt-get install bubblewrap)"
    tried.append(Property("bubblewrap", Strength.NAMESPACES, missing))
    if any(obstacles.values()):
        return [], tried

    def kinds(*, shared: bool) -> tuple[Kind, Kind]:
        closed, reaching = (_kind(programs, common, python, tcp=tcp, shared=shared) for tcp in (False, True))
        return closed, reaching

    ways: list[list[Box]] = []
    """Of each strength, the better one first."""
    if bwrap is not None:
        rules = domains.of_cli(Path(), (programs, *common))
        confined = _installed(programs, "cli", shell.text_for_the_cli(python, rules))
        own = kinds(shared=False)
        ways.append(
            [Namespaces((programs, cli), *own, bwrap, None if own_proc else confined) for own_proc in _OWN_PROC]
        )
    ways.append([Domain((programs, cli), *kinds(shared=uid is None), shared=uid is None)])
    held = []
    for way in ways:
        box, obstacle = _best(way, python, uid)
        tried.append(Property(f"a process within {way[0].strength.label}", way[0].strength, obstacle))
        if box is not None:
            held.append(box)
    return held, tried


def _best(way: list[Box], python: str, uid: int | None) -> tuple[Box | None, str | None]:
    """The first that holds; or None, and why none does."""
    obstacles: dict[str, None] = {}
    for box in way:
        if (obstacle := _escapes(box, python, uid)) is None:
            return box, None
        obstacles[obstacle] = None
    return None, "; as in containers: ".join(obstacles)


def _kind(programs: Path, readable: tuple[Path, ...], python: str, *, tcp: bool, shared: bool) -> Kind:
    port = network.PORT if tcp else 0
    of_shells = filters.of_shells(tcp=tcp, shared=shared)
    content = shell.text(python, domains.of_shells(readable), of_shells, port)
    return Kind(_installed(programs, "bash", content), filters.of_cli(tcp=tcp), port)


def _installed(programs: Path, name: str, content: str) -> Path:
    return shell.install(programs, f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}", content)


_TRIES = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, *arguments):
    try: arguments[0](*arguments[1:])
    except OSError: return
    print(name)
def system(call, *arguments):
    if call(*arguments) < 0: raise OSError(ctypes.get_errno(), "refused")
strength, invoker, abstract = sys.argv[1:]
tried("reads /etc/passwd", open, "/etc/passwd")
tried("writes beside its tree", open, "/left", "w")
tried("writes among devices", open, "/dev/left", "w")
tried("has an internet socket", socket.socket, socket.AF_INET, socket.SOCK_STREAM)
tried("connects to the invoker", socket.socket(socket.AF_UNIX).connect, "\\0" + abstract)
if strength == "landlock":
    tried("lists processes", os.listdir, "/proc")
    tried("reads its own memory's map", open, "/proc/self/maps")
    tried("signals its invoker", os.kill, int(invoker), 0)
else:
    tried("sees what the machine has", os.stat, "/etc/passwd")
    tried("sees devices of the machine", os.stat, "/dev/tty")
    if os.getpid() > 9: print("is among the machine's processes")
    try: processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError: processes = []
    if len(processes) > 2: print("sees the machine's processes")
    if os.uname().nodename != "run": print("has the machine's name")
tried("makes a user namespace", system, libc.unshare, 0x10000000)
print("tried")
"""


@contextmanager
def _entry(box: Box, kind: Kind, uid: int | None) -> Iterator[Entry]:
    """Into an empty tree. Raises OSError."""
    tree = Path(tempfile.mkdtemp(prefix=".trial-", dir=box.programs[0]))
    try:
        for path in (tree / "work", tree / "tmp", tree / "api"):
            path.mkdir(mode=0o700)
        if uid is not None:
            for path in (tree, *tree.iterdir()):
                os.chown(path, uid, uid)
        with box.around(tree, kind, tree / "api") as entry:
            yield entry
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _run(
    entry: Entry, command: list[str], uid: int | None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[bytes]:
    def enter() -> None:
        for step in (before, entry.enter):
            if step is not None:
                step()

    return subprocess.run(
        [*entry.command, *command],
        env={},
        cwd="/",
        capture_output=True,
        timeout=WITHIN_S,
        pass_fds=entry.pass_fds,
        preexec_fn=enter,
        start_new_session=True,
        **shell.as_user(uid),
    )


def _escapes(box: Box, python: str, uid: int | None) -> str | None:
    """Runs a program in it. What it could do and should not; None where there is nothing."""
    name = f"claude-invoker-{os.urandom(8).hex()}"
    command = [python, "-ISB", "-c", _TRIES, box.strength.label, str(os.getpid()), name]

    def attempt() -> subprocess.CompletedProcess[bytes]:
        with _entry(box, box.closed, uid) as entry, socket.socket(socket.AF_UNIX) as service:
            service.bind(f"\0{name}")
            service.listen()
            return _run(entry, command, uid)

    try:
        return _judged(again(f"a process within {box.strength.label}", attempt))
    except TimeoutError as error:
        return str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be started: {error}"


def _judged(said: subprocess.CompletedProcess[bytes]) -> str | None:
    *escapes, last = said.stdout.decode().splitlines() or [""]
    if last != "tried":
        why = said.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"ends with {said.returncode}" + "".join(f" ({line})" for line in why)
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
    for way in box.ways:
        obstacle = _escapes_network(box, way, uid)
        if obstacle is None:
            return way, None
        obstacles.append(f"{way.value}: {obstacle}")
    return None, "; ".join(obstacles)


def _escapes_network(box: Box, way: Way, uid: int | None) -> str | None:
    """The same for a program that reaches a filter."""
    source = _TRIES_INSIDE.format(host=network.HOST, port=network.PORT)

    def attempt() -> subprocess.CompletedProcess[bytes]:
        with _entry(box, box.open, uid) as entry, socket.create_server((network.HOST, 0)) as service:
            command = [shell.interpreter(uid), "-ISB", "-c", source, str(service.getsockname()[1])]
            said, listener = network.started(way, lambda go_inside: _run(entry, command, uid, go_inside))
            listener.close()
            return said

    try:
        said = again(f"a network {way.value}", attempt)
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
