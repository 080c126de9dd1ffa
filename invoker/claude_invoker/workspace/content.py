"""Whether what a commit holds may be written to a disk: pure."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# What HFS+ leaves out of names (git's `core.protectHFS`).
_IGNORED = dict.fromkeys((*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF), None)
_LONGEST, _LONGEST_NAME, _DEEPEST = 3000, 255, 100
_LINK, _MODULE = "120000", "160000"
_HOPS = 40
_TARGET = 4095
"""Bytes that a symbolic link can say on Linux."""
_STEPS = 5_000_000
"""Parts of paths that all links of a commit may lead through: ordinary ones take some hundred thousand at most."""


class Unacceptable(Exception):
    """A commit that is not checked out, and why."""


@dataclass(frozen=True)
class Bounds:
    """Of all that a commit holds; 0: any number."""

    entries: int = 0
    bytes: int = 0
    file_size: int = 0


@dataclass(frozen=True)
class Listed:
    """`links` and `modules` (submodules): path → the link's blob, the submodule's commit. `modules_said`: whether there
    is a `.gitmodules`."""

    entries: int
    bytes: int
    links: dict[str, str]
    modules: dict[str, str]
    modules_said: bool


def check(listing: bytes, bounds: Bounds) -> Listed:
    """What `git ls-tree -r -t -l -z` prints. Raises Unacceptable."""
    links: dict[str, str] = {}
    modules: dict[str, str] = {}
    modules_said = False
    seen: dict[str, str] = {}
    total = entries = 0
    for mode, blob, size, path in _entries(listing):
        entries += 1
        total += size
        if bounds.entries and entries > bounds.entries:
            raise Unacceptable(f"more than {bounds.entries:,} files and directories (INVOKER_TREE_ENTRIES_LIMIT)")
        if bounds.bytes and total > bounds.bytes:
            raise Unacceptable(f"more than {bounds.bytes:,} bytes (INVOKER_TREE_LIMIT)")
        if bounds.file_size and size > bounds.file_size:
            raise Unacceptable(f"{_shown(path)} has more than {bounds.file_size:,} bytes (INVOKER_FILE_SIZE_LIMIT)")
        _check_path(path)
        name = folded(path)
        if name in seen:
            raise Unacceptable(f"{_shown(seen[name])} and {_shown(path)} are one name on some systems")
        seen[name] = path
        if mode == _LINK:
            if size > _TARGET:
                raise Unacceptable(f"the symbolic link {_shown(path)} is longer than a link can be")
            links[path] = blob
        elif mode == _MODULE:
            modules[path] = blob
        elif path == ".gitmodules":
            modules_said = True
    return Listed(entries, total, links, modules, modules_said)


def check_links(targets: Mapping[str, str]) -> None:
    """`targets`: path → what the link there says. Raises Unacceptable for one that leads out of the tree, by whatever
    other links, and for more of them than can be followed."""
    steps = 0
    for path in targets:
        left = path.split("/")[::-1]
        at: list[str] = []
        hops = 0
        while left:
            part = left.pop()
            steps += 1
            if steps > _STEPS:
                raise Unacceptable("its symbolic links lead through each other too often")
            if part in ("", "."):
                continue
            if part == "..":
                if not at:
                    raise Unacceptable(f"the symbolic link {_shown(path)} leads out of the repository")
                at.pop()
                continue
            at.append(part)
            target = targets.get("/".join(at))
            if target is None:
                continue
            hops += 1
            if hops > _HOPS:  # a circle: it leads nowhere
                break
            if posixpath.isabs(target):
                raise Unacceptable(f"the symbolic link {_shown(path)} leads out of the repository")
            at.pop()
            left += target.split("/")[::-1]


def is_git(name: str) -> bool:
    """Whether some file system takes a name for `.git`."""
    plain = name.translate(_IGNORED).casefold().partition(":")[0].rstrip(". ")
    return plain in (".git", "git~1")


def folded(name: str) -> str:
    """The same for names that are one on some systems: those that know no case, or one form of a letter only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _check_path(path: str) -> None:
    parts = path.split("/")
    if len(path) > _LONGEST or len(parts) > _DEEPEST:
        raise Unacceptable(f"{_shown(path)} is too long or too deep")
    for name in parts:
        if name in ("", ".", "..") or is_git(name):
            raise Unacceptable(f"{_shown(path)} is not a path that a repository may have")
        if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
            raise Unacceptable(f"{_shown(path)} is too long")


def _entries(listing: bytes) -> Iterator[tuple[str, str, int, str]]:
    """(mode, object, bytes, path) of each."""
    at = 0
    while (end := listing.find(b"\0", at)) >= 0:  # not all at once: there may be millions, of which some are looked at
        said, _, path = listing[at:end].partition(b"\t")
        mode, _, blob, size = said.decode().split()
        yield mode, blob, int(size) if size.isdigit() else 0, path.decode("utf-8", "surrogateescape")
        at = end + 1


def _shown(path: str) -> str:
    return ascii(path)[1:-1][:200]
