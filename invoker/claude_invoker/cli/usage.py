"""What a run uses of the machine while it runs, seen from outside.

Whatever is looked at may change meanwhile: what vanishes is passed over, and nothing that a run does to its directories
makes this raise or leads it elsewhere.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from claude_invoker.cli.killer import over
from claude_invoker.cli.walk import BLOCK, DIRECTORY

_ABOVE = ("/dev", "/run", "/tmp", "/var")  # noqa: S108 -- looked at, not used
"""Where a machine has its directories in which every user may leave files: /tmp, /var/tmp, /dev/shm, /dev/mqueue (where
a queue of POSIX is a file), /run/lock, /tmp/.X11-unix, ..."""
_IN_MEMORY = ("/memfd:", "/dev/zero", "/SYSV", "/dev/shm/")  # noqa: S108 -- the same
"""How files are called that memory is taken for: as such, shared without a file, of System V, deleted."""
_OPEN = 64
"""Directories on the way down that are held open; of those above the way back is by `..`."""
_KB = re.compile(rb"^(RssAnon|RssShmem|VmSwap|VmPTE):\s+(\d+) kB", re.MULTILINE)
_PROPORTIONAL = re.compile(rb"^(Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+) kB", re.MULTILINE)


@dataclass
class Processes:
    """What runs of one user, or under one mark. `threads` is what the kernel counts against RLIMIT_NPROC; `memory`:
    bytes, without what is in a file anyway. What several processes share is in there several times. `tables`: those of
    it that are page tables; a process has some for memory that it has only looked at, too."""

    threads: int = 0
    memory: int = 0
    tables: int = 0
    pids: list[int] = field(default_factory=list)


@dataclass
class Files:
    """Bytes on the disk, and the number of files and directories."""

    bytes: int = 0
    entries: int = 0


def of_users(uids: Collection[int]) -> dict[int, Processes]:
    """What each of these (real) user ids runs; see proc(5)."""
    found = {uid: Processes() for uid in uids}
    for pid, status in _statuses():
        with suppress(IndexError, ValueError):
            if (uid := _number(status, b"Uid")) in found:
                _count(found[uid], pid, status)
    return found


def marked(marks: Collection[str]) -> dict[str, Processes]:
    """What of our own user's has each of these variables (`NAME=value`) in its environment."""
    found = {mark: Processes() for mark in marks}
    for pid, status in _statuses():
        with suppress(OSError, IndexError, ValueError):
            if _number(status, b"Uid") != os.geteuid():
                continue
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            for mark, uses in found.items():
                if mark.encode() in environment:
                    _count(uses, pid, status)
    return found


def eldest_child(pid: int) -> int:
    """The process that it has had as a child for the longest time, of those that live. Raises OSError."""
    found = []
    for child, status in _statuses():
        if _number(status, b"PPid") == pid:
            began = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19]
            found.append((int(began), child))
    if not found:
        raise ChildProcessError(f"process {pid} has no child")
    return min(found)[1]


def descended(firsts: Collection[int]) -> dict[int, Processes]:
    """What descends from each of these processes, none of which descends from another."""
    found = {first: Processes() for first in firsts}
    seen = dict(_statuses())
    above = _above(seen, firsts)
    for pid, status in seen.items():
        first = above[pid]
        if first is not None and first != pid:
            with suppress(IndexError, ValueError):
                _count(found[first], pid, status)
    return found


def beside(uid: int, firsts: Collection[int]) -> Processes:
    """What a user runs that is none of these processes, and descends from none of them."""
    found = Processes()
    seen = dict(_statuses())
    above = _above(seen, firsts)
    for pid, status in seen.items():
        with suppress(IndexError, ValueError):
            if above[pid] is None and _number(status, b"Uid") == uid:
                _count(found, pid, status)
    return found


def _above(seen: Mapping[int, bytes], firsts: Collection[int]) -> dict[int, int | None]:
    """Which of `firsts` each process of `seen` is or descends from."""
    parents = {pid: _number(status, b"PPid") for pid, status in seen.items()}
    for pid, parent in list(parents.items()):
        if parent not in parents:  # it has ended meanwhile, and its children have another now
            with suppress(OSError, IndexError, ValueError):
                parents[pid] = _number(Path(f"/proc/{pid}/status").read_bytes(), b"PPid")
    above: dict[int, int | None] = {first: first for first in firsts}
    for pid in parents:
        way, at = [], pid
        while at not in above:
            above[at] = None  # until it is known; what was seen at different times can go in a circle
            way.append(at)
            at = parents.get(at, 0)
        above.update(dict.fromkeys(way, above[at]))
    return above


