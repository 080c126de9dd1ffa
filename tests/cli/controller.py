"""What Kong's ingress controller makes of resources (3.5: translator/subtranslator/ingress.go, kongstate/route.go,
kongstate/service.go, annotations/annotations.go), as a declarative configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Resource = Mapping[str, Any]
PREFIX = "konghq.com/"


def declarative(resources: Iterable[Resource], manifests: Iterable[Resource] = ()) -> dict[str, Any]:
    made = list(resources)
    of_services = {m["metadata"]["name"]: m["metadata"].get("annotations") or {} for m in manifests}
    local = {r["metadata"]["name"]: _plugin(r) for r in made if r["kind"] == "KongPlugin"}
    services: dict[str, dict[str, Any]] = {}
    for resource in made:
        if resource["kind"] != "Ingress":
            continue
        said = {k.removeprefix(PREFIX): v for k, v in resource["metadata"]["annotations"].items()}
        for rule in resource["spec"]["rules"]:
            backend = rule["http"]["paths"][0]["backend"]["service"]
            port = backend["port"]["number"]
            service = services.setdefault(f"{backend['name']}.{port}", _service(backend["name"], port, of_services))
            service["routes"].append(
                _route(said, rule) | {"name": resource["metadata"]["name"], "plugins": [*map(local.get, _of(said))]}
            )
    everywhere = [_plugin(r) for r in made if r["kind"] == "KongClusterPlugin"]
    assert all(r["metadata"]["labels"] == {"global": "true"} for r in made if r["kind"] == "KongClusterPlugin")
    return {"_format_version": "3.0", "services": list(services.values()), "plugins": everywhere}


def _of(said: Mapping[str, str], name: str = "plugins") -> list[str]:
    return [each.strip() for each in said.get(name, "").split(",") if each.strip()]


def _plugin(resource: Resource) -> dict[str, Any]:
    tags = {k.removeprefix(PREFIX): v for k, v in (resource["metadata"].get("annotations") or {}).items()}
    found: dict[str, Any] = {"name": resource["plugin"]} | {k: resource[k] for k in resource.keys() & _OWN}
    return found | ({"tags": _of(tags, "tags")} if "tags" in tags else {})


_OWN = {"config", "protocols", "instance_name"}


def _service(name: str, port: int, of_services: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    said = {k.removeprefix(PREFIX): v for k, v in of_services.get(name, {}).items()}
    numbers = {"connect-timeout": 60000, "read-timeout": 60000, "write-timeout": 60000, "retries": 5}
    return {
        "name": f"{name}.{port}",
        "host": name,
        "port": port,
        "protocol": said.get("protocol", "http"),
        "path": said.get("path", "/"),
        **{key.replace("-", "_"): int(said.get(key, default)) for key, default in numbers.items()},
        "routes": [],
    }


def _route(said: Mapping[str, str], rule: Mapping[str, Any]) -> dict[str, Any]:
    separator = said.get("headers-separator", ",")
    headers = {k.removeprefix("headers."): v for k, v in said.items() if k.startswith("headers.")}
    hosts = ([rule["host"]] if "host" in rule else []) + _of(said, "host-aliases")
    paths = [_path(each["path"]) for each in rule["http"]["paths"]]
    return {
        "hosts": hosts,
        "paths": paths,
        "methods": _of(said, "methods"),
        "headers": {name: [each.strip() for each in values.split(separator)] for name, values in headers.items()},
        "protocols": _of(said, "protocols") or ["http", "https"],
        "strip_path": said.get("strip-path", "false") == "true",
        "preserve_host": said.get("preserve-host", "true") == "true",
        "regex_priority": int(said.get("regex-priority", 0)),
        "path_handling": said.get("path-handling", "v0"),
        "request_buffering": said.get("request-buffering", "true") == "true",
        "response_buffering": said.get("response-buffering", "true") == "true",
        "https_redirect_status_code": int(said.get("https-redirect-status-code", 426)),
        "snis": _of(said, "snis"),
        "tags": _of(said, "tags"),
    }


def _path(path: str) -> str:
    while "//" in path:
        path = path.replace("//", "/")
    return path.removeprefix("/") if path.startswith("/~") else path
