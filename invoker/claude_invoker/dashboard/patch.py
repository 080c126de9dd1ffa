"""What a run has changed, as a reader wants to see it: pure. The text is a run's, and so an enemy's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from claude_invoker.dashboard.plain import plain

MOST_BYTES = 256 << 10
"""Of a patch that are read for a page."""
_MOST_LINES = 3000
_LONGEST = 500
_KINDS = {"+": "added", "-": "removed", "@": "place"}


@dataclass
class Changed:
    """One file: its path, and its lines as (kind, text)."""

    path: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""
    """Instead of lines, or beside them."""


@dataclass(frozen=True)
class Shown:
    files: list[Changed]
    is_cut: bool
    """Whether the patch goes on."""


def shown(patch: bytes, *, is_whole: bool = True) -> Shown:
    """The files of a `git diff --patch --binary`, or of its beginning."""
    files: list[Changed] = []
    left = _MOST_LINES
    in_hunk = False
    for line in _lines(patch):
        if line.startswith("diff --git "):
            in_hunk = False
            files.append(Changed(_path(line.removeprefix("diff --git "))))
        elif not files:
            continue
        elif line.startswith("@@ ") or in_hunk:
            in_hunk = True
            left -= 1
            if left < 0:
                return Shown(files, is_cut=True)
            files[-1].lines.append((_KINDS.get(line[:1], "same"), visible(line)))
        elif line == "GIT binary patch":
            files[-1].note = "not text"
        elif line.startswith(("new file mode 120000", "deleted file mode 120000")):
            files[-1].note = "a symbolic link"
        elif line.startswith(("old mode ", "new mode ")):
            files[-1].note = f"{files[-1].note} {line}".strip()
    return Shown(files, is_cut=not is_whole)


def visible(text: str) -> str:
    """On one line of a page."""
    return plain(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def _lines(patch: bytes) -> Iterator[str]:
    """git's own: other letters that end a line are a part of one."""
    for line in patch.removesuffix(b"\n").split(b"\n"):
        yield line.decode("utf-8", "replace")


def _path(said: str) -> str:
    """`a/NAME b/NAME`, or each in quotes; without renames both halves are the same name."""
    half = said[: len(said) // 2]
    return visible(half.strip('"').removeprefix("a/"))
