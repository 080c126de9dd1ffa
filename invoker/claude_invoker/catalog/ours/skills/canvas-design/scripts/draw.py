"""`draw.py DESIGN.typ NAME`: NAME.png and NAME.svg of a design in Typst; of several pages NAME-1.png and so on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import typst


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("name")
    parser.add_argument("--ppi", type=float, default=144.0)
    options = parser.parse_args(arguments)
    if not 36 <= options.ppi <= 600:
        parser.error("--ppi is from 36 to 600")
    try:
        for form in ("png", "svg"):
            made = typst.compile(str(options.source), root=".", format=form, ppi=options.ppi)
            pages = [made] if isinstance(made, bytes) else made
            for number, page in enumerate(pages, start=1):
                path = Path(f"{options.name}.{form}" if len(pages) == 1 else f"{options.name}-{number}.{form}")
                path.write_bytes(page)
                print(f"{path}: {len(page):,} bytes")
    except typst.TypstError as error:
        print(error.diagnostic or error.message, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
