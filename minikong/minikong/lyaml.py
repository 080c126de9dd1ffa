"""YAML as Kong reads it: libyaml with lyaml's rules for plain scalars (YAML 1.1, no timestamps), with lines.

An empty list and an empty map are the same empty table, as in Lua.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from minikong.schema.tables import whole

Path = tuple[str | int, ...]
Lines = dict[Path, int]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_OCTAL = re.compile(r"([+-]?)0_*([0-7][0-7_]*)")
_DECIMAL = re.compile(r"([+-]?)_*([0-9][0-9_]*)")
_BINARY = re.compile(r"([+-]?)0b_*([01][01_]+)")
_HEX = re.compile(r"([+-]?)0x_*([0-9a-fA-F][0-9a-fA-F_]*)")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_SEXAGESIMAL = re.compile(r"([+-]?)([0-9]+:[0-5]?[0-9][:0-9]*)(\.[0-9]+)?")
_INFINITE = re.compile(r"([+-]?)\.(?:inf|Inf|INF)")
_QUOTED = frozenset("'\"|>")
_RESOLVER = yaml.resolver.Resolver()
_NAN = frozenset({".nan", ".NaN", ".NAN"})


class YamlError(Exception):
    """`line:column: problem` as lyaml words it: the place of the last event before the problem."""


def load(text: str) -> tuple[Any, Lines]:
    """The first document and the line (from 1) of every value in it, by path (indexes from 1).

    Raises:
        YamlError: the text is no YAML.
    """
    try:
        loader = yaml.CSafeLoader(text)
        try:
            loader.check_node()  # consumes the start of the stream
            node = loader.get_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as problem:
        raise YamlError(_describe(text, problem)) from None
    lines: Lines = {}
    if node is None:
        return None, lines
    found = _value(node, (), lines)
    return ({} if found is None else found), lines  # lyaml.null is a table


def load_json(text: str) -> Any:
    """A JSON document with Lua's numbers and tables. Raises ValueError."""
    return _from_json(json.loads(text))


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_json(v) for v in value] or {}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return whole(value)
    return value


def _describe(text: str, problem: yaml.YAMLError) -> str:
    line = column = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if event.start_mark is not None:
                line, column = event.start_mark.line + 1, event.start_mark.column + 1
    except yaml.YAMLError:
        pass
    return f"{line}:{column}: {getattr(problem, 'problem', None) or problem}"


def _value(node: yaml.Node, path: Path, lines: Lines) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), lines) for i, child in enumerate(node.value, 1)] or {}
    assert isinstance(node, yaml.MappingNode)
    table: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else str(key_node)
        if key == "<<" and key_node.style not in _QUOTED:
            merged = _value(value_node, path, lines)
            for source in merged if isinstance(merged, list) else [merged]:
                table.update({k: v for k, v in source.items() if k not in table})
            continue
        table[key] = _value(value_node, (*path, key), lines)
        # Of an alias the anchor's line: there it is written.
        lines[(*path, key)] = min(key_node.start_mark.line, value_node.start_mark.line) + 1
    return table


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style in _QUOTED:
        return text
    resolved = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    explicit = node.tag != resolved
    return text if explicit and node.tag == "tag:yaml.org,2002:str" else _implicit(text)


def _implicit(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    number = _number(text)
    return text if number is None else number


def _integer(match: re.Match[str] | None, base: int) -> int | float | None:
    if match is None:
        return None
    value = int(match[2].replace("_", ""), base)
    return whole(-value if match[1] == "-" else value)


def _number(text: str) -> int | float | None:
    found = _integer(_OCTAL.fullmatch(text), 8)
    if found is None:
        found = _integer(_DECIMAL.fullmatch(text), 10)
    if found is not None:
        return found
    plain = text.replace("_", "")
    if _FLOAT.fullmatch(plain) and re.search(r"[.eE]", text):
        return whole(float(plain))
    infinite = _INFINITE.fullmatch(text)
    if infinite:
        return float("-inf") if infinite[1] == "-" else float("inf")
    if text in _NAN:
        return float("nan")
    found = _integer(_HEX.fullmatch(text), 16)
    if found is None:
        found = _integer(_BINARY.fullmatch(text), 2)
    if found is not None:
        return found
    sexagesimal = _SEXAGESIMAL.fullmatch(text)
    if sexagesimal:
        total = 0.0
        for digits in re.findall(r"([0-9]+):?", sexagesimal[2]):
            total = total * 60 + int(digits)
        total += float(sexagesimal[3] or 0)
        return whole(-total if sexagesimal[1] == "-" else total)
    return None
