"""kong.yml as resources for the Kong Ingress Controller: one KongPlugin per plugin, one Ingress per route. Pure.

Source: Kong, "Kong Ingress Controller annotations reference" and the KongPlugin custom resource (v1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

from kong_claude.doctor.view import Entity, RouteView, View, label
from kong_claude.problem import Problem

NAMESPACE = "kong-claude"
HEADER = """\
# Written by `kong-claude export kubernetes` from kong.yml; a test holds them together.
# Secrets stay references into Kong's environment: deploy/kubernetes/kong-values.yaml sets it from the Secret.
"""


# What of a file, and of each entity, arrives in Kubernetes. The rest is an error: what it did would be gone unseen.
_LISTS = {"services", "routes", "plugins"}
_ANY = {"name", "id", "tags", "created_at", "updated_at"}
_SERVICE = _ANY | {"url", "host", "port", "enabled"}
_ROUTE = _ANY | {"service", "paths", "hosts", "methods", "headers", "strip_path", "preserve_host"}
_PLUGIN = _ANY | {"route", "service", "config", "enabled", "protocols", "instance_name"}
# Field → annotation, and the default, with which the annotation may be left away: Kong's and the controller's alike.
_OF_ROUTE: dict[str, tuple[str, Any]] = {
    "protocols": ("protocols", ["http", "https"]),
    "https_redirect_status_code": ("https-redirect-status-code", 426),
    "regex_priority": ("regex-priority", 0),
    "path_handling": ("path-handling", "v0"),
    "request_buffering": ("request-buffering", True),
    "response_buffering": ("response-buffering", True),
    "snis": ("snis", None),
}
_OF_SERVICE: dict[str, tuple[str, Any]] = {
    "connect_timeout": ("connect-timeout", 60000),
    "read_timeout": ("read-timeout", 60000),
    "write_timeout": ("write-timeout", 60000),
    "retries": ("retries", 5),
    "protocol": ("protocol", "http"),
    "path": ("path", "/"),
}
_PORTS = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What Kubernetes and the controller take for a name (kongstate/route.go); of a list with another one it takes none.
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_SNI = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
# They count by what they are bound to, and a service's become plugins of each of its routes.
_COUNTED_WHERE_BOUND = {"rate-limiting", "response-ratelimiting"}


class _Gaps:
    """What Kubernetes has no place for, each said once."""

    def __init__(self) -> None:
        self.said: dict[str, None] = {}

    def add(self, text: str) -> None:
        self.said[text] = None

    def unknown(self, what: str, entity: Entity, known: Iterable[str]) -> None:
        for name in sorted(set(entity) - set(known)):
            if entity[name] not in (None, [], {}):
                self.add(f"{what}: {name} has no equivalent")


def resources(view: View, services: Sequence[Entity] = ()) -> list[dict[str, Any]]:
    """Global plugins first, then each route with its plugins; those of its service are named by every route of it.

    `services`: the manifests of the Services that Kong sends requests to, where its settings for them stand as
    annotations. Raises Problem with all that would not arrive, a line each.
    """
    gaps, made = _Gaps(), []
    for kind in sorted(view.kinds - _LISTS):
        gaps.add(f"{kind}: have no equivalent here, write them as resources of the controller")
    for plugin in view.plugins:
        if not plugin.get("enabled", True):
            continue  # does nothing in Kong either; often it is there for its anchor alone
        gaps.unknown(f"plugin {plugin.get('name')}", plugin, _PLUGIN)
        if not any(plugin.get(parent) for parent in ("route", "service", "consumer", "consumer_group")):
            made.append(kong_plugin(plugin["name"], plugin, everywhere=True))
    written: dict[str, Entity] = {}
    ingresses = Counter(resource_name(route.name) for route in view.routes)
    for name in sorted(name for name, count in ingresses.items() if count > 1):
        gaps.add(f"{ingresses[name]} routes would be named {name}: name them so that they differ")
    of_service = Counter(id(route.service) for route in view.routes)
    backends: dict[tuple[str, int], Entity] = {}
    for route in view.routes:
        names = []
        for plugin in route.plugins:
            owner = route.name if plugin.get("route") else label(route.service) if plugin.get("service") else None
            if owner is None or not plugin.get("enabled", True):
                continue
            counts = plugin["name"] in _COUNTED_WHERE_BOUND and not plugin.get("route")
            if counts and of_service[id(route.service)] > 1:
                gaps.add(f"plugin {plugin['name']} of service {owner}: would count for each of its routes apart")
            name = resource_name(f"{owner}-{plugin['name']}")
            names.append(name)
            if name not in written:
                made.append(kong_plugin(name, plugin))
            elif written[name] is not plugin:
                gaps.add(f"two plugins would be named {name}: name the routes and services so that they differ")
            written.setdefault(name, plugin)
        place = backend(route, services, gaps)
        if place is not None and backends.setdefault(place, route.service) is not route.service:
            for plugin in filter(counts_services, route.plugins):
                gaps.add(
                    f"plugin {plugin['name']}: limit_by service: {place[0]}:{place[1]} would be one service of two"
                )
        made.append(ingress(route, names, place or ("", 0), gaps))
    if gaps.said:
        raise Problem("this configuration does not fit Kubernetes:\n  " + "\n  ".join(gaps.said))
    return made


def resource_name(text: str) -> str:
    """A name that Kubernetes takes (RFC 1123) for what a Kong entity is called."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:253] or "unnamed"


