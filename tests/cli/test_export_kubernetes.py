"""kong.yml as resources for Kong's ingress controller: all of it arrives, or an error names what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kong_claude.cli.main import main
from kong_claude.doctor.view import RouteView, View, from_file
from kong_claude.export.kubernetes import resource_name, resources
from kong_claude.problem import Problem
from tests.cli.controller import declarative

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["claude-jwt-claims", "claude-guard", "claude-rate-tiers", "post-function", "cors", "rate-limiting"]
PLUGIN = st.fixed_dictionaries(
    {"name": st.sampled_from(NAMES), "enabled": st.sampled_from([True, True, False])},
    optional={
        "config": st.dictionaries(st.sampled_from(["issuers", "tiers", "minute"]), st.integers(1, 99)),
        "protocols": st.sampled_from([["https"], ["grpc", "grpcs", "http", "https"]]),
        "instance_name": st.sampled_from(["one", "two"]),
        "tags": st.sampled_from([["a"], ["a", "b"]]),
    },
)
PLUGINS = st.lists(PLUGIN, max_size=4, unique_by=lambda plugin: plugin["name"])
ROUTE = st.fixed_dictionaries(
    {},
    optional={
        "hosts": st.sampled_from([["a.example.com"], ["*.example.com", "b.example.com"]]),
        "protocols": st.sampled_from([["http", "https"], ["https", "http"], ["https"]]),
        "methods": st.sampled_from([["GET"], ["GET", "POST"]]),
        "headers": st.sampled_from([{"x-a": ["1", "2"]}, {"x-a": ["1,2"], "x-b": ["~*^v.*"]}]),
        "strip_path": st.booleans(),
        "preserve_host": st.booleans(),
        "regex_priority": st.integers(0, 3),
        "path_handling": st.sampled_from(["v0", "v1"]),
        "request_buffering": st.booleans(),
        "response_buffering": st.booleans(),
        "https_redirect_status_code": st.sampled_from([426, 308]),
        "snis": st.sampled_from([["a.example.com"], ["a.example.com", "b"]]),
        "tags": st.sampled_from([["public"], ["a", "b"]]),
    },
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={"read_timeout": st.sampled_from([60000, 900000]), "retries": st.integers(0, 5), "path": st.just("/v1")},
)
# What has no equivalent, where it stands, and how the error says it.
UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("route", {"sources": [{"ip": "10.0.0.1"}]}, "sources has no equivalent"),
    ("route", {"hosts": ["a.example.com:8443"]}, "host a.example.com:8443"),
    ("route", {"hosts": ["under_score.example.com"]}, "host under_score.example.com"),
    ("route", {"snis": ["*.example.com"]}, "SNI *.example.com"),
    ("route", {"headers": {"x-a": ["1,2", "3;4", "5|6"]}}, "headers: an Ingress cannot say"),
    ("route", {"headers": {"x-a": [" 1"]}}, "headers: an Ingress cannot say"),
    ("route", {"paths": ["/a//b"]}, "path /a//b"),
    ("route", {"paths": ["/~a"]}, "path /~a"),
    ("route", {"paths": None, "hosts": ["only.example.com"]}, "has no paths"),
    ("service", {"enabled": False}, "is disabled"),
    ("service", {"tls_verify": True}, "tls_verify has no equivalent"),
    ("service", {"host": "api.example.com"}, "host api.example.com is no Service"),
    ("file", {"consumers": [{"username": "alice"}]}, "consumers: have no equivalent"),
    ("file", {"upstreams": [{"name": "invoker"}]}, "upstreams: have no equivalent"),
    ("file", {"vaults": [{"name": "env", "prefix": "mine"}]}, "vaults: have no equivalent"),
]


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """Plugins at every place, nested and flat; what an error must say, where something in it does not fit."""
    services: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        routes: list[dict[str, Any]] = []
        for index in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from([f"/{number}/{index}", f"~/{number}/(?<id>[^/]+)/{index}$"]))
            routes.append({"name": f"r{number}{index}", "paths": [path], "plugins": draw(PLUGINS)} | draw(ROUTE))
        place: dict[str, Any] = draw(
            st.sampled_from(
                [
                    {"url": f"http://invoker-{number}:8100"},
                    {"url": f"https://invoker-{number}/v1"},
                    {"host": f"invoker-{number}", "port": 8100, "protocol": "http"},
                ]
            )
        )
        settings = draw(SETTINGS)
        if "url" in place:
            settings.pop("path", None)
        services.append({"name": f"s{number}", **place, **settings, "plugins": draw(PLUGINS), "routes": routes})
    flat = [plugin | {"service": "s0"} for plugin in draw(PLUGINS) if draw(st.booleans())]
    known = {plugin["name"] for plugin in services[0]["plugins"]}
    file: dict[str, Any] = {
        "_format_version": "3.0",
        "services": services,
        "plugins": [plugin for plugin in flat if plugin["name"] not in known] + draw(PLUGINS),
    }
    said = []
    if draw(st.integers(0, 3)) == 0:
        where, fields, words = draw(st.sampled_from(UNFIT))
        target = {"file": file, "service": services[0], "route": services[0]["routes"][0]}[where]
        if "host" in fields:
            target.pop("url", None)
        target.update(fields)
        said.append(words)
    for service in services:  # it counts for the service: in Kubernetes for each route
        own = [*service["plugins"], *(flat if service is services[0] else [])]
        counts = [p for p in own if p["name"] == "rate-limiting" and p["enabled"]]
        shared = [
            r for r in service["routes"] if not any(p["name"] == "rate-limiting" and p["enabled"] for p in r["plugins"])
        ]
        if counts and shared and len(service["routes"]) > 1:
            said.append("rate-limiting of service")
    return file, said


DEFAULTS: dict[str, Any] = {
    "hosts": [],
    "methods": [],
    "headers": {},
    "protocols": ["http", "https"],
    "strip_path": True,
    "preserve_host": False,
    "regex_priority": 0,
    "path_handling": "v0",
    "request_buffering": True,
    "response_buffering": True,
    "https_redirect_status_code": 426,
    "snis": [],
    "tags": [],
}


def seen(view: View) -> dict[str, Any]:
    """All that a request could tell of a configuration."""
    return {resource_name(route.name): _seen(route) for route in view.routes}


def _seen(route: RouteView) -> dict[str, Any]:
    own = {field: route.route.get(field) or default for field, default in DEFAULTS.items() if default is not True}
    own |= {field: route.route.get(field, True) for field, default in DEFAULTS.items() if default is True}
    own |= {"paths": route.route["paths"], "protocols": sorted(own["protocols"])}
    service = route.service
    protocol, _, rest = str(service.get("url") or "").partition("://")
    host, _, path = rest.partition("/")
    name, _, port = host.partition(":")
    place = (
        protocol or service.get("protocol", "http"),
        name or service["host"],
        int(port or service.get("port") or {"https": 443}.get(protocol, 80)),
        "/" + (path or str(service.get("path") or "").lstrip("/")),
        *(service.get(field, 60000) for field in ("connect_timeout", "read_timeout", "write_timeout")),
        service.get("retries", 5),
    )
    plugins = {
        p["name"]: {field: p.get(field) or None for field in ("config", "protocols", "instance_name", "tags")}
        for p in route.plugins
        if p.get("enabled", True)
    }
    return own | {"to": place, "plugins": plugins}


def manifests(file: dict[str, Any]) -> list[dict[str, Any]]:
    """The Services that the configuration needs, as its errors say."""
    made = []
    for service in file["services"]:
        protocol, _, rest = str(service.get("url") or "").partition("://")
        host, _, path = rest.partition("/")
        said = {
            f"konghq.com/{f.replace('_', '-')}": str(service[f])
            for f in ("read_timeout", "retries", "path")
            if f in service
        }
        said |= {"konghq.com/protocol": "https"} if protocol == "https" else {}
        said |= {"konghq.com/path": f"/{path}"} if path else {}
        name = host.partition(":")[0] or service["host"]
        made.append({"kind": "Service", "metadata": {"name": name, "annotations": said}})
    return made


@given(drawn=configurations())
def test_what_kong_does_is_what_it_does_in_kubernetes_or_an_error_says_what_not(
    drawn: tuple[dict[str, Any], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, said = drawn
    path, again = (tmp_path_factory.getbasetemp() / name for name in ("exported.json", "imported.json"))
    path.write_text(json.dumps(file))
    view, services = from_file(path, {}), manifests(file)
    if said:
        with pytest.raises(Problem) as refused:
            resources(view, services)
        assert [words for words in said if words not in str(refused.value)] == []
        return
    again.write_text(json.dumps(declarative(resources(view, services), services)))
    assert seen(from_file(again, {})) == seen(view)


def test_the_repositorys_own_file_arrives(tmp_path: Path) -> None:
    services = [
        resource
        for resource in yaml.safe_load_all((ROOT / "deploy/kubernetes/invoker.yaml").read_text())
        if resource["kind"] == "Service"
    ]
    view = from_file(ROOT / "kong.yml", {})
    again = tmp_path / "imported.json"
    again.write_text(json.dumps(declarative(resources(view, services), services)))
    assert seen(from_file(again, {})) == seen(view)


GOOD: dict[str, Any] = {"name": "s", "host": "invoker", "port": 8100, "routes": [{"name": "r", "paths": ["/a"]}]}


@pytest.mark.parametrize(
    ("service", "route", "plugin", "said"),
    [
        ({"read_timeout": 1000}, {}, {}, "konghq.com/read-timeout: '1000'"),
        (
            {"retries": 0},
            {},
            {},
            "the Service invoker (--services FILE) must have the annotation konghq.com/retries: '0'",
        ),
        ({"path": "/v1"}, {}, {}, "konghq.com/path: '/v1'"),
        ({"host": None, "port": None, "url": "https://invoker/v1"}, {}, {}, "konghq.com/protocol: 'https'"),
        ({"host": "api.example.com"}, {}, {}, "host api.example.com is no Service of the namespace"),
        ({"host": "10.0.0.1"}, {}, {}, "host 10.0.0.1 is no Service"),
        ({"tls_verify": True}, {}, {}, "service s: tls_verify has no equivalent"),
        ({"enabled": False}, {}, {}, "service s: is disabled"),
        ({}, {"paths": None, "hosts": ["a.example.com"]}, {}, "route r: has no paths"),
        ({}, {"hosts": ["a.*"]}, {}, "host a.*"),
        ({}, {"sources": [{"ip": "10.0.0.1"}]}, {}, "route r: sources has no equivalent"),
        ({}, {}, {"consumer": "alice"}, "plugin cors: consumer has no equivalent"),
        ({}, {}, {"ordering": {"before": {"access": ["x"]}}}, "plugin cors: ordering has no equivalent"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(
    service: dict[str, Any],
    route: dict[str, Any],
    plugin: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = GOOD["routes"][0] | route | {"plugins": [{"name": "cors"} | plugin]}
    config: dict[str, Any] = {"_format_version": "3.0", "services": [GOOD | service | {"routes": [own]}]}
    config["consumers"] = [{"username": "alice", "name": "alice"}]
    path, out = tmp_path / "kong.yml", tmp_path / "out.yaml"
    path.write_text(yaml.safe_dump(config))
    out.write_text("before")
    assert main(["export", "kubernetes", "--config", str(path), "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert out.read_text() == "before"


def test_no_route_takes_anothers_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kong.yml"
    routes = [{"name": name, "paths": ["/a"]} for name in ("a_b", "a-b", "c")]
    path.write_text(yaml.safe_dump({"_format_version": "3.0", "services": [GOOD | {"routes": routes}]}))
    assert main(["export", "kubernetes", "--config", str(path)]) == 2
    assert "2 routes would be named a-b" in capsys.readouterr().err


def test_a_services_settings_may_stand_in_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, manifest = tmp_path / "kong.yml", tmp_path / "service.yaml"
    path.write_text(
        yaml.safe_dump({"_format_version": "3.0", "services": [GOOD | {"read_timeout": 1000, "retries": 0}]})
    )
    annotations = {"konghq.com/read-timeout": "1000", "konghq.com/retries": "1"}
    service = {"kind": "Service", "metadata": {"name": "invoker", "annotations": annotations}}
    command = ["export", "kubernetes", "--config", str(path), "--services", str(manifest)]
    manifest.write_text(yaml.safe_dump_all([{"kind": "Other"}, service]))
    assert main(command) == 2
    assert capsys.readouterr().err.count("annotation") == 1, "the one that is wrong"
    annotations["konghq.com/retries"] = "0"
    manifest.write_text(yaml.safe_dump(service))
    assert main(command) == 0
    manifest.write_text("a: [")
    assert main(command) == 2 and "is not YAML" in capsys.readouterr().err


def test_services_that_become_one_must_be_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of Kong's services at one place are one in Kubernetes: its settings are both's, and it counts for both."""
    path, manifest = tmp_path / "kong.yml", tmp_path / "service.yaml"
    routes = [{"name": "r", "paths": ["/r"]}]
    other = GOOD | {"name": "other", "retries": 0, "routes": [{"name": "q", "paths": ["/q"]}]}
    annotations = {"konghq.com/retries": "0"}
    manifest.write_text(
        yaml.safe_dump({"kind": "Service", "metadata": {"name": "invoker", "annotations": annotations}})
    )
    command = ["export", "kubernetes", "--config", str(path), "--services", str(manifest)]
    path.write_text(yaml.safe_dump({"_format_version": "3.0", "services": [GOOD | {"routes": routes}, other]}))
    assert main(command) == 2
    assert "service s: the Service invoker has the annotation konghq.com/retries: '0'" in capsys.readouterr().err
    alike: dict[str, Any] = {"_format_version": "3.0", "services": [GOOD | {"routes": routes, "retries": 0}, other]}
    path.write_text(yaml.safe_dump(alike))
    assert main(command) == 0
    counts = {"name": "claude-gateway", "config": {"rate_tiers": {"limit_by": "service"}}}
    path.write_text(yaml.safe_dump(alike | {"plugins": [counts]}))
    assert main(command) == 2
    assert "claude-gateway: limit_by service: invoker:8100 would be one service of two" in capsys.readouterr().err
