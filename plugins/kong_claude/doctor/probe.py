"""What only trying shows: do the plugins accept their configuration, does the invoker turn strangers away."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from claude_contract.attestation import DEFAULT_KID, new_private_key
from claude_contract.errors import ConfigError
from kong_claude.doctor.guards import SUITE
from kong_claude.doctor.opening import Opening
from kong_claude.doctor.rules import vault_variable
from kong_claude.doctor.view import Entity, View, label, runs
from kong_claude.guard import LUA_PLUGINS
from kong_claude.problem import Problem

# Stand for a secret or key whose reference cannot be resolved here.
PLACEHOLDER = "unresolved-reference-" + "0123456789abcdef" * 3
PLACEHOLDER_KEY = new_private_key()
# Boundaries around a run which nothing that it does gets through (docs/invoker.md).
CLOSED = ("landlock", "namespaces")


def configurations(view: View, directory: Path) -> Iterator[Opening]:
    """Starts every plugin with its configuration as Kong would; what it refuses, Kong answers with 500. What several
    have from one anchor is said once."""
    said: set[tuple[int, str, str]] = set()

    def wrong(entity: Entity, where: str, field: str, problem: str, fix: str) -> Iterator[Opening]:
        line = view.line(entity, field)
        if line is None or (line, field, problem) not in said:
            yield Opening("bad-config", f"{where}, config.{field}", problem, fix, line)
        if line is not None:
            said.add((line, field, problem))

    for entity in view.plugins:
        name = str(entity.get("name"))
        on = next((kind for kind in ("route", "service") if entity.get(kind)), None)
        where = f"plugin {name}" + (f" on {on} {label(entity[on])}" if on else "")
        if name not in SUITE:
            if name.startswith("claude-") and name not in LUA_PLUGINS:
                alike = difflib.get_close_matches(name, (*SUITE, *LUA_PLUGINS), 1)
                cure = f"name {alike[0]}" if alike else "remove it"
                yield Opening("bad-config", where, "there is no such plugin", cure, view.line(entity))
            continue
        try:
            module = load(directory / f"{name}.py")
        except Exception as error:  # whatever keeps it from being tried, it was not tried
            yield Opening(
                "unchecked",
                where,
                f"its configuration was not tried, since {directory / f'{name}.py'} cannot be loaded ({error})",
                "run the doctor where the plugins are installed, or name their directory with --plugins-directory",
            )
            continue
        strange = list(unknown({"fields": module.Schema}, entity.get("config") or {}))
        if view.is_running and strange:  # Kong has them in its schema, and shows each with each instance
            yield Opening(
                "unchecked",
                where,
                f"config.{strange[0]} is not known here: Kong has another release of the plugins",
                "run the doctor of that release",
            )
        for field in () if view.is_running else strange:
            yield from wrong(entity, where, field, "there is no such field", "correct its name")
        try:
            config = with_defaults({"fields": module.Schema}, resolve(entity.get("config") or {}, view.settings.values))
            # Kong tells an instance what it is bound to; of one that is bound to nothing the rules say so.
            plugin = module.Plugin({**config, "route_id": "doctor"})
        except ConfigError as error:
            yield from wrong(entity, where, error.field_name, error.problem, "correct the field")
        except (AttributeError, TypeError, ValueError) as error:
            yield Opening("bad-config", where, f"a value is of another kind than its field ({error})", "correct it")
        else:
            if hasattr(plugin, "close"):
                plugin.close()


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(value: Any, environment: Mapping[str, str], field: str = "") -> Any:
    """`{vault://env/…}` references by value, so that a plugin sees what it would see in Kong."""
    if isinstance(value, Mapping):
        return {k: resolve(v, environment, k) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, environment, field) for v in value]
    if isinstance(value, str) and value.startswith("{vault://"):
        found = environment.get(vault_variable(value) or "")
        if found is not None:
            return found
        if field.endswith("private_key"):
            return PLACEHOLDER_KEY
        return "redis://127.0.0.1:1" if "redis" in value else PLACEHOLDER
    return value


def unknown(record: Mapping[str, Any], value: object, path: str = "") -> Iterator[str]:
    """Fields that a record's schema does not have, such as `tiers[2].concurent` (from 1): Kong refuses the file."""
    if not isinstance(value, Mapping):
        return
    fields = {name: definition for field in record["fields"] for name, definition in field.items()}
    for name, given in value.items():
        place = f"{path}.{name}" if path else str(name)
        definition = fields.get(name)
        if definition is None:
            yield place
        elif definition["type"] == "record":
            yield from unknown(definition, given, place)
        elif definition.get("elements", {}).get("type") == "record":
            for number, each in enumerate(given if isinstance(given, list) else (), 1):
                yield from unknown(definition["elements"], each, f"{place}[{number}]")
        elif definition.get("values", {}).get("type") == "record":
            for key, each in (given if isinstance(given, Mapping) else {}).items():
                yield from unknown(definition["values"], each, f"{place}.{key}")