def counts_services(plugin: Entity) -> bool:
    config = plugin.get("config") or {}
    return "service" in (config.get("limit_by"), (config.get("rate_tiers") or {}).get("limit_by"))


def kong_plugin(name: str, plugin: Entity, *, everywhere: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if everywhere:
        # A global plugin is cluster-scoped.
        metadata |= {"labels": {"global": "true"}, "annotations": {"kubernetes.io/ingress.class": "kong"}}
    else:
        metadata["namespace"] = NAMESPACE
    if plugin.get("tags"):
        metadata.setdefault("annotations", {})["konghq.com/tags"] = ",".join(plugin["tags"])
    made: dict[str, Any] = {
        "apiVersion": "configuration.konghq.com/v1",
        "kind": "KongClusterPlugin" if everywhere else "KongPlugin",
        "metadata": metadata,
        "plugin": plugin["name"],
    }
    if plugin.get("instance_name"):
        made["instance_name"] = plugin["instance_name"]
    if plugin.get("protocols"):
        made["protocols"] = list(plugin["protocols"])
    return made | ({"config": plugin["config"]} if plugin.get("config") else {})


def ingress(route: RouteView, plugins: list[str], place: tuple[str, int], gaps: _Gaps) -> dict[str, Any]:
    """One route of Kong's: the first host is the rule's, others are its aliases, since each rule becomes a route."""
    own, what = route.route, f"route {route.name}"
    gaps.unknown(what, own, _ROUTE | _OF_ROUTE.keys())
    # The controller's defaults for these two are not Kong's.
    annotations = {
        "konghq.com/strip-path": str(own.get("strip_path", True)).lower(),
        "konghq.com/preserve-host": str(own.get("preserve_host", False)).lower(),
    }
    if plugins:
        annotations["konghq.com/plugins"] = ",".join(plugins)
    if own.get("methods"):
        annotations["konghq.com/methods"] = ",".join(own["methods"])
    annotations |= _headers(own.get("headers") or {}, what, gaps) | _annotations(own, _OF_ROUTE)
    if own.get("tags"):
        annotations["konghq.com/tags"] = ",".join(own["tags"])
    for sni in own.get("snis") or []:
        if not _SNI.fullmatch(sni):
            gaps.add(f"{what}: SNI {sni}: an Ingress takes plain names only")
    host, *aliases = own.get("hosts") or [None]
    if aliases:
        annotations["konghq.com/host-aliases"] = ",".join(aliases)
    for each in filter(None, [host, *aliases]):
        if not _HOST.fullmatch(each):
            gaps.add(f"{what}: host {each}: an Ingress takes lower case, no port, and * only as the first label")
    if not own.get("paths"):
        gaps.add(f"{what}: has no paths, an Ingress would take them all: say paths: [/]")
    for path in own.get("paths") or []:
        if "//" in path or path.startswith("/~"):
            gaps.add(f"{what}: path {path}: in an Ingress // is one slash, and /~ begins a pattern")
    service = {"name": place[0], "port": {"number": place[1]}}
    paths = [
        {
            "path": "/" + path if path.startswith("~") else path,
            "pathType": "ImplementationSpecific",
            "backend": {"service": service},
        }
        for path in own.get("paths") or []
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": resource_name(route.name), "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"ingressClassName": "kong", "rules": [({"host": host} if host else {}) | {"http": {"paths": paths}}]},
    }


