"""`check.py PAGE.html`: whether a page stands by itself, and what keeps somebody from reading it. Needs no library."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"src", "srcset", "poster", "data", "background"}
_WITH_HREF = {"link", "image", "use"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_MAY_STAY_OPEN = {"p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "html", "body", "head"}
_OUTSIDE = re.compile(r"url\(\s*['\"]?\s*(?!data:|#)([^'\")\s]+)|@import\s+['\"]([^'\"]+)", re.IGNORECASE)
_ASKS = re.compile(r"\b(fetch|importScripts|XMLHttpRequest|WebSocket|EventSource)\s*\(")
_MOST = 2 << 20


class Page(HTMLParser):
    """`found`: (line, what is wrong)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.seen: list[str] = []
        self.open: list[tuple[str, int]] = []
        self.ids: set[str] = set()
        self.labelled: set[str] = set()
        self.fields: list[tuple[int, str]] = []
        self.heading = 0
        self.words: list[str] = []
        self.title = ""

    def wrong(self, what: str, line: int | None = None) -> None:
        self.found.append((line or self.getpos()[0], what))

    def handle_decl(self, decl: str) -> None:
        self.seen.append(decl.lower())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append((tag, self.getpos()[0]))
        for name, value in given.items():
            loads = name in _LOADS or (name in ("href", "xlink:href") and tag in _WITH_HREF)
            if loads and value and not value.startswith(("data:", "#")):
                self.wrong(f"<{tag} {name}> is loaded from {value[:80]}: put it into the page")
            if name == "style":
                self.styles(value)
        if (identity := given.get("id")) is not None:
            if identity in self.ids:
                self.wrong(f"id {identity} is there twice")
            self.ids.add(identity)
        if tag == "html" and not given.get("lang"):
            self.wrong("<html> has no lang")
        if tag == "img" and "alt" not in given:
            self.wrong("<img> has no alt")
        if tag == "meta" and given.get("name", "").lower() == "viewport":
            self.seen.append("viewport")
        if tag == "meta" and "charset" in given:
            self.seen.append("charset")
        if tag in ("input", "select", "textarea") and given.get("type") not in ("hidden", "submit", "button", "reset"):
            named = "aria-label" in given or "aria-labelledby" in given or any(each == "label" for each, _ in self.open)
            if not named:
                self.fields.append((self.getpos()[0], given.get("id", "")))
        if tag == "label":
            self.labelled.add(given.get("for", ""))
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            level = int(tag[1])
            if level > self.heading + 1:
                self.wrong(
                    f"<{tag}> follows {f'<h{self.heading}>' if self.heading else 'nothing'}: a level is left out"
                )
            self.heading = level

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        while self.open:
            name, line = self.open.pop()
            if name == tag:
                return
            if name not in _MAY_STAY_OPEN:
                self.wrong(f"<{name}> is not closed", line)
        self.wrong(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        inside = self.open[-1][0] if self.open else ""
        if inside == "style":
            self.styles(data)
        elif inside == "script":
            if asked := _ASKS.search(data):
                self.wrong(f"the script asks another place ({asked[1]}): write the data into the page")
        elif inside == "title":
            self.title += data
        elif data.strip():
            self.words.append(data)

    def styles(self, text: str) -> None:
        for found in _OUTSIDE.finditer(text):
            line = self.getpos()[0] + text.count("\n", 0, found.start())
            self.wrong(f"a style is loaded from {(found[1] or found[2])[:80]}: put it into the page", line)


def problems(text: str) -> list[tuple[int, str]]:
    """(line, what is wrong), in the order of the lines."""
    page = Page()
    page.feed(text)
    page.close()
    for name, line in page.open:
        if name not in _MAY_STAY_OPEN:
            page.wrong(f"<{name}> is not closed", line)
    for needed, what in (
        ("doctype html", "the first line is not <!doctype html>"),
        ("charset", "there is no <meta charset=utf-8>"),
        ("viewport", "there is no <meta name=viewport content='width=device-width'>"),
        ("main", "there is no <main>"),
        ("h1", "there is no <h1>"),
    ):
        if needed not in page.seen:
            page.wrong(what, 1)
    if page.seen.count("h1") > 1:
        page.wrong("there is more than one <h1>", 1)
    if not page.title.strip():
        page.wrong("there is no <title>", 1)
    for line, name in page.fields:
        if name not in page.labelled - {""}:
            page.wrong("a field has no label", line)
    if not page.words:
        page.wrong("it says nothing", 1)
    if len(text.encode()) > _MOST:
        page.wrong(f"it has more than {_MOST >> 20} MiB", 1)
    return sorted(page.found)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: check.py PAGE.html", file=sys.stderr)
        return 2
    try:
        text = Path(arguments[0]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 2
    found = problems(text)
    for line, what in found:
        print(f"{arguments[0]}:{line}: {what}")
    if not found:
        print(f"{arguments[0]}: stands by itself, {len(text.encode()):,} bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
