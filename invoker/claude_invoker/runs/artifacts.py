"""Files that a run left behind: found without following anything, kept for a while, typed by content.

The tree was written by a run that may be hostile, so nothing is collected before all its processes ended,
every open is O_NOFOLLOW relative to the directory it was listed in, and hard links are left alone.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import puremagic

from claude_invoker.model import Artifact

_HEAD = 262_144
_ZIP_KINDS = (
    (b"word/", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (b"xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (b"ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
)
_TEXT_TYPES = {
    ".md": "text/markdown",
    ".csv": "text/csv",
    ".json": "application/json",
    ".html": "text/html",
    ".htm": "text/html",
    ".svg": "image/svg+xml",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
_IGNORED = frozenset((".git", ".claude", "node_modules", "__pycache__"))

Seen = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Bounds:
    max_bytes: int
    max_count: int


def survey(work: Path) -> Seen:
    """What is there before the run: relative path → (inode, size, mtime)."""
    return {path: _mark(status) for path, status, _ in _files(work)}


def collect(work: Path, before: Seen, into: Path, bounds: Bounds) -> tuple[list[Artifact], int]:
    """Copies new and changed regular files to `into`; returns them and how many were left out by bounds."""
    found: list[Artifact] = []
    left_out, total = 0, 0
    for path, status, directory in sorted(_files(work), key=lambda entry: entry[0]):
        if before.get(path) == _mark(status) or status.st_nlink != 1 or not _is_speakable(path):
            continue
        if len(found) >= bounds.max_count or total + status.st_size > bounds.max_bytes:
            left_out += 1
            continue
        artifact = _keep(path, directory, into, bounds.max_bytes - total)
        if artifact is None:
            left_out += 1
            continue
        total += artifact.size
        found.append(artifact)
    return found, left_out


def content_type(path: str, head: bytes) -> str:
    """The media type by content; names only tell kinds of text apart."""
    if head.startswith(b"PK\x03\x04"):
        return next((kind for mark, kind in _ZIP_KINDS if mark in head), "application/zip")
    if not _is_text(head):
        try:
            return str(puremagic.magic_string(head)[0].mime_type or "application/octet-stream")
        except (puremagic.PureError, IndexError, ValueError):
            return "application/octet-stream"
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    guessed = _TEXT_TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "text/plain"
    return guessed if guessed.startswith("text/") or suffix in _TEXT_TYPES else "text/plain"


def _is_text(head: bytes) -> bool:
    if b"\0" in head or head.startswith(b"%PDF-"):
        return False
    try:
        head[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > 4096 - 4
    return True


def _is_speakable(path: str) -> bool:
    """Whether the name can be said in JSON and in a URL."""
    return path.isprintable() and "\\" not in path


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _files(work: Path) -> Iterator[tuple[str, os.stat_result, str]]:
    """(relative path, status, directory) of each regular file; links and other kinds are passed over."""
    for directory, names, files in os.walk(work, followlinks=False):
        names[:] = [name for name in names if name not in _IGNORED]
        for name in files:
            full = os.path.join(directory, name)  # noqa: PTH118
            try:
                status = os.lstat(full)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield os.path.relpath(full, work), status, directory


def _keep(path: str, directory: str, into: Path, room: int) -> Artifact | None:
    """Copies one file, hashing it on the way. None where it is not what was listed, or grew."""
    try:
        source = os.open(
            os.path.join(directory, os.path.basename(path)),  # noqa: PTH118, PTH119
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
        )
    except OSError:
        return None
    with open(source, "rb") as reader:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        target = into / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size, head = hashlib.sha256(), 0, b""
        with target.open("xb") as writer:
            while chunk := reader.read(1 << 20):
                head = head or chunk[:_HEAD]
                size += len(chunk)
                if size > room:
                    target.unlink()
                    return None
                digest.update(chunk)
                writer.write(chunk)
    return Artifact(path=path, size=size, type=content_type(path, head), sha256=digest.hexdigest())
