"""`report.py REPORT.md REPORT.pdf`: a PDF of a text in Markdown, with tables, pictures and charts.

markdown-it reads the text; what it says goes to report.typ as data, never as Typst: so nothing has to be escaped.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import typst
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode as Node
from pypdf import PdfReader

TEMPLATE = Path(__file__).with_name("report.typ")
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg"}
_SERIES, _LABELS = 6, 200


class Wrong(Exception):
    """What is wrong with the text."""


def spans(node: Node, style: frozenset[str] = frozenset(), link: str = "") -> list[dict[str, Any]]:
    """The text of an inline node, in pieces of one style each."""
    found: list[dict[str, Any]] = []
    for child in node.children:
        if child.type in ("text", "code_inline"):
            own = style | {"code"} if child.type == "code_inline" else style
            found.append({"text": child.content, "style": sorted(own), "link": link})
        elif child.type in ("softbreak", "hardbreak"):
            found.append({"text": "\n" if child.type == "hardbreak" else " ", "style": [], "link": ""})
        elif child.type == "link":
            found += spans(child, style, str(child.attrs.get("href", "")))
        elif child.type in ("strong", "em", "s"):
            found += spans(child, style | {child.type}, link)
        elif child.type == "image":
            raise Wrong(f"the picture {child.attrs.get('src')} must stand on a line by itself")
        elif child.type == "inline":
            found += spans(child, style, link)
    return found


def blocks(nodes: list[Node]) -> list[dict[str, Any]]:
    return [made for node in nodes for made in block(node)]


def block(node: Node) -> list[dict[str, Any]]:
    if node.type == "heading":
        return [{"kind": "heading", "level": int(node.tag[1]), "spans": spans(node)}]
    if node.type == "paragraph":
        inside = node.children[0].children
        if len(inside) == 1 and inside[0].type == "image":
            return [picture(inside[0])]
        return [{"kind": "paragraph", "spans": spans(node)}]
    if node.type in ("bullet_list", "ordered_list"):
        first = int(node.attrs.get("start", 1))
        items = [blocks(item.children) for item in node.children]
        return [{"kind": "list", "ordered": node.type == "ordered_list", "start": first, "items": items}]
    if node.type == "blockquote":
        return [{"kind": "quote", "blocks": blocks(node.children)}]
    if node.type in ("fence", "code_block"):
        kind, _, rest = (node.info or "").strip().partition(" ")
        return [chart(rest, node.content) if kind == "chart" else {"kind": "code", "text": node.content}]
    if node.type == "table":
        return [table(node)]
    return [{"kind": "rule"}] if node.type == "hr" else []


def table(node: Node) -> dict[str, Any]:
    rows = [row for part in node.children for row in part.children]
    cells = [[spans(cell) for cell in row.children] for row in rows]
    sides = [str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left" for cell in rows[0].children]
    return {"kind": "table", "head": cells[0], "rows": cells[1:], "align": sides}


def picture(node: Node) -> dict[str, Any]:
    source = str(node.attrs.get("src", ""))
    path = Path(source)
    inside = path.resolve().is_relative_to(Path.cwd())
    if path.suffix.lower() not in PICTURES or not inside or not path.is_file():
        raise Wrong(f"the picture {source} is not a {', '.join(sorted(PICTURES))} of this directory")
    return {"kind": "picture", "path": "/" + path.resolve().relative_to(Path.cwd()).as_posix(), "caption": node.content}


def chart(said: str, text: str) -> dict[str, Any]:
    """Values become parts of the height, so that the template only draws."""
    kind, _, title = said.partition(" ")
    if kind not in ("bar", "line"):
        raise Wrong(f"chart {kind or '?'}: must be bar or line, then a title")
    if text.strip().endswith(".csv"):
        try:
            text = Path(text.strip()).read_text("utf-8")
        except OSError as error:
            raise Wrong(f"chart {title}: {text.strip()}: {error.strerror}") from error
    rows = [row for row in csv.reader(io.StringIO(text.strip())) if row]
    if len(rows) < 2 or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        raise Wrong(f"chart {title}: needs a row of names and rows of a label and as many numbers")
    if len(rows[0]) - 1 > _SERIES or len(rows) - 1 > _LABELS:
        raise Wrong(f"chart {title}: at most {_SERIES} series and {_LABELS} labels can be told apart")
    try:
        values = [[float(cell.replace("\u2212", "-")) for cell in row[1:]] for row in rows[1:]]
    except ValueError as error:
        raise Wrong(f"chart {title}: {error}") from error
    if not all(math.isfinite(value) for row in values for value in row):
        raise Wrong(f"chart {title}: a value is no number")
    low, high, ticks = axis(min(min(row) for row in values), max(max(row) for row in values))

    def part(value: float) -> float:
        return (value - low) / (high - low)

    return {
        "kind": "chart",
        "form": kind,
        "title": title.strip(),
        "labels": [row[0].strip() for row in rows[1:]],
        "series": [
            {"name": name.strip(), "parts": [part(row[number]) for row in values]}
            for number, name in enumerate(rows[0][1:])
        ],
        "zero": part(0.0),
        "ticks": [{"text": f"{tick:,.6g}", "part": part(tick)} for tick in ticks],
    }


def axis(least: float, most: float) -> tuple[float, float, list[float]]:
    """From where to where, zero included, with some four round steps."""
    least, most = min(0.0, least), max(0.0, most)
    rough = (most - least or 1.0) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough * 0.999)
    low, high = math.floor(least / step) * step, math.ceil((most or step) / step) * step
    return low, high, [low + step * number for number in range(round((high - low) / step) + 1)]


def document(text: str, options: argparse.Namespace) -> dict[str, Any]:
    # No HTML: it would be left out without a word.
    tree = Node(MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).parse(text))
    nodes = list(tree.children)
    title: list[dict[str, Any]] = []
    if nodes and nodes[0].type == "heading" and nodes[0].tag == "h1":
        title = spans(nodes.pop(0))
    return {
        "title": title,
        "plain": "".join(span["text"] for span in title),
        "author": options.author,
        "date": options.date,
        "paper": options.paper,
        "landscape": options.landscape,
        "small": options.small,
        "blocks": blocks(nodes),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--paper", choices=("a4", "us-letter", "a5"), default="a4")
    parser.add_argument("--landscape", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--author", default="")
    parser.add_argument("--date", default="")
    options = parser.parse_args(arguments)
    try:
        given = json.dumps(document(options.source.read_text("utf-8"), options))
        # The working directory is the root, so that pictures of it are found, and nothing beyond it.
        # (Its types want the root in bytes, too, where the text is.)
        made: bytes = typst.compile(  # type: ignore[call-overload]
            TEMPLATE.read_bytes(), root=".", format="pdf", sys_inputs={"report": given}
        )
        options.target.write_bytes(made)
    except Wrong as why:
        print(f"{options.source}: {why}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except UnicodeDecodeError:
        print(f"{options.source} is not UTF-8 text", file=sys.stderr)
        return 1
    except typst.TypstError as error:
        print(f"{options.source}: {error.message}", file=sys.stderr)
        return 1
    print(f"{options.target}: pages: {len(PdfReader(io.BytesIO(made)).pages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
