"""What the rules look at: routes with the plugins that run on them, of a declarative file or of flat lists."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kong_claude.doctor.settings import Settings, of_environment
from kong_claude.problem import Problem

Entity = Mapping[str, Any]
Place = tuple[str | int, ...]
"""Keys and numbers (from 0) on the way from a document to something in it."""
HTTP = frozenset({"http", "https", "grpc", "grpcs"})
_NAMESPACE = uuid.UUID("fd02801f-0957-4a15-a55a-c8d9606f30b5")  # kong/db/declarative: of derived ids


class Written(dict[str, Any]):
    """An entity that knows where in its file it stands."""

    place: Place = ()


@dataclass(frozen=True)
class RouteView:
    """A route, its service, and every plugin entity that can run on it (its own, its service's, global ones).

    `displaced`: those that would, were there none more specific.
    """

    name: str
    route: Entity
    service: Entity
    plugins: tuple[Entity, ...]
    displaced: tuple[Entity, ...] = ()

    def named(self, *names: str) -> list[Entity]:
        return [p for p in self.plugins if p.get("name") in names]

    def active(self, *names: str) -> list[Entity]:
        """Those that run, whoever calls."""
        return [p for p in self.named(*names) if runs(p) and not of_consumer(p)]

    @property
    def streams(self) -> frozenset[str]:
        """Its protocols that are none of HTTP's (tcp, tls …)."""
        return frozenset(self.route.get("protocols") or ()) - HTTP


@dataclass(frozen=True)
class View:
    """A whole configuration with the settings that Kong runs by."""

    routes: tuple[RouteView, ...]
    plugins: tuple[Entity, ...]
    settings: Settings = field(default_factory=Settings)
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each upstream, as host:port
    consumers: tuple[Entity, ...] = ()
    consumer_groups: tuple[Entity, ...] = ()
    lines: Mapping[Place, int] = field(default_factory=dict, repr=False)
    kinds: frozenset[str] = frozenset()  # of entities that the file lists, known here or not
    is_running: bool = False  # it is what a Kong has taken

    @property
    def served(self) -> tuple[RouteView, ...]:
        """The routes that Kong's router knows: not those of a service that is switched off."""
        return tuple(route for route in self.routes if route.service.get("enabled", True))

    def line(self, plugin: Entity, field_name: str = "") -> int | None:
        """Of a field of a plugin's configuration, such as `rate_tiers.tiers[2].name` (from 1); of what is around it
        where it is not there; None where that is not known."""
        steps = re.findall(r"[^.\[\]]+", field_name)
        place = (*getattr(plugin, "place", ()), "config", *(int(s) - 1 if s.isdigit() else s for s in steps))
        return next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), None)

    def caller(self, plugin: Entity) -> str:
        """Whose a plugin of a consumer or a group is."""
        kind, own = ("consumer", self.consumers) if plugin.get("consumer") else ("consumer_group", self.consumer_groups)
        try:
            return f"{kind} {label(Index(f'{kind}s', own).find(plugin[kind]))}"
        except Problem:  # an Admin API that does not list them
            return f"{kind} {label(plugin[kind])}"


def runs(plugin: Entity) -> bool:
    """Whether Kong runs it at all. It does so on every protocol of HTTP's, if the plugin has one of them: a plugin for
    https runs on http, too (should_process_plugin in Kong's runloop/plugins_iterator.lua)."""
    return bool(plugin.get("enabled", True)) and not HTTP.isdisjoint(plugin.get("protocols") or HTTP)


