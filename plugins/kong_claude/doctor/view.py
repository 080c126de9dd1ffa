"""What the rules look at: routes with the plugins that run on them, from a declarative file or an Admin API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kong_claude.cli.problem import Problem

Entity = Mapping[str, Any]


@dataclass(frozen=True)
class RouteView:
    """A route, its service, and every plugin entity that can run on it (its own, its service's, global ones)."""

    name: str
    route: Entity
    service: Entity
    plugins: tuple[Entity, ...]

    def named(self, *names: str) -> list[Entity]:
        return [p for p in self.plugins if p.get("name") in names]


@dataclass(frozen=True)
class View:
    """A whole configuration with the environment that Kong runs in."""

    routes: tuple[RouteView, ...]
    plugins: tuple[Entity, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    resolved: bool = False  # from an Admin API: defaults are filled in and references cannot be told from secrets


def from_file(path: Path, environment: Mapping[str, str]) -> View:
    """Reads kong.yml, nested or flat. Raises Problem with file and line."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Problem(f"{path}{line}: {error.problem}") from error
    if not isinstance(document, dict) or "_format_version" not in document:
        raise Problem(f"{path}: is not a declarative Kong configuration (no _format_version)")
    return build(dict(flatten(document)), environment)


def flatten(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Nested services/routes/consumers/plugins as flat lists that name their parents."""
    flat: dict[str, list[dict[str, Any]]] = {"services": [], "routes": [], "plugins": [], "consumers": []}

    def take(kind: str, entity: dict[str, Any], **parents: Any) -> None:
        entity = {**entity, **{k: v for k, v in parents.items() if v is not None}}
        key = entity.get("name") or entity.get("username") or entity.get("id")
        singular = kind.removesuffix("s")
        for child in ("routes", "plugins"):
            for nested in entity.pop(child, None) or []:
                take(child, nested, **{singular: key})
        flat[kind].append(entity)

    for kind in flat:
        for entity in document.get(kind) or []:
            take(kind, entity)
    yield from flat.items()


def from_admin(url: str, environment: Mapping[str, str]) -> View:
    """Asks a running Kong's Admin API. Raises Problem."""
    return View(
        **{
            **build({k: fetch(url, k) for k in ("services", "routes", "plugins")}, environment).__dict__,
            "resolved": True,
        }
    )


def fetch(url: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page: str | None = f"/{kind}?size=1000"
    while page:
        try:
            with urllib.request.urlopen(url.rstrip("/") + page, timeout=10) as response:
                answer = json.load(response)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Problem(f"{url} does not answer like Kong's Admin API ({error})") from error
        found += answer.get("data") or []
        page = answer.get("next")
    return found


def build(flat: Mapping[str, list[dict[str, Any]]], environment: Mapping[str, str]) -> View:
    """Joins flat entities into one view per route."""
    routes = []
    for route in flat["routes"]:
        service = next((s for s in flat["services"] if refers(route.get("service"), s)), {})
        plugins = [
            p
            for p in flat["plugins"]
            if (p.get("route") is None or refers(p["route"], route))
            and (p.get("service") is None or refers(p["service"], service))
        ]
        name = str(route.get("name") or route.get("id") or route.get("paths") or "?")
        routes.append(RouteView(name, route, service, tuple(plugins)))
    return View(tuple(routes), tuple(flat["plugins"]), environment)


def refers(reference: Any, entity: Entity) -> bool:
    """True where a foreign key (`name`, `id`, or `{"id": …}`) names the entity."""
    if isinstance(reference, Mapping):
        reference = reference.get("id") or reference.get("name")
    return reference is not None and reference in (entity.get("id"), entity.get("name"))
