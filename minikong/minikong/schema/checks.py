"""Checks over several fields of a record (kong/db/schema/init.lua, `Schema.entity_checkers`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from minikong.schema.tables import MISSING, Error, get_path, is_reference, nonempty, set_path
from minikong.schema.validators import quoted_list


class Field(Protocol):
    """What a check asks of a field (`minikong.schema.record.Field`)."""

    attrs: dict[str, Any]
    type: str

    def validate(self, value: Any) -> Error | None:
        """The error of `value`, or None."""


class Fields(Protocol):
    """The fields of the record that is checked, by paths."""

    def find(self, name: str) -> Field | None:
        """The field, or None where there is none."""

    def over(self, name: str, attrs: dict[str, Any]) -> Field:
        """The field with the attributes of a condition laid over its own."""


Values = dict[Any, Any]
Errors = dict[Any, Error]
# A checker gives None, or the text for "@entity".
Checker = Callable[[Values, Any, Errors, Fields], str | None]


def _set_names(values: Values, names: list[str]) -> list[str]:
    return [name for name in names if nonempty(get_path(values, name))]


def _at_least_one_of(values: Values, names: list[str], errors: Errors, fields: Fields) -> str | None:
    if _set_names(values, names):
        return None
    return f"at least one of these fields must be non-empty: {quoted_list(names)}"


def _only_one_of(values: Values, names: list[str], errors: Errors, fields: Fields) -> str | None:
    if len(_set_names(values, names)) == 1:
        return None
    return f"exactly one of these fields must be non-empty: {quoted_list(names)}"


def _distinct(values: Values, names: list[str], errors: Errors, fields: Fields) -> str | None:
    seen = [get_path(values, name) for name in _set_names(values, names)]
    if all(seen.count(value) == 1 for value in seen):
        return None
    return f"values of these fields must be distinct: {quoted_list(names)}"


def _mutually_required(values: Values, names: list[str], errors: Errors, fields: Fields) -> str | None:
    if len(_set_names(values, names)) in (0, len(names)):
        return None
    return f"all or none of these fields must be set: {quoted_list(names)}"


def _mutually_exclusive(values: Values, names: list[str], errors: Errors, fields: Fields) -> str | None:
    if len(_set_names(values, names)) <= 1:
        return None
    return f"only one or none of these fields must be set: {quoted_list(names)}"


def _mutually_exclusive_sets(values: Values, arg: Any, errors: Errors, fields: Fields) -> str | None:
    first, second = (_set_names(values, arg[name] or []) for name in ("set1", "set2"))
    if not (first and second):
        return None
    return f"these sets are mutually exclusive: ({quoted_list(first)}), ({quoted_list(second)})"


def _value(values: Values, name: str) -> Any:
    found = get_path(values, name)
    return None if found is MISSING else found


def _conditional(values: Values, arg: Any, errors: Errors, fields: Fields) -> str | None:
    if fields.over(arg["if_field"], arg["if_match"]).validate(_value(values, arg["if_field"])) is not None:
        return None
    then = _value(values, arg["then_field"])
    text = f"failed conditional validation given value of field '{arg['if_field']}'"
    if arg["then_match"].get("required") is True and then is None:
        set_path(errors, arg["then_field"], "required field missing")
        return text
    error = fields.over(arg["then_field"], arg["then_match"]).validate(then)
    if error is None:
        return None
    set_path(errors, arg["then_field"], error)
    return arg["then_err"].replace("%s", arg["if_field"]) if arg.get("then_err") else text


def _conditional_at_least_one_of(values: Values, arg: Any, errors: Errors, fields: Fields) -> str | None:
    value = get_path(values, arg["if_field"])
    if value is MISSING:
        return None
    for branch in ("", "else_"):
        match = arg.get(f"{branch or 'if_'}match")
        if match is None or fields.over(arg["if_field"], match).validate(value) is not None:
            continue
        names = arg.get(f"{branch}then_at_least_one_of") or []
        if _set_names(values, names):
            return None
        custom = arg.get(f"{branch}then_err")
        if custom:
            return str(custom).replace("%s", quoted_list(names))
        return f"at least one of these fields must be non-empty: {quoted_list(names)}"
    return None


class _Rule:
    """How a check is run: which of its fields it needs, and whether missing or invalid ones stop it."""

    def __init__(
        self,
        checker: Checker,
        *,
        sources: tuple[str, ...] = (),
        with_missing: bool = False,
        with_invalid: bool = False,
        needs: tuple[str, ...] | None = None,
    ) -> None:
        self.checker = checker
        self.sources = sources
        self.with_missing = with_missing
        self.with_invalid = with_invalid
        self.needs = needs

    def field_names(self, arg: Any) -> tuple[list[str], list[str]]:
        """The fields a check looks at, and those of them that must be there."""
        if not self.sources:
            return list(arg), list(arg)
        looked_at: list[str] = []
        needed: list[str] = []
        for source in self.sources:
            named = arg.get(source)
            names = [named] if isinstance(named, str) else list(named or [])
            looked_at += names
            if self.needs and source in self.needs:
                needed += names
        return looked_at, needed


RULES: dict[str, _Rule] = {
    "at_least_one_of": _Rule(_at_least_one_of, with_missing=True, with_invalid=True),
    "conditional_at_least_one_of": _Rule(
        _conditional_at_least_one_of,
        sources=("if_field", "then_at_least_one_of", "else_then_at_least_one_of"),
        with_missing=True,
        with_invalid=True,
    ),
    "only_one_of": _Rule(_only_one_of, with_invalid=True),
    "distinct": _Rule(_distinct, with_invalid=True),
    "conditional": _Rule(_conditional, sources=("if_field", "then_field"), with_invalid=True, needs=("if_field",)),
    "mutually_required": _Rule(_mutually_required, with_missing=True),
    "mutually_exclusive": _Rule(_mutually_exclusive, with_missing=True),
    "mutually_exclusive_sets": _Rule(_mutually_exclusive_sets, sources=("set1", "set2"), with_missing=True),
}


def run(entity_checks: list[dict[str, Any]], values: Values, errors: Errors, fields: Fields) -> None:
    """Runs the checks in order and adds what they find to `errors` ("@entity" and the fields concerned)."""
    for entry in entity_checks:
        for name, arg in entry.items():
            if arg is not None:
                _run_one(name, arg, values, errors, fields)


def _run_one(name: str, arg: Any, values: Values, errors: Errors, fields: Fields) -> None:
    rule = RULES[name]
    looked_at, needed = rule.field_names(arg)
    present = False
    missing: list[str] = []
    for field_name in looked_at:
        value = get_path(values, field_name)
        field = fields.find(field_name)
        if value is MISSING:
            nilable = field is not None and bool(field.attrs.get("nilable"))
            if field_name in needed and not rule.with_missing and not nilable:
                missing.append(field_name)
            continue
        present = True
        if field and field.type == "string" and field.attrs.get("referenceable") and is_reference(value):
            return  # its value is not known yet
    if any(errors.get(field_name) for field_name in looked_at) and not rule.with_invalid:
        return
    if not present and not rule.with_missing:
        return
    if missing:
        for field_name in missing:
            set_path(errors, field_name, "field required for entity check")
        return
    text = rule.checker(values, arg, errors, fields)
    if text is not None:
        entity = errors.setdefault("@entity", {})
        entity[len(entity) + 1] = text
