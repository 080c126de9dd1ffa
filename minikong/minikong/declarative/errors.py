"""What is wrong with a declarative config, in Kong's words and with its place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from minikong import lyaml
from minikong.schema import pretty
from minikong.schema.tables import Error, as_dict, is_table, items, tostring

Errors = dict[Any, Error]


class DeclarativeError(Exception):
    """A declarative config that Kong refuses. `errors` is Kong's tree of texts by field and index (from 1)."""

    def __init__(self, errors: Errors, lines: lyaml.Lines | None = None, tree: Any = None) -> None:
        super().__init__(f"declarative config is invalid: {pretty.write(errors, '')}")
        self.errors = errors
        self.lines = lines or {}
        self.tree = tree

    def body(self) -> dict[str, Any]:
        """What `POST /config` answers with status 400."""
        return {
            "code": 14,
            "name": "invalid declarative configuration",
            "message": str(self),
            "fields": json_table(self.errors),
        }

    def kong_text(self) -> str:
        """What `kong start` prints (pretty_print_error). Raises InternalError where Kong cannot."""
        return pretty_print(self.errors)

    def located(self, filename: str) -> list[str]:
        """One text per problem: "kong.yml:12: services[1].routes[2].paths (route r): …".

        What several entities have from one anchor is one problem, told of the first of them.
        """
        found: dict[tuple[Any, ...], str] = {}
        for path, text in _by_field(_leaves(self.errors, ()), self.lines):
            if unread := _UNREAD.fullmatch(text):
                return [f"{filename}:{unread[1]}: {unread[2]}"]
            known = path
            while known and known not in self.lines:
                known = known[:-1]
            where = f"{filename}:{self.lines[known]}" if known in self.lines else filename
            name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
            entity = _entity(self.tree, path)
            told = f"{where}: {name}{f' ({entity})' if entity else ''}: {text}"
            once = (where, path[-1], text) if len(known) == len(path) else (told,)
            found.setdefault(once, told)
        return list(found.values())


_OF_URL = ("protocol", "host", "port", "path")  # what Kong makes of a service's url


class Unnamed(str):
    """The id of an entry that could have a name and has none: Kong has its null there, which it cannot print."""

    __slots__ = ()


class InternalError(Exception):
    """What makes Kong itself fail with a Lua error (500 from the Admin API)."""


def json_table(table: Any) -> Any:
    """The table as cjson writes it: a list where all keys are indexes, with null in its holes."""
    if not is_table(table):
        return table
    entries = as_dict(table)
    if entries and all(type(k) is int for k in entries):
        return [json_table(entries.get(i)) for i in range(1, max(entries) + 1)]
    return {tostring(k): json_table(v) for k, v in entries.items()}


def pretty_print(errors: dict[Any, Error] | list[Error], item: str = "", indent: str = "") -> str:
    rows = []
    for key, error in items(errors):
        if isinstance(key, int):
            if not item:
                raise InternalError("attempt to concatenate local 'item' (a nil value)")
            head = f"{indent}- in entry {key} of '{item}'"
        elif isinstance(key, Unnamed):
            raise InternalError("attempt to concatenate local 'k' (a userdata value)")
        else:
            head = f"{indent}in '{key}'"
        if is_table(error):
            rows += [head + ":", pretty_print(error, str(key), indent + "  ")]
        else:
            rows.append(f"{head}: {error}")
    return "\n".join(rows)


def _entity(tree: Any, path: lyaml.Path) -> str:
    """The innermost entity with a name on the way, and of a plugin whose it is: "plugin x of route y"."""
    named: list[str] = []
    kind = ""
    for step in path:
        tree = as_dict(tree).get(step) if is_table(tree) else None
        if isinstance(step, str):
            kind = step
        elif kind in _KINDS and is_table(tree):
            own = as_dict(tree)
            name = own.get("name") or own.get("username") or own.get("id")
            if isinstance(name, str):
                named.append(f"{kind.removesuffix('s')} {name}")
    inner = named[-1] if named else ""
    return f"{inner} of {named[-2]}" if inner.startswith("plugin ") and len(named) > 1 else inner


_UNREAD = re.compile(r"failed parsing declarative configuration: (\d+):\d+: (.*)", re.DOTALL)
_KINDS = frozenset({"services", "routes", "plugins", "consumers", "upstreams", "targets"})


def _leaves(errors: Any, path: lyaml.Path) -> Iterator[tuple[lyaml.Path, str]]:
    for key, error in items(errors):
        if is_table(error):
            yield from _leaves(error, (*path, key))
        else:
            yield (*path, key), str(error)


def _by_field(leaves: Iterator[tuple[lyaml.Path, str]], lines: lyaml.Lines) -> Iterator[tuple[lyaml.Path, str]]:
    """What Kong says of the fields that it makes of a service's `url` is one problem: the `url`."""
    of_urls: dict[lyaml.Path, list[str]] = {}
    for path, text in leaves:
        url = (*path[:-1], "url")
        if path not in lines and path[-1] in _OF_URL and url in lines:
            of_urls.setdefault(url, []).append(f"{path[-1]}: {text}")
        else:
            yield path, text
    for url, texts in of_urls.items():
        yield url, f"not like http://host:port/path: {'; '.join(texts)}"
