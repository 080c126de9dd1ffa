"""`python -m docsite [--out build/site]`: the site, out of the documents and what `reference` says. A link that leads
nowhere, or a page that is in no section, is an error."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from docsite import pages, reference, screenshots


def written(sources: Path, pictures: Path = screenshots.OUT) -> None:
    """All pages, as Sphinx reads them; with the pictures of the dashboard, where these were taken."""
    shutil.rmtree(sources, ignore_errors=True)
    documents = pages.documents()
    for document in documents:
        to = sources / pages.place(document)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(pages.linked((pages.ROOT / document).read_text(), document, documents))
    (sources / "reference").mkdir()
    for name, text in reference.pages().items():
        (sources / "reference" / f"{name}.md").write_text(text)
    generated = []
    if (shown := screenshots.page(pictures)) is not None:
        (sources / "reference" / "dashboard.md").write_text(shown)
        shutil.copytree(pictures, sources / "screenshots")
        generated.append("reference/dashboard")
    (sources / "index.md").write_text(pages.index(generated))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docsite", description="Builds the documents as a site.")
    parser.add_argument("--out", type=Path, default=pages.ROOT / "build" / "site")
    out = parser.parse_args().out
    sources = out.with_name(f"{out.name}-sources")
    written(sources)
    configuration = Path(__file__).with_name("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-c", str(configuration)]
    done = subprocess.run([*command, str(sources), str(out)], check=False).returncode
    if done == 0:
        print(f"{out}/index.html", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
