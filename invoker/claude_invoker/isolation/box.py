"""What a CLI starts in: made once for an invoker, entered by each process. `domain` and `namespaces` are the two that
there are."""

from __future__ import annotations

import functools
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.isolation import confine, filters, shell
from claude_invoker.isolation.network import Way
from claude_invoker.isolation.strength import Strength


@dataclass(frozen=True)
class Kind:
    """The filter that a CLI enters, the shell that it is told to use, and the port that both may connect to (0: no)."""

    shell: Path
    filter: bytes
    port: int = 0


@dataclass(frozen=True)
class Entry:
    """How one process gets in. Worth something as long as the context lasts that has given it."""

    command: tuple[str, ...] = ()
    """What is started, with the program and its arguments behind it."""
    pass_fds: tuple[int, ...] = ()
    enter: Callable[[], None] | None = None
    """What the child calls last before exec."""
    first: Callable[[int], int] | None = None
    """From the process that was started to the one that all of the run descend from and end with. Raises OSError.
    None where there is no such process: the run's user tells who belongs to it."""
    end: signal.Signals = signal.SIGKILL
    """What ends that process."""


@dataclass(frozen=True)
class Box(ABC):
    """What a CLI enters, in two kinds."""

    programs: tuple[Path, ...]
    """What it may execute besides the system's programs."""
    closed: Kind
    """Of runs that reach no network."""
    open: Kind
    """Of runs that have a network of their own (see `network`), and reach the listener in it."""

    @property
    @abstractmethod
    def strength(self) -> Strength: ...

    @property
    def less(self) -> str | None:
        """In what it is less than the best of its strength, though it keeps what that promises; None: in nothing."""
        return None

    @property
    def counts_processes(self) -> bool:
        """Whether the kernel counts a run's processes by themselves, also where its user has others (RLIMIT_NPROC)."""
        return False

    @property
    def ways(self) -> tuple[Way, ...]:
        """How its runs can come by a network of their own. (By capabilities it is made by a thread that ends, and with
        which what it has started may end.)"""
        return (Way.USER_NAMESPACE,)

    @abstractmethod
    def around(
        self, tree: Path, kind: Kind, api: Path, readable: tuple[Path, ...] = ()
    ) -> AbstractContextManager[Entry]:
        """For a CLI in this tree, which reaches the API by a socket in the directory `api`. `readable`: directories in
        which it and its commands may read, and run what is there, as in `programs`. Raises OSError."""

    @property
    def intact(self) -> bool:
        """Whether commands still get a domain of their own."""
        return shell.intact(self.closed.shell) and shell.intact(self.open.shell)


@functools.cache
def least() -> Callable[[], None] | None:
    """What a CLI that enters no box calls before exec, where there are filters: its run makes no namespaces, and
    leaves nothing in the kernel."""
    try:
        return functools.partial(confine.filtered, filters.of_users())
    except filters.NoSeccomp:
        return None
