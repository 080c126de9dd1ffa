"""The `namespaces` strength: a run in PID, mount, IPC, network and user namespaces of its own, by bubblewrap.

bubblewrap runs as the run's user and has no more rights than that. Nothing of the machine is there but what is listed
here: what has no name can be neither opened nor asked about.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from claude_invoker.isolation import shell
from claude_invoker.isolation.box import Box, Entry, Kind
from claude_invoker.isolation.domains import DEVICES, ETC, TOP_LEVEL
from claude_invoker.isolation.strength import Strength

_SHARED = ("/tmp", "/dev/shm")  # noqa: S108 -- the run's own
_WITHIN_MS = 30_000
"""How long making the namespaces may take; it takes some 10 ms: so long only where it hangs."""
_LESS = (
    "as a container permits: the filter of system calls alone keeps a run from user namespaces, and a command learns "
    "which process numbers are in use"
)


def program() -> str | None:
    """Where bubblewrap is; None where it is not installed."""
    return shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")


@dataclass(frozen=True)
class Namespaces(Box):
    bwrap: str
    confined: Path | None = None
    """As a container lets them be made, which hides parts of /proc and has its settings read-only: then the kernel
    permits no /proc of the run's own, and bubblewrap cannot forbid further user namespaces. The run has the container's
    /proc, and for it a domain in which that is closed, as without namespaces: this program enters it."""

    @property
    def less(self) -> str | None:
        return None if self.confined is None else _LESS

    @property
    def intact(self) -> bool:
        return super().intact and (self.confined is None or shell.intact(self.confined))

    @property
    def strength(self) -> Strength:
        return Strength.NAMESPACES

    @property
    def counts_processes(self) -> bool:
        return True

    @contextmanager
    def around(self, tree: Path, kind: Kind, api: Path, readable: tuple[Path, ...] = ()) -> Iterator[Entry]:
        asked = arguments(
            tree, (*self.programs, api, *readable), network=kind is self.open, own_proc=self.confined is None
        )
        with ExitStack() as held:

            def lent(content: bytes) -> int:
                """A descriptor to read this from."""
                file = held.enter_context(open(os.memfd_create("claude-invoker"), "w+b", 0))
                file.write(content)
                file.seek(0)
                return file.fileno()

            # By descriptors: every user of the machine can read a command line.
            words = lent(b"".join(os.fsencode(word) + b"\0" for word in asked))
            # The filter forbids mounting, so bubblewrap enters it last.
            filter = lent(kind.filter)
            ends = os.pipe()
            info, to_tell = held.enter_context(open(ends[0], "rb", 0)), held.enter_context(open(ends[1], "wb", 0))

            def first(started: int) -> int:
                to_tell.close()
                return _said(info, started)

            options = ("--args", str(words), "--seccomp", str(filter), "--info-fd", str(to_tell.fileno()), "--")
            confined = () if self.confined is None else (str(self.confined), str(kind.port))
            yield Entry(
                (self.bwrap, *options, *confined),
                (words, filter, to_tell.fileno()),
                first=first,
            )


def arguments(tree: Path, readable: tuple[Path, ...], *, network: bool, own_proc: bool = True) -> Iterator[str]:
    """What is made around a CLI in this tree (bwrap(1)), in this order. `readable`: besides the system's programs.
    `network`: the one that it is started in, which has to be its own (see `network`); else an empty one.

    `own_proc`: see `Namespaces.confined`.

    The CLI finds no file without a /proc, and starts no program of its own where /proc/self is another's; commands have
    none. The run's `tmp` is also what it has in the place of /tmp
    and /dev/shm: so that is bounded, and goes, with the tree. (A tmpfs is bounded in bytes and not in files.) Where one
    of the other paths is below that, there is no such place: commands may write to `tmp` and to whatever is below it,
    and a mount is.
    """
    yield from ("--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    yield from ("--hostname", "run", "--unshare-user")
    if own_proc:
        yield "--disable-userns"
    if not network:
        yield "--unshare-net"
    yield from ("--ro-bind", "/usr", "/usr")
    for path in TOP_LEVEL:
        if Path(path).is_symlink():
            yield from ("--symlink", str(Path(path).readlink()), path)
        else:
            yield from ("--ro-bind-try", path, path)
    for path in ETC:
        yield from ("--ro-bind-try", path, path)
    yield from ("--proc", "/proc") if own_proc else ("--ro-bind", "/proc", "/proc")
    for path in DEVICES:
        yield from ("--dev-bind", path, path)
    for shared in _SHARED:
        if not any(path.is_relative_to(shared) for path in (tree, *readable)):
            yield from ("--bind", str(tree / "tmp"), shared)
    for readonly in readable:
        yield from ("--ro-bind", str(readonly), str(readonly))
    yield from ("--bind", str(tree), str(tree))
    yield from ("--remount-ro", "/", "--chdir", str(tree / "work"))


def _said(info: FileIO, bwrap: int) -> int:
    """The process with which all in the namespaces end, as bubblewrap, which is process `bwrap`, says it.

    Raises OSError where it does not get that far."""
    poll = select.poll()
    poll.register(info, select.POLLIN)
    said = b""
    while poll.poll(_WITHIN_MS) and (chunk := info.read(4096)):
        said += chunk
        try:
            return int(json.loads(said)["child-pid"])
        except ValueError:
            continue
    raise OSError(errno.ECHILD, f"bubblewrap (process {bwrap}) has not made the namespaces")
