"""Documents of the repository as pages of the site: what links to another page links to it there."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from docsite.contents import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^[ >]*(```|~~~)")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|mailto:)([^)\s]+)\)")


def documents() -> list[str]:
    """All that are pages, by their paths in the repository: those of the contents, then those that one of them links,
    such as the identity providers."""
    named = [f"{page}.md" for section in SECTIONS for page in section.pages if not page.startswith("reference/")]
    beside = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "identity").glob("*.md"))]
    parts = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("*/README.md"))]
    return list(dict.fromkeys([*named, *beside, *parts]))


def place(document: str) -> str:
    """Where it is on the site: `docs/identity/README.md` → `identity/readme.md`."""
    path = document.removeprefix("docs/")
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.lower() if name.removesuffix(".md").isupper() else name)


def linked(text: str, document: str, pages: Iterable[str]) -> str:
    """The text of a document with its links as they are on the site. What is no page there is named, and not linked."""
    known = set(pages)

    def replaced(match: re.Match[str]) -> str:
        words, (target, _, anchor) = match[1], match[2].partition("#")
        if not target:
            return match[0]
        to = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
        if to not in known:
            return words
        here = posixpath.dirname(place(document))
        found = posixpath.relpath(place(to), here or ".")
        return f"[{words}]({found}{'#' if anchor else ''}{anchor})"

    return "".join(line if is_code else _LINK.sub(replaced, line) for line, is_code in _lines(text))


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line with its end, and whether it is code."""
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if found and fence in ("", found[1]):
            fence = "" if fence else found[1]
            yield line, True
        else:
            yield line, bool(fence)


def index(generated: Iterable[str] = ()) -> str:
    """The first page: the contents, and these pages, which are not always there."""
    named = {f"{page}.md" for section in SECTIONS for page in section.pages}
    sections = [(section.title, [f"{page}.md" for page in section.pages]) for section in SECTIONS]
    sections.append(("More", [*generated, *(each for each in documents() if each not in named)]))
    rows = [
        "# kong-claude",
        "",
        "Kong Gateway as the gateway for Claude Code, and a service behind it that runs the real Claude CLI: who may "
        "run it, with which models, tools and budget, how often and how many at once.",
        "",
    ]
    for title, its in sections:
        rows += ["```{toctree}", ":maxdepth: 1", f":caption: {title}", ""]
        rows += [place(page).removesuffix(".md") for page in its]
        rows += ["```", ""]
    return "\n".join(rows)
