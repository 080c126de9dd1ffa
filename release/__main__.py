"""`python -m release [--out build/release]`: everything that a release is, checked, in one directory.

The five wheels, for each image a list of what is in it (CycloneDX), the notes out of CHANGELOG.md, and the digests of
all of them. What stands against a release is said at once, all of it, before anything is built. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from release import images, locks
from release.locks import DISTRIBUTIONS, IMAGES, ROOT


def notes(changelog: str, version: str) -> str:
    """What the section of a version says, under `## 0.2.0` or `## 0.2.0 (2026-11-27)`; "" where there is none."""
    found = re.search(
        rf"^## {re.escape(version)}(?: \([^)\n]*\))?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    return found[1].strip() if found else ""


def obstacles(versions: Mapping[str, str], changelog: str, changed: str, tags: Collection[str]) -> list[str]:
    """What stands against a release, a sentence each, with what to do. `versions`: by the part's folder; `changed`: as
    `git status --porcelain` says; `tags`: those of other commits."""
    found = []
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{part} {version}" for part, version in versions.items())
        found.append(f"the parts have different versions ({told}): make version VERSION=…")
    version = max(versions.values())
    if not notes(changelog, version):
        found.append(f"CHANGELOG.md has no section '## {version}' with something in it")
    if notes(changelog, "Unreleased"):
        found.append(
            f"CHANGELOG.md has something under '## Unreleased': it belongs to {version}, or to a later release"
        )
    if changed.strip():
        found.append("files are changed that are not committed: " + ", ".join(changed.split("\n")[:5]))
    if f"v{version}" in tags:
        found.append(f"v{version} is the tag of another commit: make version VERSION=…")
    return found


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def versions() -> dict[str, str]:
    return {
        part: tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]["version"]
        for part in DISTRIBUTIONS
    }


def pip(python: Path, *arguments: str, **more: Any) -> None:
    """Our pip, for another environment."""
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *arguments], check=True, **more)


def environment(image: locks.Image, folder: Path) -> Path:
    """One with what the image has from the index: no file but those that the lock names, and none that another package
    would have to build, which none names. Returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    only = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
    pip(python, "install", "--quiet", *only, "-r", str(image.lock))
    return python


def build(out: Path) -> list[Path]:
    """The wheels, by the backend that the locks name, whatever the index has by now. Their files have the commit's
    time: the same commit gives the same bytes."""
    at = git("log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as folder:
        python = environment(IMAGES[0], Path(folder))
        command = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out))
        dated = {**os.environ, "SOURCE_DATE_EPOCH": at}
        pip(python, *command, *(f"./{part}" for part in DISTRIBUTIONS), cwd=ROOT, env=dated)
    return sorted(out.glob("*.whl"))


def check(wheels: list[Path]) -> None:
    """Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *wheels], check=True)
    # W004: files that are run and not imported, such as Kong's `claude-gateway.py`.
    subprocess.run([sys.executable, "-m", "check_wheel_contents", "--ignore", "W004", *wheels], check=True)


def install(image: locks.Image, folder: Path, wheels: list[Path]) -> Path:
    """An environment with all that the image has: by its lock, and the wheels that it names. Returns its Python."""
    python = environment(image, folder)
    names = {name.replace("-", "_") for name in image.distributions}
    ours = (str(wheel) for wheel in wheels if wheel.name.split("-")[0] in names)
    pip(python, "install", "--quiet", "--no-deps", *ours)
    pip(python, "check", stdout=sys.stderr)
    return python


def bill(image: locks.Image, wheels: list[Path], out: Path, version: str) -> None:
    """What is in the image, as CycloneDX has it: `kong-0.2.0.cdx.json`."""
    with tempfile.TemporaryDirectory() as folder:
        python = install(image, Path(folder) / "venv", wheels)
        to = out / f"{image.name}-{version}.cdx.json"
        command = [
            sys.executable,
            "-m",
            "cyclonedx_py",
            "environment",
            str(python),
            "--output-reproducible",
            "--validate",
        ]
        subprocess.run([*command, "--sv", "1.6", "--of", "JSON", "-o", str(to)], check=True)


def digests(out: Path) -> str:
    """As sha256sum writes them, and checks them."""
    files = sorted(path for path in out.iterdir() if path.name != "SHA256SUMS")
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def said(step: str) -> None:
    print(step, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m release", description="Builds and checks a release.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "release")
    out = parser.parse_args().out.absolute()
    changelog, constraints = (ROOT / "CHANGELOG.md").read_text(), (ROOT / "constraints.txt").read_text()
    elsewhere = set(git("tag").split()) - set(git("tag", "--points-at", "HEAD").split())
    found = obstacles(versions(), changelog, git("status", "--porcelain"), elsewhere)
    found += [f"{each}: make lock" for image in IMAGES for each in locks.stale(image.lock.read_text(), constraints)]
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    version = versions()["contract"]
    unpinned = sum(not each.pinned for each in images.named(ROOT))
    if unpinned:
        said(f"{unpinned} lines name an image without its digest: make pin")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    said("wheels")
    wheels = build(out)
    check(wheels)
    for image in IMAGES:
        said(f"what is in the image {image.name}")
        bill(image, wheels, out, version)
    (out / "NOTES.md").write_text(notes(changelog, version) + "\n")
    (out / "SHA256SUMS").write_text(digests(out))
    said(f"the release of {version} is in {out}; its tag: git tag -s v{version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
