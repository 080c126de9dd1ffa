"""What a catalog holds: skills (agentskills.io/specification), agents, to which a model hands parts of its work, and
MCP servers (`server`), whose tools it calls. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from claude_contract import destinations
from claude_contract.destinations import Destination

Kind = Literal["skill", "agent", "server"]
DESCRIPTION_ROOM = 1024
HEAD_ROOM = 64 << 10
"""Bytes of a SKILL.md."""
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HEAD = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_TOOLS = re.compile(r"(?:[\s,]*([A-Za-z][A-Za-z0-9_]{0,63})(?:\([^()]*\))?(?=[\s,]|$))*[\s,]*")
_TOOL = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\([^()]*\))?")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,127}")
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


_H = TypeVar("_H", "_Head", "_AgentHead")


class Broken(Exception):
    """Why something is no entry of a catalog."""


class File(Struct, frozen=True):
    """`path`: relative, parts separated by `/`."""

    path: str
    content: bytes
    is_executable: bool = False


class Needs(Struct, frozen=True):
    """What a run has to have for an entry to work in it."""

    tools: tuple[str, ...] = ()
    egress: tuple[Destination, ...] = ()
    python: tuple[str, ...] = ()
    """Packages that its scripts import, by the names that pip has for them."""
    programs: tuple[str, ...] = ()
    """What its commands call, besides Bash and Python."""
    model: str | None = None
    """Of an agent, where it is not the run's."""
    servers: tuple[str, ...] = ()
    """MCP servers whose tools it calls."""

    def to_json(self) -> dict[str, list[str]]:
        """Without what is empty."""
        given = {
            "tools": self.tools,
            "egress": tuple(map(str, self.egress)),
            "python": self.python,
            "programs": self.programs,
            "mcp": self.servers,
        }
        found = {name: list(value) for name, value in given.items() if value}
        return found if self.model is None else found | {"model": [self.model]}


class Server(Struct, frozen=True):
    """An MCP server: called by us at `url`, or started within the boundary of a run by `command`; with neither it is
    ours, and in this process."""

    tools: tuple[str, ...]
    """All that runs may call of it, whatever it offers."""
    url: str | None = None
    secret: str | None = None
    """The name of the secret that it wants to see."""
    header: str = "Authorization"
    of_caller: bool = False
    """It wants to see a token of the caller's own, which comes with each request."""
    command: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    """Globs of those whose own program it is: `command` runs a file of theirs. Empty: it is the machine's."""

    @property
    def is_ours(self) -> bool:
        return self.url is None and not self.command


class Entry(Struct, frozen=True):
    """`files`: as they were read, in the order of their paths. `text`: what a run has as its SKILL.md, or as the
    agent's file; empty for a server, of which it has no file. `digest`: of kind, name and files, in hex."""

    kind: Kind
    name: str
    description: str
    needs: Needs
    files: tuple[File, ...]
    text: str
    digest: str
    server: Server | None = None


