"""`read.py FILE.docx`: prints the text of a Word document as Markdown."""

from __future__ import annotations

import sys
import zipfile

import docx
from docx.opc.exceptions import PackageNotFoundError
from docx.table import Table


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: read.py FILE.docx", file=sys.stderr)
        return 2
    try:
        document = docx.Document(arguments[0])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, PackageNotFoundError) as error:
        print(f"{arguments[0]} is no Word document: {error}", file=sys.stderr)
        return 1
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            rows = [[" ".join(cell.text.split()).replace("|", "\\|") for cell in row.cells] for row in block.rows]
            for number, row in enumerate(rows):
                print(f"| {' | '.join(row)} |")
                if not number:
                    print("|" + "---|" * len(row))
            continue
        style = block.style.name if block.style is not None else ""
        level = style.removeprefix("Heading ")
        mark = "# " if style == "Title" else f"{'#' * int(level)} " if style != level and level.isdigit() else ""
        mark = mark or ("- " if style.startswith("List Bullet") else "1. " if style.startswith("List Number") else "")
        print(f"{mark}{block.text}\n" if block.text.strip() else "", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
