"""A session's tree as objects of the store: what is in it, and its content in pieces, each kept once.

A turn adds one pack, of the pieces that are new, and one manifest, which names all pieces by digest, pack and place. A
transcript grows at its end, so that of a long one its last piece is sent. Only to be used while nothing of a run lives.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from claude_contract.versions import check
from claude_invoker.cli import walk
from claude_invoker.cli.tree import KEPT, Tree

VERSION = 1
PIECE = 1 << 20
PARTS = ("work", "config/projects")
"""What a session keeps of its tree: all else is new with each turn (`Tree.create`)."""
_MOST_PACKS = 24
_SLACK = 8 << 20
"""Bytes of packs that nothing needs any more, beside as many as are needed: then all is packed anew."""
_MODES = 0o777
"""Of what a run has set: none that gives rights (setuid, setgid), wherever that comes back."""
_LONGEST_PATH = 3000
"""Bytes below the tree's root: whoever makes it again does so by path, of which Linux takes 4,096."""
_NOTHING = hashlib.sha256(bytes(PIECE)).digest()
"""Of a piece that is a hole, as most of a sparse file is."""
_GAP = 64 << 10
_RUN = 16 << 20
"""Pieces that lie so near to each other are fetched in one request, up to so many bytes."""


class Unusable(Exception):
    """A manifest that no save of ours can have made."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    digest: bytes
    pack: int
    offset: int
    length: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """`path` is relative to the tree's root. `target` is a link's."""

    path: bytes
    kind: str
    mode: int
    mtime_ns: int
    size: int = 0
    pieces: tuple[Piece, ...] = ()
    target: bytes = b""

    @property
    def content(self) -> tuple[str, int, bytes, tuple[bytes, ...]]:
        return self.kind, self.size, self.target, tuple(piece.digest for piece in self.pieces)


class Manifest(msgspec.Struct, frozen=True):
    """`root`: where the tree was. `packs`: (name in the store, bytes)."""

    root: str
    entries: tuple[Entry, ...]
    packs: tuple[tuple[str, int], ...] = ()
    v: int = VERSION

    @property
    def tree(self) -> str:
        """The name of the tree's directory."""
        return Path(self.root).name


class _Version(msgspec.Struct):
    v: int = 0


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Manifest).decode


def encode(manifest: Manifest) -> bytes:
    return _ENCODE(manifest)


def decode(stored: bytes) -> Manifest:
    """Raises UnknownVersion, Unusable."""
    try:
        check("the session", msgspec.msgpack.decode(stored, type=_Version).v, VERSION)
        return _DECODE(stored)
    except msgspec.MsgspecError as error:
        raise Unusable(str(error)) from error


def save(tree: Tree, before: Manifest | None, pack: Path, name: str) -> Manifest:
    """What is in the tree now; what is neither file, directory nor link goes. Pieces that no pack has are written to
    the file `pack`, which is to be kept as `name`; it is empty where there are none. Raises walk.TooMuch, OSError."""
    tree.straighten()
    manifest = _saved(tree, before, pack, name)
    live = sum({piece.digest: piece.length for entry in manifest.entries for piece in entry.pieces}.values())
    if len(manifest.packs) > _MOST_PACKS or sum(size for _, size in manifest.packs) > 2 * live + _SLACK:
        return _saved(tree, None, pack, name)
    return manifest


def _saved(tree: Tree, before: Manifest | None, pack: Path, name: str) -> Manifest:
    packs = [] if before is None else list(before.packs)
    known = {piece.digest: piece for entry in (before.entries if before else ()) for piece in entry.pieces}
    entries: list[Entry] = []
    number, written, left = len(packs), 0, KEPT.bytes
    with pack.open("wb") as into:
        for part in PARTS:
            if not (tree.root / part).is_dir() or (tree.root / part).is_symlink():
                continue
            for found in walk.walk(tree.root / part, KEPT):
                path = os.fsencode(f"{part}/{found.path}")
                if len(path) > _LONGEST_PATH:
                    raise walk.TooMuch(f"a path of more than {_LONGEST_PATH:,} bytes")
                mode, mtime = stat.S_IMODE(found.status.st_mode) & _MODES, found.status.st_mtime_ns
                if found.is_directory:
                    entries.append(Entry(path, "d", mode, mtime))
                elif stat.S_ISLNK(found.status.st_mode):
                    target = os.readlink(os.fsencode(found.name), dir_fd=found.directory)
                    entries.append(Entry(path, "l", mode, mtime, target=target))
                elif found.is_regular:
                    pieces = []
                    for content in _pieces(found):
                        left -= len(content)
                        if left < 0:
                            raise walk.TooMuch(f"more than {KEPT.bytes:,} bytes")
                        digest = hashlib.sha256(content).digest()
                        if (piece := known.get(digest)) is None:
                            into.write(content)
                            piece = known[digest] = Piece(digest, number, written, len(content))
                            written += len(content)
                        pieces.append(piece)
                    entries.append(Entry(path, "f", mode, mtime, sum(p.length for p in pieces), tuple(pieces)))
                else:  # a pipe here would be one where a file of the next version is to be written
                    os.unlink(os.fsencode(found.name), dir_fd=found.directory)
    used = {piece.pack for entry in entries for piece in entry.pieces}
    packs += [(name, written)] if written else []
    return _without_unused(Manifest(str(tree.root), tuple(entries), tuple(packs)), used)


