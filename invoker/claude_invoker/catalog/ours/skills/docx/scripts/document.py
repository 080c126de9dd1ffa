"""`document.py DOCUMENT.md DOCUMENT.docx`: a Word document of a text in Markdown."""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path
from typing import Any

import docx
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.image.exceptions import UnrecognizedImageError
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.exceptions import PackageNotFoundError
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Pt
from docx.text.paragraph import Paragraph
from docx.text.run import Run
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode as Node

PICTURES = {".png", ".jpg", ".jpeg", ".gif"}
_SIDES = {"center": WD_ALIGN_PARAGRAPH.CENTER, "right": WD_ALIGN_PARAGRAPH.RIGHT}
_DEEPEST = 3  # Word's styles of lists


class Wrong(Exception):
    """What is wrong with the text."""


def write(paragraph: Paragraph, node: Node, style: frozenset[str] = frozenset(), link: str = "") -> None:
    """The text of an inline node."""
    for child in node.children:
        if child.type in ("text", "code_inline"):
            run = linked(paragraph, link) if link else paragraph.add_run()
            run.text = child.content
            run.bold, run.italic = "strong" in style or None, "em" in style or None
            run.font.strike = "s" in style or None
            if child.type == "code_inline":
                run.font.name = "Consolas"
        elif child.type == "softbreak":
            paragraph.add_run(" ")
        elif child.type == "hardbreak":
            paragraph.add_run().add_break()
        elif child.type == "link":
            write(paragraph, child, style, str(child.attrs.get("href", "")))
        elif child.type in ("strong", "em", "s"):
            write(paragraph, child, style | {child.type}, link)
        elif child.type == "inline":
            write(paragraph, child, style, link)
        elif child.type == "image":
            raise Wrong(f"the picture {child.attrs.get('src')} must stand on a line by itself")


def linked(paragraph: Paragraph, address: str) -> Run:
    """A run within a hyperlink, which the library has no call for."""
    link = OxmlElement("w:hyperlink")
    link.set(qn("r:id"), paragraph.part.relate_to(address, RELATIONSHIP_TYPE.HYPERLINK, is_external=True))
    inner = OxmlElement("w:r")
    link.append(inner)
    paragraph._p.append(link)
    run = Run(inner, paragraph)
    run.font.underline = True
    return run


def add(document: Any, nodes: list[Node], depth: int = 0) -> None:
    for node in nodes:
        if node.type == "heading":
            write(document.add_heading(level=min(9, int(node.tag[1]))), node)
        elif node.type == "paragraph":
            inside = node.children[0].children
            if len(inside) == 1 and inside[0].type == "image":
                picture(document, inside[0])
            else:
                write(document.add_paragraph(), node)
        elif node.type in ("bullet_list", "ordered_list"):
            listed(document, node, depth)
        elif node.type == "blockquote":
            for child in node.children:
                if child.type == "paragraph":
                    write(document.add_paragraph(style="Intense Quote"), child)
                else:
                    add(document, [child], depth)
        elif node.type in ("fence", "code_block"):
            run = document.add_paragraph(style="No Spacing").add_run(node.content.rstrip("\n"))
            run.font.name, run.font.size = "Consolas", Pt(9)
        elif node.type == "table":
            table(document, node)
        elif node.type == "hr":
            document.add_page_break()


def listed(document: Any, node: Node, depth: int) -> None:
    kind = "List Number" if node.type == "ordered_list" else "List Bullet"
    style = kind if not depth else f"{kind} {min(depth + 1, _DEEPEST)}"
    for item in node.children:
        for number, child in enumerate(item.children):
            if child.type == "paragraph":
                write(document.add_paragraph(style=style if not number else "List Continue"), child)
            else:
                add(document, [child], depth + 1)


def table(document: Any, node: Node) -> None:
    rows = [row for part in node.children for row in part.children]
    made = document.add_table(rows=len(rows), cols=len(rows[0].children), style="Table Grid")
    for number, row in enumerate(rows):
        for cell, given in zip(made.rows[number].cells, row.children, strict=True):
            paragraph = cell.paragraphs[0]
            write(paragraph, given, frozenset({"strong"}) if not number else frozenset())
            paragraph.alignment = _SIDES.get(str(given.attrs.get("style", "")).removeprefix("text-align:"))
    repeated = OxmlElement("w:tblHeader")  # at the top of each page
    made.rows[0]._tr.get_or_add_trPr().append(repeated)
    document.add_paragraph()


def picture(document: Any, node: Node) -> None:
    source = str(node.attrs.get("src", ""))
    path = Path(source)
    inside = path.resolve().is_relative_to(Path.cwd())
    if path.suffix.lower() not in PICTURES or not inside or not path.is_file():
        raise Wrong(f"the picture {source} is not a {', '.join(sorted(PICTURES))} of this directory")
    section = document.sections[0]
    most = section.page_width - section.left_margin - section.right_margin
    try:
        shape = document.add_picture(str(path))
    except UnrecognizedImageError as error:
        raise Wrong(f"the picture {source} cannot be read") from error
    if shape.width > most:
        shape.height, shape.width = round(shape.height * most / shape.width), most
    shape._inline.docPr.set("descr", node.content)  # what a screen reader says
    if node.content:
        document.add_paragraph(node.content, style="Caption")


def opened(template: Path | None) -> Any:
    """A document without text."""
    document = docx.Document(None if template is None else str(template))
    for element in list(document.element.body):
        if not element.tag.endswith("}sectPr"):
            document.element.body.remove(element)
    return document


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--author", default="")
    options = parser.parse_args(arguments)
    # No HTML: it would be left out without a word.
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    try:
        nodes = list(Node(markdown.parse(options.source.read_text("utf-8"))).children)
        document = opened(options.template)
        document.core_properties.author = options.author
        if nodes and nodes[0].type == "heading" and nodes[0].tag == "h1":
            title = document.add_paragraph(style="Title")
            write(title, nodes.pop(0))
            document.core_properties.title = title.text
        add(document, nodes)
        document.save(str(options.target))
    except Wrong as why:
        print(f"{options.source}: {why}", file=sys.stderr)
        return 1
    except UnicodeDecodeError:
        print(f"{options.source} is not UTF-8 text", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"{options.template} has no style {error}", file=sys.stderr)
        return 1
    except (zipfile.BadZipFile, PackageNotFoundError, ValueError) as error:
        print(f"{options.template or options.source}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.target}: paragraphs: {len(document.paragraphs)}, tables: {len(document.tables)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
