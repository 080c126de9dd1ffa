"""Submodules: which a commit has, where they come from, and whether all together may be written to a disk.

What a repository says of them is an enemy's: an address is only ever compared with those of `INVOKER_REPOSITORIES`.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from claude_invoker.workspace import content
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.git import Git, GitFailed

MOST = 50
_SAID = 1 << 20
_FILE = "holds"
_KEY = re.compile(r"submodule\.(.+)\.(path|url)", re.DOTALL)


@dataclass(frozen=True)
class Module:
    url: str
    """As the repository says it."""
    commit: str


@dataclass(frozen=True)
class Holds:
    """What a commit's files are: how many, of how many bytes, what its links say, and its submodules by their paths."""

    entries: int = 0
    bytes: int = 0
    links: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)


async def of(do: Git, commit: str, listed: content.Listed) -> dict[str, Module]:
    """Those of which the commit says where they come from. Raises OSError."""
    if not listed.modules or not listed.modules_said:
        return {}
    try:
        said = await do(
            "config", "--no-includes", f"--blob={commit}:.gitmodules", "--null",
            "--get-regexp", r"^submodule\..*\.(path|url)$", output=_SAID,
        )  # fmt: skip
    except GitFailed:  # it is no such file: as if there were none
        return {}
    found: dict[str, dict[str, str]] = {}
    for item in said.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = item.partition("\n")
        if match := _KEY.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = value
    return {
        each["path"]: Module(each["url"], listed.modules[each["path"]])
        for each in found.values()
        if "url" in each and each.get("path") in listed.modules
    }


def address(base: str, url: str) -> str:
    """Where a submodule of the repository at `base` comes from: `./` and `../` are said from there."""
    if not url.startswith(("./", "../")):
        return url
    separator = "/" if "://" in base else ":"
    scheme, _, rest = base.rpartition("://")
    host, _, path = rest.partition(separator)
    said = posixpath.normpath(posixpath.join(path, url))
    return f"{scheme}://{host}/{said}" if scheme else f"{host}:{said}"


def check(holds: Holds, modules: Mapping[str, Holds], bounds: content.Bounds) -> None:
    """Whether a commit may be written to a disk with these in it, by their paths. Raises Unacceptable."""
    entries = holds.entries + sum(module.entries for module in modules.values())
    size = holds.bytes + sum(module.bytes for module in modules.values())
    if bounds.entries and entries > bounds.entries:
        raise Unacceptable(f"more than {bounds.entries:,} files and directories with its submodules")
    if bounds.bytes and size > bounds.bytes:
        raise Unacceptable(f"more than {bounds.bytes:,} bytes with its submodules")
    links = dict(holds.links)
    for path, module in modules.items():
        links |= {f"{path}/{link}": target for link, target in module.links.items()}
    content.check_links(links)


def note(store: Path, holds: Holds) -> None:
    """Beside the objects of a commit. Raises OSError."""
    with (store / _FILE).open("x") as file:
        json.dump(asdict(holds), file)


def noted(store: Path) -> Holds:
    """What was noted; nothing of a store of an earlier release."""
    with suppress(FileNotFoundError):
        said = json.loads((store / _FILE).read_text())
        said["modules"] = {path: Module(**module) for path, module in said["modules"].items()}
        return Holds(**said)
    return Holds()