def _pieces(found: walk.Entry) -> Iterator[bytes]:
    source = walk.open_file(found)
    with open(source, "rb", buffering=0) as reader:
        while content := reader.read(PIECE):
            yield content


def _without_unused(manifest: Manifest, used: set[int]) -> Manifest:
    """Packs of which no piece is needed are left out, so that they can go."""
    numbers = sorted(used)
    if len(numbers) == len(manifest.packs):
        return manifest
    new = {old: number for number, old in enumerate(numbers)}
    entries = tuple(
        msgspec.structs.replace(
            entry, pieces=tuple(msgspec.structs.replace(piece, pack=new[piece.pack]) for piece in entry.pieces)
        )
        for entry in manifest.entries
    )
    packs = tuple(manifest.packs[old] for old in numbers)
    return msgspec.structs.replace(manifest, entries=entries, packs=packs)


@dataclass(frozen=True)
class Fetch:
    """A range of a pack, and where its pieces go: (path, offset there, piece, offset in the range)."""

    pack: str
    start: int
    end: int
    into: tuple[tuple[Path, int, Piece, int], ...]


def prepare(tree: Tree, wanted: Manifest, have: Manifest | None) -> list[Fetch]:
    """Makes the tree that of `wanted` but for the content that is to be fetched, which is said. `have`: what is in it
    for certain; None: nothing is. Raises OSError, Unusable."""
    _check(wanted)
    old = {entry.path: entry for entry in (have.entries if have else ())}
    new = {entry.path: entry for entry in wanted.entries}
    tree.straighten()
    if have is None:
        for part in PARTS:
            walk.delete(tree.root / part)
    tree.root.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(old, reverse=True):  # what is in a directory before it
        if path not in new or new[path].kind != old[path].kind:
            walk.delete(tree.root / os.fsdecode(path))
    for part in PARTS:
        (tree.root / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    missing: list[tuple[Piece, Path, int]] = []
    for entry in wanted.entries:
        before = old.get(entry.path)
        at = tree.root / os.fsdecode(entry.path)
        if before is not None and before.kind == entry.kind == "f" and at.lstat().st_nlink > 1:
            before = None  # what is written to one of its names would be in the others
        if before is not None and before.content == entry.content:
            continue
        if before is None:
            walk.delete(at)
        if entry.kind == "d":
            at.mkdir(mode=0o700, exist_ok=True)
        elif entry.kind == "l":
            at.unlink(missing_ok=True)
            at.symlink_to(os.fsdecode(entry.target))
        else:
            missing += _file(at, entry, before)
    return list(_ranges(wanted, missing))


def _check(wanted: Manifest) -> None:
    """Raises Unusable for what would lead out of the tree."""
    directories = set(map(os.fsencode, PARTS))
    for entry in wanted.entries:
        parent, _, name = entry.path.rpartition(b"/")
        if name in (b"", b".", b"..") or b"\0" in entry.path or parent not in directories:
            raise Unusable("a path that is in no directory of the tree")
        if entry.kind == "d":
            directories.add(entry.path)
        elif entry.kind not in ("f", "l"):
            raise Unusable("an entry that is neither file, directory nor link")
        if any(piece.pack >= len(wanted.packs) or min(piece.offset, piece.length) < 0 for piece in entry.pieces):
            raise Unusable("a piece in no pack")


def _file(at: Path, entry: Entry, before: Entry | None) -> Iterator[tuple[Piece, Path, int]]:
    """Those pieces that are not there yet, and where they go."""
    have = [] if before is None or before.kind != "f" else [piece.digest for piece in before.pieces]
    with at.open("r+b" if have else "wb") as file:
        file.truncate(entry.size)
    offset = 0
    for number, piece in enumerate(entry.pieces):
        if piece.digest != (_NOTHING if number >= len(have) else have[number]):
            yield piece, at, offset
        offset += piece.length


def _ranges(wanted: Manifest, missing: Iterable[tuple[Piece, Path, int]]) -> Iterator[Fetch]:
    run: list[tuple[Piece, Path, int]] = []
    for each in sorted(missing, key=lambda found: (found[0].pack, found[0].offset)):
        piece = each[0]
        if run:
            first, last = run[0][0], run[-1][0]
            near = piece.pack == last.pack and piece.offset - (last.offset + last.length) <= _GAP
            if not near or piece.offset + piece.length - first.offset > _RUN:
                yield _fetch(wanted, run)
                run = []
        run.append(each)
    if run:
        yield _fetch(wanted, run)


def _fetch(wanted: Manifest, run: list[tuple[Piece, Path, int]]) -> Fetch:
    start = run[0][0].offset
    end = max(piece.offset + piece.length for piece, _, _ in run)
    into = tuple((path, offset, piece, piece.offset - start) for piece, path, offset in run)
    return Fetch(wanted.packs[run[0][0].pack][0], start, end, into)


def place(fetch: Fetch, content: bytes) -> None:
    """Writes what was fetched to where it goes. Raises OSError, Unusable for what is not what was saved."""
    if len(content) != fetch.end - fetch.start:
        raise Unusable("a pack is shorter than its manifest says")
    checked: set[bytes] = set()
    for path, offset, piece, at in fetch.into:
        part = memoryview(content)[at : at + piece.length]
        if piece.digest not in checked and hashlib.sha256(part).digest() != piece.digest:
            raise Unusable("a piece has another content")
        checked.add(piece.digest)
        with path.open("r+b", buffering=0) as file:
            _write(file, offset, part)


def _write(file: IO[bytes], offset: int, content: memoryview) -> None:
    while content:
        written = os.pwrite(file.fileno(), content, offset)
        content, offset = content[written:], offset + written


def finish(tree: Tree, wanted: Manifest) -> None:
    """Modes and times, the innermost first; and what the CLI looks for by the tree's path (see `settle`). Raises
    OSError, Unusable for content that is not what was saved."""
    for entry in reversed(wanted.entries):
        at = tree.root / os.fsdecode(entry.path)
        if entry.kind == "f" and at.stat().st_size != entry.size:
            raise Unusable("a file has not the size that was saved")
        os.utime(at, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        if entry.kind != "l":
            at.chmod(entry.mode)


def settle(tree: Tree, wanted: Manifest) -> bool:
    """Where the tree was elsewhere: the CLI finds a conversation by the directory that it was held in, and the model
    has read paths in it. Whether anything has changed. Raises OSError."""
    if wanted.root == str(tree.root):
        return False
    old, new = _project(Path(wanted.root) / "work"), _project(tree.work)
    if (tree.transcripts / old).is_dir():
        walk.delete(tree.transcripts / new)
        (tree.transcripts / old).rename(tree.transcripts / new)
    for path in tree.transcripts.rglob("*.jsonl"):
        if path.is_file() and not path.is_symlink():
            _rename_within(path, os.fsencode(wanted.root), os.fsencode(tree.root), tree.root / ".settling")
    return True


def _rename_within(path: Path, old: bytes, new: bytes, made: Path) -> None:
    """Writes a file anew, by pieces (a run says how long it is), `new` in the place of `old`. Raises OSError."""
    status, overlap, changed = path.stat(), len(old) - 1, False
    with path.open("rb") as source, made.open("wb") as into:
        left = b""
        while piece := source.read(PIECE):
            text = left + piece
            changed |= old in text
            *before, text = text.split(old)
            into.writelines(part + new for part in before)
            cut = max(0, len(text) - overlap)
            into.write(text[:cut])
            left = text[cut:]
        into.write(left)
    if changed:
        made.chmod(stat.S_IMODE(status.st_mode))
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
        made.replace(path)
    else:
        made.unlink()


def _project(work: Path) -> str:
    """What the CLI calls the directory with the transcripts of a working directory."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in str(work))
