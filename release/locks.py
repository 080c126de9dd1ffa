"""`python -m release.locks`: what each image installs from the index, with the digest of each file of that version.

A version is constraints.txt's; pip takes a lock's files and no others (`--require-hashes`), whatever an index, or who
is between, says is that version. A lock is for every Python from 3.11 on, on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
BACKEND = "hatchling"
"""Builds our wheels in the image: it runs code there, too, so that it is locked with the others."""


@dataclass(frozen=True)
class Image:
    """One that we build: of which recipe, with which of our distributions (as pip is told them)."""

    name: str
    recipe: str
    parts: tuple[str, ...]

    @property
    def distributions(self) -> list[str]:
        """Which of ours it has, by name."""
        return [DISTRIBUTIONS[part.removeprefix("./").partition("[")[0]] for part in self.parts]

    @property
    def lock(self) -> Path:
        return ROOT / "deploy" / "docker" / f"{self.name}.lock"


DISTRIBUTIONS = {
    "contract": "kong-claude-contract",
    "plugins": "kong-claude",
    "invoker": "claude-invoker",
    "minikong": "minikong",
    "local": "kong-claude-local",
}
"""By the folder of each."""
IMAGES = (
    Image("kong", "plugins/Dockerfile", ("./contract", "./plugins[tools]", "./local")),
    Image("invoker", "invoker/Dockerfile", ("./contract", "./invoker[otlp,skills]")),
    Image("minikong", "deploy/docker/minikong.Dockerfile", ("./contract", "./plugins[tools]", "./minikong", "./local")),
)


def locked(text: str) -> dict[str, Requirement]:
    """The packages of a lock by their names, each with a version and at least one digest. Raises ValueError."""
    found: dict[str, Requirement] = {}
    for entry in re.sub(r" \\\n\s+", " ", text).splitlines():
        if not entry or entry.startswith("#"):
            continue
        requirement, _, digests = entry.partition(" --hash=sha256:")
        parsed = Requirement(requirement.strip())
        if not digests or not str(parsed.specifier).startswith("=="):
            raise ValueError(f"{parsed.name} is not locked: {entry[:80]}")
        found[canonicalize_name(parsed.name)] = parsed
    return found


def pinned(text: str) -> dict[str, str]:
    """The versions of constraints.txt by the packages' names."""
    lines = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(line.name): str(line.specifier) for line in lines}


def stale(lock: str, constraints: str) -> list[str]:
    """What a lock has in another version than the constraints, one sentence each. Raises ValueError."""
    wanted = pinned(constraints)
    return [
        f"{name} is locked at {found.specifier} and constrained to {wanted.get(name, 'nothing')}"
        for name, found in locked(lock).items()
        if wanted.get(name) != str(found.specifier)
    ]


def write(image: Image) -> None:
    """Asks the index. What was there stays where that fails. Raises CalledProcessError."""
    made = image.lock.with_suffix(".made")  # versions are the constraints', not those of the lock that is there
    made.unlink(missing_ok=True)
    ours = [argument for name in DISTRIBUTIONS.values() for argument in ("--no-emit-package", name)]
    with tempfile.NamedTemporaryFile("w", suffix=".in", dir=ROOT) as wanted:  # paths in it are from where it lies
        wanted.write("\n".join((*image.parts, BACKEND)))
        wanted.flush()
        subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
                *("--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", *ours),
                *("-c", "constraints.txt", "-o", str(made), wanted.name),
            ],
            cwd=ROOT,
            check=True,
        )
    made.replace(image.lock)


def main() -> int:
    for image in IMAGES:
        print(f"{image.lock.relative_to(ROOT)}", file=sys.stderr, flush=True)
        try:
            write(image)
        except subprocess.CalledProcessError:
            print("the lock is as it was; `make lock` installs what is needed for a new one", file=sys.stderr)
            return 1
        if found := stale(image.lock.read_text(), (ROOT / "constraints.txt").read_text()):
            print("\n".join(found), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