def _headers(headers: Mapping[str, Sequence[str]], what: str, gaps: _Gaps) -> dict[str, str]:
    """An annotation for each, its values apart by what is in none of them."""
    values = [value for each in headers.values() for value in each]
    apart = next((mark for mark in ",;|" if not any(mark in value for value in values)), None)
    if apart is None or any(value != value.strip() for value in values):
        gaps.add(f"{what}: headers: an Ingress cannot say values with blanks around them or with each of , ; and |")
        return {}
    found = {f"konghq.com/headers.{name}": apart.join(each) for name, each in headers.items()}
    return found if apart == "," else found | {"konghq.com/headers-separator": apart}


def backend(route: RouteView, services: Sequence[Entity], gaps: _Gaps) -> tuple[str, int] | None:
    """Name and port of the Service of the same host name, whose annotations must say what Kong's service does."""
    service, what = route.service, f"service {label(route.service)}"
    if not service:
        gaps.add(f"route {route.name}: has no service")
        return None
    gaps.unknown(what, service, _SERVICE | _OF_SERVICE.keys())
    if service.get("enabled") is False:
        gaps.add(f"{what}: is disabled, an Ingress cannot be: leave it and its routes out")
    url = urlsplit(str(service.get("url") or ""))
    protocol = str(url.scheme or service.get("protocol") or "http")
    host = str(url.hostname or service.get("host") or "")
    port = url.port or (None if url.scheme else service.get("port")) or _PORTS.get(protocol, 80)
    name, _, space = host.removesuffix(".").partition(".")
    if not _LABEL.fullmatch(name) or name.isdigit() or space.split(".")[0] not in ("", NAMESPACE):
        gaps.add(f"{what}: host {host} is no Service of the namespace {NAMESPACE}")
    wanted = _annotations({**service, "protocol": protocol, "path": url.path or service.get("path")}, _OF_SERVICE)
    found: dict[str, Any] = {}
    for manifest in services:
        if manifest.get("kind") == "Service" and (manifest.get("metadata") or {}).get("name") == name:
            found = manifest["metadata"].get("annotations") or {}
    for field, (annotation, default) in _OF_SERVICE.items():
        key = f"konghq.com/{annotation}"
        if key in wanted and str(found.get(key)) != wanted[key]:
            gaps.add(f"{what}: the Service {name} (--services FILE) must have the annotation {key}: {wanted[key]!r}")
        elif key not in wanted and str(found.get(key, default)) != str(default):
            gaps.add(
                f"{what}: the Service {name} has the annotation {key}: {str(found[key])!r}, so say {field} here too"
            )
    return name, int(port)


def _annotations(entity: Entity, table: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    found = {}
    for field, (annotation, default) in table.items():
        value = entity.get(field)
        if value in (None, default) or (isinstance(value, list) and sorted(value) == default):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        found[f"konghq.com/{annotation}"] = text.lower() if isinstance(value, bool) else text
    return found


class _Dumper(yaml.SafeDumper):
    """Lua as a block, and nothing as an alias: a resource stands alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(view: View, services: Sequence[Entity] = ()) -> str:
    """Raises Problem."""
    made = resources(view, services)
    return HEADER + yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)
