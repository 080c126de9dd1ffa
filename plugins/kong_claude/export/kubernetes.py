"""kong.yml as resources for the Kong Ingress Controller: one KongPlugin per plugin, one Ingress per route. Pure.

Source: Kong, "Kong Ingress Controller annotations reference" and the KongPlugin custom resource (v1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from kong_claude.doctor.view import Entity, RouteView, View, label

NAMESPACE = "kong-claude"
HEADER = """\
# Written by `kong-claude export kubernetes` from kong.yml; a test holds them together.
# Secrets stay references into Kong's environment: deploy/kubernetes/kong-values.yaml sets it from the Secret.
"""


def resources(view: View) -> Iterator[dict[str, Any]]:
    """Global plugins first, then each route with its plugins; those of its service are named by every route of it."""
    for plugin in view.plugins:
        if plugin.get("enabled", True) and not any(plugin.get(p) for p in ("route", "service", "consumer")):
            yield kong_plugin(plugin["name"], plugin, everywhere=True)
    written = set()
    for route in view.routes:
        names = []
        for plugin in route.plugins:
            owner = route.name if plugin.get("route") else label(route.service) if plugin.get("service") else None
            if owner is None or not plugin.get("enabled", True):
                continue
            names.append(f"{owner}-{plugin['name']}")
            if names[-1] not in written:
                yield kong_plugin(names[-1], plugin)
            written.add(names[-1])
        yield ingress(route, names)


def kong_plugin(name: str, plugin: Entity, *, everywhere: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if everywhere:
        # A global plugin is cluster-scoped.
        metadata |= {"labels": {"global": "true"}, "annotations": {"kubernetes.io/ingress.class": "kong"}}
    else:
        metadata["namespace"] = NAMESPACE
    made: dict[str, Any] = {
        "apiVersion": "configuration.konghq.com/v1",
        "kind": "KongClusterPlugin" if everywhere else "KongPlugin",
        "metadata": metadata,
        "plugin": plugin["name"],
    }
    return made | ({"config": plugin["config"]} if plugin.get("config") else {})


def ingress(route: RouteView, plugins: list[str]) -> dict[str, Any]:
    """The route. Its service is the Kubernetes Service of the same host name."""
    annotations = {"konghq.com/strip-path": str(route.route.get("strip_path", True)).lower()}
    if plugins:
        annotations["konghq.com/plugins"] = ",".join(plugins)
    if route.route.get("methods"):
        annotations["konghq.com/methods"] = ",".join(route.route["methods"])
    for name, values in (route.route.get("headers") or {}).items():
        annotations[f"konghq.com/headers.{name}"] = ",".join(values)
    if route.route.get("response_buffering") is False:
        annotations["konghq.com/response-buffering"] = "false"
    host, _, port = str(route.service.get("url", "")).rpartition("/")[2].partition(":")
    backend = {"service": {"name": host, "port": {"number": int(port or 80)}}}
    paths = [
        {"path": "/" + path if path.startswith("~") else path, "pathType": "ImplementationSpecific", "backend": backend}
        for path in route.route.get("paths") or []
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": route.name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"ingressClassName": "kong", "rules": [{"http": {"paths": paths}}]},
    }


class _Dumper(yaml.SafeDumper):
    """Lua as a block, and nothing as an alias: a resource stands alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(view: View) -> str:
    return HEADER + yaml.dump_all(resources(view), Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)