class _Head(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The front matter. The CLI knows more members, which run commands, widen a run's tools or change its model: none
    of them is taken."""

    name: Annotated[str, Meta(max_length=64)]
    description: Annotated[str, Meta(min_length=1, max_length=DESCRIPTION_ROOM)]
    license: str = ""
    compatibility: str = ""
    allowed_tools: str | tuple[str, ...] = ()
    metadata: dict[str, str] = {}


class _AgentHead(Struct, frozen=True, forbid_unknown_fields=True):
    """Of an agent. The CLI knows more here, too: permissions, hooks and servers of its own."""

    name: Annotated[str, Meta(max_length=64)]
    description: Annotated[str, Meta(min_length=1, max_length=DESCRIPTION_ROOM)]
    tools: str | tuple[str, ...] = ()
    model: str | None = None
    license: str = ""


def is_name(text: str) -> bool:
    """Whether an entry can be called so."""
    return len(text) <= 64 and _NAME.fullmatch(text) is not None


def skill_of(name: str, files: Iterable[File]) -> Entry:
    """The skill in the directory of that name. Raises Broken."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    source = next((file for file in ordered if file.path == "SKILL.md"), None)
    if source is None:
        raise Broken("has no SKILL.md")
    head, text = _parted(source, _Head)
    description = _described(source, name, head.name, head.description, text)
    # Nothing but these two: `allowed-tools` would be a permission to the CLI.
    shown = f"---\nname: {name}\ndescription: {_quoted(description)}\n---\n{text}"
    return Entry("skill", name, description, _needs(head), ordered, shown, digest("skill", name, ordered))


def agent_of(name: str, content: bytes) -> Entry:
    """The agent in the file of that name, without its `.md`. Raises Broken."""
    source = File(f"{name}.md", content)
    head, text = _parted(source, _AgentHead)
    description = _described(source, name, head.name, head.description, text)
    if head.model is not None and not _MODEL.fullmatch(head.model):
        raise Broken(f"{source.path}: model: {head.model[:100]!r} is none")
    model = None if head.model == "inherit" else head.model
    tools = _tools(source.path, "tools", head.tools)
    # Always there: without it an agent would have all that its run has.
    lines = [f"name: {name}", f"description: {_quoted(description)}", f"tools: {_quoted(', '.join(tools) or 'Read')}"]
    if model is not None:
        lines.append(f"model: {_quoted(model)}")
    shown = "\n".join(("---", *lines, "---", text))
    needs = Needs(tools or ("Read",), model=model)
    return Entry("agent", name, description, needs, (source,), shown, digest("agent", name, (source,)))


def described(description: str) -> str:
    """On one line. Raises ValueError."""
    found = " ".join(description.split())
    if not found.isprintable() or not found:
        raise ValueError("description must be printable")
    return found


def _quoted(text: str) -> str:
    """For the CLI, to which a head ends at the next `---`, wherever that stands: what comes below would be no head, and
    an agent without `tools` has all that its run has."""
    return json.dumps(text, ensure_ascii=False).replace("--", r"-\u002d")


def _described(source: File, name: str, said: str, description: str, text: str) -> str:
    """Its description on one line. Raises Broken."""
    if said != name:
        raise Broken(
            f"{source.path}: name is {said!r}, its {'directory' if source.path == 'SKILL.md' else 'file'} {name!r}"
        )
    if not text.strip():
        raise Broken(f"{source.path} says nothing below its head")
    try:
        return described(description)
    except ValueError as error:
        raise Broken(f"{source.path}: {error}") from error


def digest(kind: Kind, name: str, files: Iterable[File]) -> str:
    parts = [[file.path, file.is_executable, hashlib.sha256(file.content).hexdigest()] for file in files]
    return hashlib.sha256(msgspec.json.encode([kind, name, parts])).hexdigest()


def _parted(source: File, of: type[_H]) -> tuple[_H, str]:
    """The head of a SKILL.md or of an agent, and what comes below it. Raises Broken."""
    name = source.path
    if len(source.content) > HEAD_ROOM:
        raise Broken(f"{name} has more than {HEAD_ROOM >> 10} KiB: put what is seldom needed into files beside it")
    try:
        text = source.content.decode()
    except UnicodeDecodeError:
        raise Broken(f"{name} is not UTF-8 text") from None
    found = _HEAD.match(text)
    if found is None:
        raise Broken(f"{name} does not begin with a head between two lines of ---")
    try:
        head = msgspec.convert(_plain(yaml.safe_load(found[1])), of)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise broken_by(name, error, above=1) from error
    except (RecursionError, ValueError) as error:  # a year 0, say
        raise Broken(f"{name}: its head is not YAML") from error
    return head, text[found.end() :]


def broken_by(path: str, error: msgspec.ValidationError | yaml.YAMLError, *, above: int = 0) -> Broken:
    """What is wrong with the YAML in a file that has so many lines above it."""
    if isinstance(error, msgspec.ValidationError):
        problem, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        return Broken(f"{path}: {f'{field}: ' if field else ''}{problem}")
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 + above if mark else 1
    return Broken(f"{path}:{line}: {getattr(error, 'problem', 'is not YAML')}")


def _plain(value: Any) -> Any:
    """A version that is written without quotes is a number to YAML; what `metadata` holds is text."""
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        return value
    given = value["metadata"].items()
    return value | {"metadata": {key: str(one) if isinstance(one, int | float) else one for key, one in given}}


def _needs(head: _Head) -> Needs:
    """Raises Broken."""
    tools = _tools("SKILL.md", "allowed-tools", head.allowed_tools)
    hosts = _listed(head, "needs-egress")
    try:
        egress = tuple(sorted(set(map(destinations.parse, hosts))))
    except ValueError as error:
        raise Broken(f"SKILL.md: metadata.needs-egress: {error}") from error
    return Needs(
        tools,
        egress,
        _each("metadata.needs-python", _PACKAGE, _listed(head, "needs-python")),
        _each("metadata.needs-programs", _PROGRAM, _listed(head, "needs-programs")),
        servers=_each("metadata.needs-mcp", _NAME, _listed(head, "needs-mcp")),
    )


def _tools(path: str, name: str, given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Without the patterns that may stand behind a tool's name. Raises Broken."""
    text = given if isinstance(given, str) else " ".join(given)
    if not _TOOLS.fullmatch(text):
        raise Broken(f"{path}: {name}: names of tools are needed, separated by blanks")
    return tuple(dict.fromkeys(_TOOL.findall(text)))


def _listed(head: _Head, name: str) -> tuple[str, ...]:
    return tuple(head.metadata.get(name, "").replace(",", " ").split())


def _each(name: str, fits: re.Pattern[str], given: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(given))
    for one in found:
        if not fits.fullmatch(one):
            raise Broken(f"SKILL.md: {name}: {one[:100]!r} is none: names, separated by blanks")
    return found
