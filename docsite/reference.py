"""The pages of the reference, out of what the programs themselves go by: settings, schemas, routes, problems,
metrics."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import claude_invoker
from claude_invoker import problem
from claude_invoker.app import create_app
from claude_invoker.metrics import Metrics
from claude_invoker.runs.engine import Engine
from claude_invoker.settings import Settings
from kong_claude.gateway.schema import SCHEMA as GATEWAY
from kong_claude.jwt_claims.schema import SCHEMA as JWT_CLAIMS
from kong_claude.metrics import registry as plugin_metrics
from kong_claude.metrics.schema import SCHEMA as METRICS
from kong_claude.prompt_context.schema import SCHEMA as PROMPT_CONTEXT
from kong_claude.rate_tiers.schema import SCHEMA as RATE_TIERS
from kong_claude.schema import Field

_BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"))
_OF_THE_MACHINE = {
    "state_dir": "`claude-invoker-UID` in the temporary directory",
    "max_starts": "one for each core",
}
"""Defaults that are another on each machine."""


def pages() -> dict[str, str]:
    """Name → Markdown."""
    with tempfile.TemporaryDirectory(prefix="docsite-") as state:
        settings_of_nobody = Settings(state_dir=Path(state), trust="open", isolation="none", pool_size=0)
        return {
            "settings": settings(),
            "plugins": plugins(),
            "routes": routes(settings_of_nobody),
            "problems": problems(),
            "metrics": metrics(settings_of_nobody),
        }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


# Settings of the invoker


def settings() -> str:
    told = _docstrings(Settings)
    rows = [
        (_variables(name, info), f"{told.get(name, '')} *{_kind(info.annotation)}*{_default(name, info)}")
        for name, info in Settings.model_fields.items()
    ]
    return (
        "# Settings of the invoker\n\nEnvironment variables of `claude-invoker serve` and `claude-invoker worker`. "
        "Each may be set as `…_FILE` instead: the path of a file with the value, which no other user can read. Times "
        "are seconds, sizes bytes, money US dollars. The API's key is `ANTHROPIC_API_KEY`, or "
        "`INVOKER_ANTHROPIC_API_KEY_FILE`. A variable that begins with `INVOKER_` and is not here keeps the invoker "
        f"from starting.\n\n{table(('variable', ''), rows)}\n"
    )


def _docstrings(of: type) -> dict[str, str]:
    """Of a class's fields: the strings that stand below them."""
    (found,) = [node for node in ast.parse(inspect.getsource(of)).body if isinstance(node, ast.ClassDef)]
    told = {}
    for node, after in zip(found.body, found.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            text = inspect.cleandoc(ast.literal_eval(after.value)).replace("\n", " ")
            told[node.target.id] = re.sub(r"\bdocs/([a-z-]+\.md)", r"[\1](../\1)", text)
    return told


def _variables(name: str, info: FieldInfo) -> str:
    alias = info.validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [f"INVOKER_{name.upper()}"]
    return ", ".join(f"`{each}`" for each in names)


def _kind(annotation: Any) -> str:
    """What may stand there, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(each for each in arguments if each is not type(None)))
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return "names, by commas"
    if origin is dict:
        return "JSON"
    words = {bool: "`true`, `false`", int: "whole number", float: "number", SecretStr: "secret", Path: "path"}
    return words.get(annotation, "text")


def _default(name: str, info: FieldInfo) -> str:
    if name in _OF_THE_MACHINE:
        return f", by default {_OF_THE_MACHINE[name]}"
    value = info.default
    if value is PydanticUndefined or value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        shown = ",".join(value)
    elif isinstance(value, bool):
        shown = str(value).lower()
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f", by default `{shown}`{_in_words(value)}"


def _in_words(value: Any) -> str:
    for unit, word in _BINARY:
        if isinstance(value, int) and value >= unit and value % unit == 0:
            return f" ({value // unit} {word})"
    return ""


# Configuration of the plugins


def plugins() -> str:
    shared = [name for name in map(_name, GATEWAY) if name not in ("jwt_claims", "rate_tiers", "prompt_context")]
    parts = [
        "# Configuration of the plugins\n\nThe fields as Kong has them. Where a field is *referenceable* its value may "
        "be a reference into a vault of Kong's, such as `{vault://env/claude-redis-url}`.",
    ]
    for plugin, schema in (
        ("claude-jwt-claims", JWT_CLAIMS),
        ("claude-rate-tiers", RATE_TIERS),
        ("claude-prompt-context", PROMPT_CONTEXT),
        ("claude-metrics", METRICS),
    ):
        parts.append(f"## {plugin}\n\n" + "\n\n".join(_fields(schema, "")))
    parts.append(
        "## claude-gateway\n\nThe first three in one: what they have stands below `jwt_claims`, `rate_tiers` and "
        "`prompt_context`, and the following once for all.\n\n"
        + "\n\n".join(_fields([each for each in GATEWAY if _name(each) in shared], ""))
    )
    return "\n\n".join(parts) + "\n"


def _name(field: Field) -> str:
    return next(iter(field))


def _fields(schema: Iterable[Field], path: str) -> Iterator[str]:
    """A table of these fields, then one for each record in them."""
    rows, below = [], []
    for each in schema:
        name, rules = _name(each), each[_name(each)]
        inner = _record(rules)
        rows.append((f"`{name}`", f"{_what(rules)} *{_type(rules)}*{_given(rules.get('default'))}"))
        if inner is not None:
            more = {"array": "[]", "map": ".NAME"}.get(rules["type"], "")
            below.append((f"{path}{name}{more}", inner))
    yield (f"### `{path.rstrip('.')}`\n\n" if path else "") + table(("field", ""), rows)
    for inside, fields in below:
        yield from _fields(fields, f"{inside}.")


def _record(rules: Mapping[str, Any]) -> list[Field] | None:
    found = rules.get("elements") or rules.get("values") or rules
    return found.get("fields") if found.get("type") == "record" else None


def _type(rules: Mapping[str, Any]) -> str:
    inside = rules.get("elements") or rules.get("values")
    of = f" of {inside['type']}" if inside else ""
    return f"{rules['type']}{of}{', required' if rules.get('required') else ''}"


def _given(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    return f", by default `{json.dumps(value) if isinstance(value, bool | list | dict) else value}`"


def _what(rules: Mapping[str, Any]) -> str:
    inside = rules.get("elements") or rules.get("values") or {}
    told = [str(rules.get("description", ""))]
    for of in (rules, inside):
        if "one_of" in of:
            told.append("One of " + ", ".join(f"`{each}`" for each in of["one_of"]) + ".")
        if "between" in of:
            told.append("Between {} and {}.".format(*of["between"]))
        if "gt" in of:
            told.append(f"More than {of['gt']}.")
        if of.get("referenceable"):
            told.append("Referenceable.")
    return " ".join(filter(None, told))


# The invoker's API, problems, metrics


def routes(of: Settings) -> str:
    document = create_app(of).openapi()
    rows = []
    for path, methods in document["paths"].items():
        for method, each in methods.items():
            answers = ", ".join(each.get("responses", {}))
            rows.append((f"`{method.upper()} {path}`", str(each.get("summary", "")), answers))
    return (
        "# Routes\n\nBelow `/claude` at the gateway. The whole description, which generators of clients read, is "
        "`GET /claude/openapi.json`; what the fields mean is in [the API](../api.md).\n\n"
        f"{table(('route', '', 'answers'), rows)}\n"
    )


def problems() -> str:
    statuses = _statuses()
    rows = [
        (f"`{kind}`", ", ".join(map(str, sorted(statuses.get(kind, ())))), title)
        for kind, title in problem.TITLES.items()
    ]
    return (
        "# Problems\n\nErrors of the invoker are problem details (RFC 9457). `type` is `"
        f"{problem.PREFIX}KIND` and does not change; `detail` says what is wrong in this case, and may.\n\n"
        f"{table(('kind', 'status', ''), rows)}\n"
    )


def _statuses() -> dict[str, set[int]]:
    """Kind → the statuses that it has in the invoker's source."""
    found: dict[str, set[int]] = {}
    for path in sorted(Path(claude_invoker.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            status, kind = node.args[:2]
            if isinstance(status, ast.Constant) and isinstance(kind, ast.Constant) and kind.value in problem.TITLES:
                found.setdefault(str(kind.value), set()).add(int(str(status.value)))
    return found


def metrics(of: Settings) -> str:
    invoker = Metrics(Engine(of))._registry
    collectors = [each for each in vars(plugin_metrics).values() if isinstance(each, MetricWrapperBase)]
    gateway = [family for each in collectors for family in each.describe()]
    parts = ["# Metrics\n\nWhat Prometheus sees. A histogram has `_bucket`, `_sum` and `_count`, too."]
    for title, where, families in (
        ("The gateway", "`GET /claude/metrics`, for the role `admin`", gateway),
        ("The invoker", "`GET /metrics` of the invoker itself", list(invoker.collect())),
    ):
        names = {"counter": "_total"}
        rows = [(f"`{each.name}{names.get(each.type, '')}`", each.type, each.documentation) for each in families]
        parts.append(f"## {title}\n\n{where}.\n\n{table(('name', 'type', ''), rows)}")
    return "\n\n".join(parts) + "\n"
