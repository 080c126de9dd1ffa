"""What is wrong with a declarative config, in Kong's words and with its place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minikong import lyaml
from minikong.schema import pretty
from minikong.schema.tables import Error, as_dict, is_table, items, tostring

Errors = dict[Any, Error]


class DeclarativeError(Exception):
    """A declarative config that Kong refuses. `errors` is Kong's tree of texts by field and index (from 1)."""

    def __init__(self, errors: Errors, lines: lyaml.Lines | None = None) -> None:
        super().__init__(f"declarative config is invalid: {pretty.write(errors, '')}")
        self.errors = errors
        self.lines = lines or {}

    def body(self) -> dict[str, Any]:
        """What `POST /config` answers with status 400."""
        return {
            "code": 14,
            "name": "invalid declarative configuration",
            "message": str(self),
            "fields": json_table(self.errors),
        }

    def kong_text(self) -> str:
        """What `kong start` prints (pretty_print_error)."""
        return pretty_print(self.errors)

    def located(self, filename: str) -> list[str]:
        """One text per problem: "kong.yml:12: services[1].routes[2].paths: …"."""
        found = []
        for path, text in _leaves(self.errors, ()):
            known = path
            while known and known not in self.lines:
                known = known[:-1]
            where = f"{filename}:{self.lines[known]}" if known in self.lines else filename
            name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
            found.append(f"{where}: {name}: {text}")
        return found


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
        else:
            head = f"{indent}in '{key}'"
        if is_table(error):
            rows += [head + ":", pretty_print(error, str(key), indent + "  ")]
        else:
            rows.append(f"{head}: {error}")
    return "\n".join(rows)


def _leaves(errors: Any, path: lyaml.Path) -> Iterator[tuple[lyaml.Path, str]]:
    for key, error in items(errors):
        if is_table(error):
            yield from _leaves(error, (*path, key))
        else:
            yield (*path, key), str(error)
