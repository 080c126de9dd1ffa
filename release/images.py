"""`python -m release.images [--write]`: which images that are not ours are named without their digest.

A tag is whatever the registry has under it today; with the digest behind it, it is what was there when it was written.
`--write` asks the registries (by skopeo) and writes the digests; the tag stays, for whoever reads it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*/Dockerfile", "deploy/docker/*.Dockerfile", "docker-compose*.yml", "deploy/kubernetes/*.yaml")
_BEFORE = r"^(?:FROM (?:--platform=\S+ )?|[ -]*image: +[\"']?)"
_NAMED = re.compile(_BEFORE + r"(?P<image>[^\s{#\"'-][^\s{#\"']*)", re.MULTILINE)
_OURS = ("kong-claude/", "registry.example.com/")


@dataclass(frozen=True)
class Named:
    """An image as one line of one file names it."""

    path: Path
    line: int
    image: str

    @property
    def pinned(self) -> bool:
        return "@sha256:" in self.image


class NoDigest(Exception):
    """Why a registry has said no digest."""


def named(root: Path) -> Iterator[Named]:
    """All images that are not ours. A later stage of a Dockerfile may be made of an earlier one: that is none."""
    for path in sorted({path for place in PLACES for path in root.glob(place)}):
        text = path.read_text()
        stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
        for match in _NAMED.finditer(text):
            image = match["image"]
            if not image.startswith(_OURS) and image not in stages:
                yield Named(path, text.count("\n", 0, match.start()) + 1, image)


def digest(image: str, *more: str) -> str:
    """`sha256:…` of what the registry has under that tag now: for every platform, where it is for several. `more`:
    options of skopeo's. Raises NoDigest."""
    command = ["skopeo", "inspect", "--no-tags", "--format", "{{.Digest}}", *more, f"docker://{image}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    if done.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        raise NoDigest(f"{image}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else found}")
    return found


def pin(root: Path, *more: str) -> list[str]:
    """Writes the digest behind each tag. What could not be asked stays, and is said, one sentence each."""
    failed: list[str] = []
    known: dict[str, str] = {}
    for each in list(named(root)):
        if each.pinned or any(sentence.startswith(f"{each.image}: ") for sentence in failed):
            continue
        try:
            known[each.image] = known.get(each.image) or digest(each.image, *more)
        except NoDigest as error:
            failed.append(str(error))
            continue
        there = re.compile(rf"({_BEFORE}{re.escape(each.image)})(?=[\s\"']|$)", re.MULTILINE)
        each.path.write_text(there.sub(rf"\1@{known[each.image]}", each.path.read_text()))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m release.images", description="Images without a digest.")
    parser.add_argument("--write", action="store_true", help="ask the registries, and write the digests")
    failed: list[str] = []
    if parser.parse_args().write:
        if shutil.which("skopeo") is None:
            print("skopeo asks the registries, and is not installed (Debian: apt-get install skopeo)", file=sys.stderr)
            return 1
        failed = pin(ROOT)
    left = [each for each in named(ROOT) if not each.pinned]
    for each in left:
        print(f"{each.path.relative_to(ROOT)}:{each.line}: {each.image} has no digest")
    for sentence in failed:
        print(sentence, file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
