"""What the rules look at: routes with the plugins that run on them, from a declarative file or an Admin API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
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
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each upstream, as host:port
    resolved: bool = False  # from an Admin API: defaults are filled in and references cannot be told from secrets


def from_file(path: Path, environment: Mapping[str, str]) -> View:
    """Reads kong.yml, nested or flat. Raises Problem with file and line."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Problem(f"{path}{line}: {error.problem}") from error
    if not isinstance(document, dict) or "_format_version" not in document:
        raise Problem(f"{path}: is not a declarative Kong configuration (no _format_version)")
    try:
        return build(dict(flatten(document)), environment)
    except (AttributeError, TypeError, ValueError) as error:
        raise Problem(f"{path}: services, routes, plugins … must be lists of mappings ({error})") from error


def flatten(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Nested services/routes/consumers/plugins as flat lists that name their parents."""
    flat: dict[str, list[dict[str, Any]]] = {
        k: [] for k in ("services", "routes", "plugins", "consumers", "upstreams", "targets")
    }

    def take(kind: str, entity: dict[str, Any], **parents: Any) -> None:
        entity = {**entity, **{k: v for k, v in parents.items() if v is not None}}
        key = entity.get("name") or entity.get("username") or entity.get("id")
        singular = kind.removesuffix("s")
        for child in ("routes", "plugins", "targets"):
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
            **build(everything(url), environment).__dict__,
            "resolved": True,
        }
    )


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    found = {kind: fetch(url, kind) for kind in ("services", "routes", "plugins", "upstreams")}
    targets = [t for upstream in found["upstreams"] for t in fetch(url, f"upstreams/{upstream['id']}/targets")]
    return {**found, "targets": targets}


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
        plugins = effective(
            p
            for p in flat["plugins"]
            if (p.get("route") is None or refers(p["route"], route))
            and (p.get("service") is None or refers(p["service"], service))
        )
        name = str(route.get("name") or route.get("id") or route.get("paths") or "?")
        routes.append(RouteView(name, route, service, tuple(plugins)))
    targets = {
        str(upstream["name"]).lower(): tuple(
            str(t.get("target", "")).lower() for t in flat.get("targets", []) if refers(t.get("upstream"), upstream)
        )
        for upstream in flat.get("upstreams", [])
    }
    return View(tuple(routes), tuple(flat["plugins"]), environment, targets)


def effective(plugins: Iterable[Entity]) -> list[Entity]:
    """Of several with one name the most specific alone runs (Kong's runloop/plugins_iterator.lua); the disabled and
    those of consumers do not displace another."""

    def rank(plugin: Entity) -> int:
        return 2 * (plugin.get("route") is not None) + (plugin.get("service") is not None)

    plugins = list(plugins)
    displacing = [
        p for p in plugins if p.get("enabled", True) and not p.get("consumer") and not p.get("consumer_group")
    ]
    best = {p.get("name"): max(rank(o) for o in displacing if o.get("name") == p.get("name")) for p in displacing}
    return [p for p in plugins if p not in displacing or rank(p) == best[p.get("name")]]


def refers(reference: Any, entity: Entity) -> bool:
    """True where a foreign key (`name`, `id`, or `{"id": …}`) names the entity."""
    if isinstance(reference, Mapping):
        reference = reference.get("id") or reference.get("name")
    return reference is not None and reference in (entity.get("id"), entity.get("name"))
