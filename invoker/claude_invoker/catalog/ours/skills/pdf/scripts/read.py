"""`read.py FILE.pdf`: prints the text of a PDF, page by page."""

from __future__ import annotations

import sys

from pypdf import PdfReader
from pypdf.errors import PyPdfError


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: read.py FILE.pdf", file=sys.stderr)
        return 2
    try:
        for number, page in enumerate(PdfReader(arguments[0]).pages, start=1):
            print(f"--- page {number}\n{page.extract_text()}")
    except (OSError, PyPdfError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