def tiers_of(section: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Those that are written as a tier is, from 1."""
    tiers = section.get("tiers")
    for number, tier in enumerate(tiers if isinstance(tiers, list) else (), 1):
        if isinstance(tier, Mapping):
            yield number, tier


def of_consumer(plugin: Entity) -> bool:
    return plugin.get("consumer") is not None or plugin.get("consumer_group") is not None


def from_file(path: Path, environment: Mapping[str, str]) -> View:
    """Reads kong.yml or kong.json, nested or flat. Raises Problem with file and line."""
    try:
        text = path.read_text()
        # As Kong does, by the file's name: JSON may be indented with tabs, YAML may not.
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        _check_extent(document)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise Problem(f"{path}:{error.lineno}: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Problem(f"{path}{line}: {error.problem}") from error
    except RecursionError as error:
        raise Problem(f"{path}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date, a number, a character or a key that is none
        raise Problem(f"{path}: {str(error).splitlines()[0]:.200}") from error
    if not isinstance(document, dict) or "_format_version" not in document:
        raise Problem(f"{path}: is not a declarative Kong configuration (no _format_version)")
    try:
        flat = flatten(document)
        _check_plugins(path, flat["plugins"])
        read = build(flat, of_environment(environment))
        kinds = frozenset(k for k, listed in document.items() if listed and not str(k).startswith("_"))
        return replace(read, lines=lines_of(text) if path.suffix != ".json" else {}, kinds=kinds)
    except RecursionError as error:
        raise Problem(f"{path}: is nested too deeply, or an alias is in what it stands for") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise Problem(f"{path}: services, routes, plugins … must be lists of mappings ({error})") from error


def _check_extent(document: Any) -> None:
    """Raises ValueError for aliases that multiply, or that lead back to themselves."""
    left, seen = [document], 0
    while left:
        value = left.pop()
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        seen += len(inside)
        if seen > _MOST_VALUES:
            raise ValueError("has more than a million values, aliases counted")
        left.extend(inside)


def _check_plugins(path: Path, plugins: Iterable[Entity]) -> None:
    """Raises Problem. What else is wrong in a configuration the plugin says itself (`bad-config`)."""
    for plugin in plugins:
        name, config = plugin.get("name"), plugin.get("config")
        if not isinstance(name, str):
            raise Problem(f"{path}: each plugin must have a name")
        if config is not None and not isinstance(config, Mapping):
            raise Problem(f"{path}: the config of plugin {name} must be a mapping")


_MOST_VALUES = 1_000_000


def flatten(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Nested services/routes/consumers/plugins as flat lists. A nested entity refers to its parent by the parent
    itself, since that need have neither name nor id."""
    shared = document.get("_plugin_configs") or {}
    flat: dict[str, list[dict[str, Any]]] = {
        k: [] for k in ("services", "routes", "plugins", "consumers", "consumer_groups", "upstreams", "targets")
    }

    def take(kind: str, entity: dict[str, Any], place: Place, **parent: dict[str, Any]) -> None:
        entity = Written({**entity, **parent})
        entity.place = place
        if kind == "plugins" and "_config" in entity:
            entity["config"] = {**from_deck(shared, entity.pop("_config")), **(entity.get("config") or {})}
        for child in ("routes", "plugins", "targets"):
            for number, nested in enumerate(entity.pop(child, None) or []):
                take(child, nested, (*place, child, number), **{kind.removesuffix("s"): entity})
        flat[kind].append(entity)

    for kind in flat:
        for number, entity in enumerate(document.get(kind) or []):
            take(kind, entity, (kind, number))
    return flat


def lines_of(text: str) -> dict[Place, int]:
    """The line of everything in a YAML document, by its place; what an alias or a merge brings has the anchor's."""
    found: dict[Place, int] = {}

    def walk(node: yaml.Node, place: Place) -> None:
        found.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                walk(value, (*place, number))
        elif isinstance(node, yaml.MappingNode):
            for key, value in sorted(node.value, key=lambda pair: pair[0].tag.endswith(":merge")):
                if key.tag.endswith(":merge"):
                    for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        walk(each, place)
                else:
                    walk(value, (*place, key.value))
                    found[*place, key.value] = min(key.start_mark.line, value.start_mark.line) + 1

    whole = yaml.compose(text, yaml.SafeLoader)
    if whole is not None:
        walk(whole, ())
    return found


def from_deck(shared: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What decK puts into a plugin's `config` for its `_config: name`. Raises Problem."""
    if name not in shared:
        raise Problem(f"a plugin's _config is {name!r}, which is not among the _plugin_configs")
    return shared[name] or {}


def build(flat: Mapping[str, list[dict[str, Any]]], settings: Settings) -> View:
    """Joins flat entities into one view per route. Raises Problem for a reference to nothing, as Kong refuses it."""
    services, known = Index("services", flat["services"]), Index("routes", flat["routes"])
    plugins = [(p, known.find(p.get("route")), services.find(p.get("service"))) for p in flat["plugins"]]
    routes = []
    for route in flat["routes"]:
        service = services.find(route.get("service"))
        meant = [
            plugin
            for plugin, of_route, of_service in plugins
            if (of_route is None or of_route is route) and (of_service is None or of_service is service)
        ]
        running = effective(meant)
        displaced = [p for p in meant if not any(p is other for other in running)]
        routes.append(RouteView(label(route), route, service or {}, tuple(running), tuple(displaced)))
    upstreams = Index("upstreams", flat.get("upstreams", []))
    targets = [(upstreams.find(t.get("upstream")), address(str(t.get("target", "")))) for t in flat.get("targets", [])]
    pools = {
        str(upstream["name"]).lower(): tuple(target for of, target in targets if of is upstream)
        for upstream in flat.get("upstreams", [])
    }
    consumers, groups = (tuple(flat.get(kind, ())) for kind in ("consumers", "consumer_groups"))
    return View(tuple(routes), tuple(flat["plugins"]), settings, pools, consumers, groups)


def address(target: str) -> str:
    """`host:port` of an upstream's target, with the port that Kong adds to one that has none."""
    name = target.lower()
    return name if re.search(r"[^:]:\d+$|\]:\d+$", name) else f"{name}:8000"


class Index:
    """Entities of one kind, found as Kong finds what a foreign key names."""

    def __init__(self, kind: str, entities: Iterable[Entity]) -> None:
        self._kind = kind
        self._entities = list(entities)
        self._names: dict[str, Entity] = {}
        self._ids: dict[str, Entity] = {}
        for entity in self._entities:
            name, own = entity.get("name") or entity.get("username"), entity.get("id")
            if name is not None:
                self._names[name] = entity
            if own is not None or name is not None:
                self._ids[own or derived_id(kind, str(name))] = entity

    def find(self, reference: Any) -> Entity | None:
        """What a name, an id, `{"id": …}`, `{"name": …}` or the entity itself names; None for None. Raises Problem."""
        if reference is None:
            return None
        if isinstance(reference, Mapping):
            for entity in self._entities:
                if entity is reference:
                    return entity
            by_id, by_name = reference.get("id"), reference.get("name")
        else:
            by_id = by_name = reference
        found = self._names.get(by_name) if by_name is not None else None
        if found is None and by_id is not None:
            found = self._ids.get(by_id)
        if found is None:
            raise Problem(f"something refers to {by_name or by_id!r}, which is not among the {self._kind}")
        return found


def derived_id(kind: str, name: str) -> str:
    """The id that Kong without a database gives an entity that has a name and no id."""
    return str(uuid.uuid5(uuid.uuid5(_NAMESPACE, kind), name))


def label(reference: Any) -> str:
    """What to call an entity, or what a reference to one names."""
    if not isinstance(reference, Mapping):
        return str(reference)
    known = [reference.get(key) for key in ("name", "username", "id", "custom_id")]
    place = [reference.get("url") or reference.get("host"), *(reference.get("hosts") or ())]
    place += reference.get("paths") or ()
    return str(next(filter(None, known), None) or " ".join(str(part) for part in place if part) or "?")


def effective(plugins: Iterable[Entity]) -> list[Entity]:
    """Of several with one name the most specific alone runs (Kong's runloop/plugins_iterator.lua); those that do not
    run and those of consumers do not displace another."""

    def rank(plugin: Entity) -> int:
        return 2 * (plugin.get("route") is not None) + (plugin.get("service") is not None)

    plugins = list(plugins)
    displacing = [p for p in plugins if runs(p) and p.get("consumer") is None and p.get("consumer_group") is None]
    best = {p.get("name"): max(rank(o) for o in displacing if o.get("name") == p.get("name")) for p in displacing}
    return [p for p in plugins if p not in displacing or rank(p) == best[p.get("name")]]