def _statuses() -> Iterable[tuple[int, bytes]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                status = Path(entry.path, "status").read_bytes()
                if not over(status):
                    yield int(entry.name), status


def _number(status: bytes, name: bytes) -> int:
    """The first number of a line. Raises IndexError, ValueError."""
    return int(status.split(b"\n%b:\t" % name, 1)[1].split(None, 1)[0])


def _count(uses: Processes, pid: int, status: bytes) -> None:
    uses.threads += _number(status, b"Threads")
    found = {name: int(size) * 1024 for name, size in _KB.findall(status)}
    uses.memory += sum(found.values())
    uses.tables += found.get(b"VmPTE", 0)
    uses.pids.append(pid)


def memory_of(uses: Processes, nameless: int) -> int:
    """The same memory with each shared page counted once. `nameless`: bytes of it in files without a name, which count
    whoever has them mapped. It takes long for much memory; where we may not look, what is known stands."""
    total: Counter[bytes] = Counter()
    for pid in uses.pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
        except ProcessLookupError:
            continue
        except OSError:
            return uses.memory + nameless
        total.update({name: int(size) * 1024 for name, size in _PROPORTIONAL.findall(rollup)})
    return uses.tables + total[b"Pss_Anon"] + total[b"SwapPss"] + max(total[b"Pss_Shmem"], nameless)


def nameless(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes in files without a name that these processes have open or share: (on a disk, in memory). Memory that is
    shared without a file is such a file, too. Of processes that we may look into."""
    seen: set[tuple[int, int]] = set()
    on_disk = in_memory = 0
    for path in itertools.chain.from_iterable((*_opened(pid), *_shared(pid)) for pid in pids):
        with suppress(OSError):
            status = path.stat()
            if status.st_nlink or not stat.S_ISREG(status.st_mode) or (who := _identity(status)) in seen:
                continue
            seen.add(who)
            if str(path.readlink()).startswith(_IN_MEMORY):
                in_memory += status.st_blocks * BLOCK
            else:
                on_disk += status.st_blocks * BLOCK
    return on_disk, in_memory


def _opened(pid: int) -> Iterator[Path]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            yield Path(entry.path)


def _shared(pid: int) -> Iterator[Path]:
    """Its mappings of files without a name; a page of one stays also when nobody has it in his tables any more."""
    with suppress(OSError), Path(f"/proc/{pid}/maps").open("rb") as lines:
        for line in lines:
            if line.endswith(b" (deleted)\n"):
                addresses, mode, _ = line.split(None, 2)
                if mode.endswith(b"s"):
                    first, last = (int(address, 16) for address in addresses.split(b"-"))
                    yield Path(f"/proc/{pid}/map_files/{first:x}-{last:x}")


def strays(uid: int) -> list[Path]:
    """What a user has left where every user may: in root's directories that are open to all. (What another user has
    opened is that user's.)"""
    found = []
    for above in _ABOVE:
        for entry, status in _inside(above):
            if status.st_uid == uid:
                found.append(Path(entry.path))
            elif entry.path not in _ABOVE and status.st_uid == 0 and _is_open_to_all(status.st_mode):
                found += [Path(each.path) for each, of in _inside(entry.path) if of.st_uid == uid]
    return found


def _is_open_to_all(mode: int) -> bool:
    return stat.S_ISDIR(mode) and bool(mode & stat.S_IWOTH)


def _inside(directory: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                yield entry, entry.stat(follow_symlinks=False)


@dataclass
class _Level:
    fd: int | None
    identity: tuple[int, int]
    pending: list[str]


ANY = Files(1 << 63, 1 << 63)


def files(root: Path, most: Files = ANY) -> Files:
    """What is at `root`. It stops when it has found more than `most` of either."""
    found = Files()
    linked: set[tuple[int, int]] = set()

    def count(status: os.stat_result) -> None:
        found.entries += 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if _identity(status) in linked:
                return
            linked.add(_identity(status))
        found.bytes += status.st_blocks * BLOCK

    def enter(fd: int) -> _Level:
        """Counts what is in the directory. What is to be visited comes in no order that a run could know."""
        pending = []
        with suppress(OSError), os.scandir(fd) as inside:
            for entry in inside:
                with suppress(OSError):
                    count(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.name)
                if found.bytes > most.bytes or found.entries > most.entries:
                    break
        random.shuffle(pending)
        return _Level(fd, _identity(os.fstat(fd)), pending)

    levels: list[_Level] = []
    try:
        count(root.lstat())
        levels.append(enter(os.open(root, DIRECTORY)))
        while levels and found.bytes <= most.bytes and found.entries <= most.entries:
            here = levels[-1]
            assert here.fd is not None
            if here.pending:
                with suppress(OSError):
                    levels.append(enter(os.open(here.pending.pop(), DIRECTORY, dir_fd=here.fd)))
                    _close(levels[-1 - _OPEN] if len(levels) > _OPEN else None)
                continue
            if len(levels) > 1 and levels[-2].fd is None:
                levels[-2].fd = os.open("..", DIRECTORY, dir_fd=here.fd)
                if _identity(os.fstat(levels[-2].fd)) != levels[-2].identity:
                    break  # it was moved: what was found is found, and the next time it goes another way
            _close(levels.pop())
    except OSError:
        pass
    finally:
        for level in levels:
            _close(level)
    return found


def _close(level: _Level | None) -> None:
    if level is not None and level.fd is not None:
        os.close(level.fd)
        level.fd = None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