def with_defaults(record: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in a record's defaults as Kong does: a record that is not `required: false` is filled with {}."""
    filled = dict(value)
    for field in record["fields"]:
        ((name, definition),) = field.items()
        given = filled.get(name)
        if given is None and "default" in definition:
            given = definition["default"]
        if definition.get("type") == "record" and (given is not None or definition.get("required", True)):
            given = with_defaults(definition, given or {})
        elements = definition.get("elements") or {}
        if elements.get("type") == "record" and isinstance(given, list):
            given = [with_defaults(elements, item) for item in given]
        if given is not None:
            filled[name] = given
    return filled


def invoker(url: str, view: View) -> Iterator[Opening]:
    """Asks the invoker directly, without an attestation; and whether it knows the keys by which the gateway signs.
    Raises Problem for what is no address."""
    try:
        asked = urlsplit(url)
        asked.port  # noqa: B018  raises for what is none
        whole = asked.scheme in ("http", "https") and bool(asked.hostname) and not re.search(r"\s", url)
    except ValueError:
        whole = False
    if not whole:
        raise Problem(f"--invoker-url {url}: write it as http://host:port")
    request = urllib.request.Request(
        url.rstrip("/") + "/invoke", b'{"prompt": "doctor"}', {"Content-Type": "application/json"}
    )
    turned_away = False
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            yield Opening(
                "open-invoker", url, f"answers {response.status} without an attestation", "unset INVOKER_TRUST"
            )
    except urllib.error.HTTPError as error:
        turned_away = error.code in (401, 403)
        if not turned_away:
            yield Opening(
                "odd-invoker", url, f"answers {error.code} without an attestation, not 401", "look at its log"
            )
    except (urllib.error.URLError, OSError):
        return  # not reachable from here, which is what one wants
    checks = _ready(url)
    yield from boundary(url, checks)
    if turned_away:
        yield from unknown_keys(url, checks, view)


def _ready(url: str) -> Mapping[str, Any]:
    """What the invoker says of itself; empty where it says nothing."""
    try:
        try:
            said = urllib.request.urlopen(url.rstrip("/") + "/readyz", timeout=10)
        except urllib.error.HTTPError as not_ready:  # says it, too
            said = not_ready
        with said:
            checks = json.load(said)["checks"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return checks if isinstance(checks, Mapping) else {}


def unknown_keys(url: str, checks: Mapping[str, Any], view: View) -> Iterator[Opening]:
    """Key ids that the gateway signs with and the invoker does not know: it lets nobody in, good tokens included."""
    known = checks.get("attestation_kids")
    if not isinstance(known, list):  # a release before
        return
    for kid in sorted(signing_kids(view) - {str(each) for each in known}):
        yield Opening(
            "unknown-key",
            url,
            f"it does not know the attestation's key {kid!r}, by which the gateway signs: each request is 401 "
            f"(it knows {', '.join(map(repr, known)) or 'none'})",
            "first INVOKER_ATTESTATION_KEY with its INVOKER_ATTESTATION_KID, then the gateway's (docs/fail-closed.md)",
        )


def signing_kids(view: View) -> set[str]:
    """Of plugins that run."""
    return {
        str(attestation.get("kid") or DEFAULT_KID)
        for plugin in view.plugins
        if runs(plugin) and isinstance(attestation := (plugin.get("config") or {}).get("attestation"), Mapping)
        if any(attestation.get(name) for name in ("secret", "secret_file", "private_key"))
    }


def boundary(url: str, checks: Mapping[str, Any]) -> Iterator[Opening]:
    """What the invoker says of the boundary around its runs."""
    strength = str(checks.get("isolation", "unknown"))
    if strength.partition(" ")[0] not in CLOSED:
        lacks = "; ".join(map(str, checks.get("isolation_lacks", ())))
        yield Opening(
            "weak-boundary",
            url,
            f"the boundary around a run is {strength}" + (f" ({lacks})" if lacks else ""),
            "provide what is missing (docs/invoker.md), and let INVOKER_ISOLATION=landlock keep it so",
        )
