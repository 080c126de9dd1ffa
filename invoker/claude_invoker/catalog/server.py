"""An MCP server of a catalog, as its file says it. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta, Struct

from claude_contract import destinations
from claude_invoker.catalog.entry import (
    DESCRIPTION_ROOM,
    HEAD_ROOM,
    Broken,
    Entry,
    File,
    Needs,
    Server,
    broken_by,
    described,
    digest,
)
from claude_invoker.egress.addresses import is_loopback

SUFFIXES = (".yaml", ".json")
PREFIX = "mcp__"
CREDENTIAL_HEADER = "X-Claude-MCP-"
"""And the name of a server: in which a request brings a token of its caller's for it. What begins with `X-Claude-` goes
to no API."""
_TOOL = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
_WORD = Annotated[str, Meta(min_length=1, max_length=16 << 10, pattern=r"^[^\x00]+\Z")]
_REPOSITORY = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._*?/-]{1,128}\Z")]
_PACKAGE = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEAST_SECRET = 8
"""Characters: a shorter one could not be told from what a server says."""
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_OURS = frozenset(
    ("accept", "accept-encoding", "connection", "content-length", "content-type", "cookie", "host", "transfer-encoding")
)
"""Headers that no credential can be."""


class _File(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    name: Annotated[str, Meta(max_length=64)]
    description: Annotated[str, Meta(min_length=1, max_length=DESCRIPTION_ROOM)]
    tools: Annotated[tuple[_TOOL, ...], Meta(min_length=1, max_length=64)]
    url: Annotated[str, Meta(max_length=1024)] | None = None
    secret: str | None = None
    credential: Literal["caller"] | None = None
    header: str = "Authorization"
    command: Annotated[tuple[_WORD, ...], Meta(max_length=64)] = ()
    repositories: Annotated[tuple[_REPOSITORY, ...], Meta(max_length=64)] = ()
    needs_egress: tuple[str, ...] = ()
    needs_python: Annotated[tuple[_PACKAGE, ...], Meta(max_length=64)] = ()


def server_of(name: str, source: File) -> Entry:
    """The server in the file of that name, without its suffix. Raises Broken."""
    try:
        return _server_of(name, source)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise broken_by(source.path, error) from error
    except RecursionError as error:
        raise Broken(f"{source.path} is nested too deep") from error
    except ValueError as error:
        raise Broken(f"{source.path}: {error}") from error


def _server_of(name: str, source: File) -> Entry:
    if len(source.content) > HEAD_ROOM:
        raise ValueError(f"has more than {HEAD_ROOM >> 10} KiB")
    try:
        text = source.content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    given = msgspec.convert(yaml.safe_load(text), _File)
    if given.name != name:
        raise ValueError(f"name is {given.name!r}, its file {name!r}")
    if (given.url is None) == (not given.command):
        raise ValueError("either url (a server that is called) or command (one that is started) is needed")
    tools = tuple(dict.fromkeys(given.tools))
    if given.url is not None:
        server = _called(given, given.url, tools)
        needs = Needs()
    else:
        server = _started(given, tools)
        hosts = tuple(sorted(set(map(destinations.parse, given.needs_egress))))
        needs = Needs((), hosts, given.needs_python, given.command[:1])
    return Entry(
        "server", name, described(given.description), needs, (source,), "", digest("server", name, (source,)), server
    )


def _called(given: _File, url: str, tools: tuple[str, ...]) -> Server:
    if given.needs_egress or given.needs_python or given.repositories:
        raise ValueError("needs-egress, needs-python and repositories are of servers that are started (command)")
    if given.secret is not None and not SECRET.fullmatch(given.secret):
        raise ValueError("secret must be the name of one: a file of INVOKER_MCP_SECRETS")
    if not _HEADER.fullmatch(given.header) or given.header.lower() in _OURS:
        raise ValueError(f"header: {given.header[:64]!r} cannot be one for a credential")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise ValueError("url must be an http or https URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("url must have no user, query or fragment: a credential is a secret (secret: NAME)")
    parts.port  # noqa: B018 -- raises ValueError
    of_caller = given.credential is not None
    if of_caller and given.secret is not None:
        raise ValueError("either secret (one of yours) or credential: caller (each caller's own) can be had")
    if parts.scheme == "http" and (of_caller or given.secret is not None) and not is_loopback(parts.hostname):
        raise ValueError("url must be https, since a credential goes there")
    return Server(tools, url, given.secret, given.header, of_caller)


def _started(given: _File, tools: tuple[str, ...]) -> Server:
    if given.secret is not None or given.credential is not None:
        raise ValueError(
            "a server that is started has no secret, since tools of its run could read it: run it by itself, with url"
        )
    program = given.command[0]
    if "/" in program and not program.startswith("/"):
        raise ValueError("command must begin with a program's name, or with its whole path")
    return Server(tools, command=given.command, repositories=given.repositories)


def names_of(entry: Entry) -> tuple[str, ...]:
    """Its tools, as the CLI and rules call them."""
    assert entry.server is not None
    return tuple(f"{PREFIX}{entry.name}__{tool}" for tool in entry.server.tools)
