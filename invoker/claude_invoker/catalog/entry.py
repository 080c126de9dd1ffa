"""A skill of the catalog: its files, and what its SKILL.md says (agentskills.io/specification). Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from claude_contract import destinations
from claude_contract.destinations import Destination

DESCRIPTION_ROOM = 1024
HEAD_ROOM = 64 << 10
"""Bytes of a SKILL.md."""
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HEAD = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_TOOLS = re.compile(r"(?:[\s,]*([A-Za-z][A-Za-z0-9_]{0,63})(?:\([^()]*\))?(?=[\s,]|$))*[\s,]*")
_TOOL = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\([^()]*\))?")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Broken(Exception):
    """Why something is no entry of a catalog."""


class File(Struct, frozen=True):
    """`path`: relative, parts separated by `/`."""

    path: str
    content: bytes
    is_executable: bool = False


class Needs(Struct, frozen=True):
    """What a run has to have for a skill to work in it."""

    tools: tuple[str, ...] = ()
    egress: tuple[Destination, ...] = ()
    python: tuple[str, ...] = ()
    """Modules that its scripts import."""
    programs: tuple[str, ...] = ()
    """What its commands call, besides Bash and Python."""

    def to_json(self) -> dict[str, list[str]]:
        """Without what is empty."""
        given = {
            "tools": self.tools,
            "egress": tuple(map(str, self.egress)),
            "python": self.python,
            "programs": self.programs,
        }
        return {name: list(value) for name, value in given.items() if value}


class Skill(Struct, frozen=True):
    """`files`: as they were read, in the order of their paths. `text`: what a run has as its SKILL.md. `digest`: of its
    name and its files, in hex."""

    name: str
    description: str
    needs: Needs
    files: tuple[File, ...]
    text: str
    digest: str


class _Head(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The front matter. The CLI knows more members, which run commands, widen a run's tools or change its model: none
    of them is taken."""

    name: Annotated[str, Meta(max_length=64)]
    description: Annotated[str, Meta(min_length=1, max_length=DESCRIPTION_ROOM)]
    license: str = ""
    compatibility: str = ""
    allowed_tools: str | tuple[str, ...] = ()
    metadata: dict[str, str] = {}


def is_name(text: str) -> bool:
    """Whether an entry can be called so."""
    return len(text) <= 64 and _NAME.fullmatch(text) is not None


def skill_of(name: str, files: Iterable[File]) -> Skill:
    """The skill in the directory of that name. Raises Broken."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    source = next((file for file in ordered if file.path == "SKILL.md"), None)
    if source is None:
        raise Broken("has no SKILL.md")
    head, text = _parted(source)
    if head.name != name:
        raise Broken(f"SKILL.md: name is {head.name!r}, its directory {name!r}")
    if not text.strip():
        raise Broken("SKILL.md says nothing below its head")
    description = " ".join(head.description.split())
    if not description.isprintable() or not description:
        raise Broken("SKILL.md: description must be printable")
    # Nothing but these two: `allowed-tools` would be a permission to the CLI.
    shown = f"---\nname: {head.name}\ndescription: {json.dumps(description, ensure_ascii=False)}\n---\n{text}"
    return Skill(name, description, _needs(head), ordered, shown, _digest(name, ordered))


def _digest(name: str, files: Iterable[File]) -> str:
    parts = [[file.path, file.is_executable, hashlib.sha256(file.content).hexdigest()] for file in files]
    return hashlib.sha256(msgspec.json.encode([name, parts])).hexdigest()


def _parted(source: File) -> tuple[_Head, str]:
    """The head of a SKILL.md, and what comes below it. Raises Broken."""
    if len(source.content) > HEAD_ROOM:
        raise Broken(f"SKILL.md has more than {HEAD_ROOM >> 10} KiB: put what is seldom needed into files beside it")
    try:
        text = source.content.decode()
    except UnicodeDecodeError:
        raise Broken("SKILL.md is not UTF-8 text") from None
    found = _HEAD.match(text)
    if found is None:
        raise Broken("SKILL.md does not begin with a head between two lines of ---")
    try:
        head = msgspec.convert(_plain(yaml.safe_load(found[1])), _Head)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        raise Broken(f"SKILL.md: {f'{field}: ' if field else ''}{problem}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Broken(f"SKILL.md:{mark.line + 2 if mark else 1}: {getattr(error, 'problem', 'is not YAML')}") from error
    except (RecursionError, ValueError) as error:  # a year 0, say
        raise Broken("SKILL.md: its head is not YAML") from error
    return head, text[found.end() :]


def _plain(value: Any) -> Any:
    """A version that is written without quotes is a number to YAML; what `metadata` holds is text."""
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        return value
    given = value["metadata"].items()
    return value | {"metadata": {key: str(one) if isinstance(one, int | float) else one for key, one in given}}


def _needs(head: _Head) -> Needs:
    """Raises Broken."""
    tools = head.allowed_tools if isinstance(head.allowed_tools, str) else " ".join(head.allowed_tools)
    if not _TOOLS.fullmatch(tools):
        raise Broken("SKILL.md: allowed-tools: names of tools are needed, separated by blanks")
    hosts = _listed(head, "needs-egress")
    try:
        egress = tuple(sorted(set(map(destinations.parse, hosts))))
    except ValueError as error:
        raise Broken(f"SKILL.md: metadata.needs-egress: {error}") from error
    return Needs(
        tuple(dict.fromkeys(_TOOL.findall(tools))),
        egress,
        _each("metadata.needs-python", _MODULE, _listed(head, "needs-python")),
        _each("metadata.needs-programs", _PROGRAM, _listed(head, "needs-programs")),
    )


def _listed(head: _Head, name: str) -> tuple[str, ...]:
    return tuple(head.metadata.get(name, "").replace(",", " ").split())


def _each(name: str, fits: re.Pattern[str], given: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(given))
    for one in found:
        if not fits.fullmatch(one):
            raise Broken(f"SKILL.md: {name}: {one[:100]!r} is none: names, separated by blanks")
    return found
