"""kong.yml as an OpenAPI document for Amazon API Gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft4Validator

from kong_claude.cli.main import main
from kong_claude.doctor.view import from_file
from kong_claude.export.aws import templates
from kong_claude.export.kubernetes import resources
from kong_claude.problem import Problem

ROOT = Path(__file__).resolve().parents[2]


def exported(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, dict[str, Any]]:
    assert main(["export", "aws", *options]) == 0
    text = capsys.readouterr().out
    return text, yaml.safe_load(text)


def test_the_repositorys_own_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = exported(capsys, "--config", str(ROOT / "kong.yml"), "--target", "https://kong.test/")
    assert "no equivalent" in text
    assert found["openapi"] == "3.0.1"
    paths = found["paths"]
    assert "/claude/invoke" in paths
    assert "/claude/repos/{repo}/invoke" in paths
    invoke = paths["/claude/invoke"]["post"]
    assert invoke["x-amazon-apigateway-integration"]["uri"] == "https://kong.test/claude/invoke"
    plans = {plan["name"]: plan for plan in found["x-kong-claude-usage-plans"]}
    assert plans["pro"]["throttle"] == {"rateLimit": 0.139, "burstLimit": 60}
    operations = [o["operationId"] for methods in paths.values() for o in methods.values()]
    assert len(operations) == len(set(operations))


def test_oidc_issuers_become_authorizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "_format_version": "3.0",
        "services": [
            {
                "name": "s",
                "url": "http://invoker",
                "routes": [
                    {
                        "name": "r",
                        "paths": ["/x"],
                        "methods": ["GET"],
                        "plugins": [
                            {
                                "name": "claude-jwt-claims",
                                "config": {
                                    "audience": ["claude"],
                                    "issuers": [{"issuer": "https://id.example.com"}, {"issuer": "dev", "secret": "x"}],
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "kong.yml"
    path.write_text(yaml.safe_dump(config))
    _, found = exported(capsys, "--config", str(path), "--vpc-link", "vpc-1")
    scheme = found["components"]["securitySchemes"]["id-example-com"]["x-amazon-apigateway-authorizer"]
    assert scheme["jwtConfiguration"] == {"issuer": "https://id.example.com", "audience": ["claude"]}
    operation = found["paths"]["/x"]["get"]
    assert operation["security"] == [{"id-example-com": []}]
    assert operation["x-amazon-apigateway-integration"]["connectionId"] == "vpc-1"
    assert "/dev" not in str(found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/claude/invoke", ["/claude/invoke", "/claude/invoke/{proxy+}"]),
        ("/claude/", ["/claude/", "/claude/{proxy+}"]),
        ("/", ["/", "/{proxy+}"]),
        ("~/a/(?<b>[^/]+)/c$", ["/a/{b}/c"]),
        ("~/a/(?<b>[^/]+)", ["/a/{b}", "/a/{b}/{proxy+}"]),
        (r"~/v1\.0/x$", ["/v1.0/x"]),
        ("~/r/(?<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/invoke$", ["/r/{repo}/invoke"]),
    ],
)
def test_paths(path: str, expected: list[str]) -> None:
    assert templates(path) == expected


@pytest.mark.parametrize("path", [r"~/a/\d+$", "~/a|/b", "~/(x)", "~/a.*", "~/a/[bc]$"])
def test_patterns_that_a_path_cannot_say_are_refused(path: str) -> None:
    with pytest.raises(Problem, match="no such pattern"):
        templates(path)


def test_the_document_is_shaped_like_openapi(capsys: pytest.CaptureFixture[str]) -> None:
    """The parts of the OpenAPI 3.0 schema that an import depends on."""
    _, found = exported(capsys, "--config", str(ROOT / "kong.yml"))
    operation = {"type": "object", "required": ["responses", "operationId", "x-amazon-apigateway-integration"]}
    schema = {
        "type": "object",
        "required": ["openapi", "info", "paths"],
        "properties": {
            "info": {"required": ["title", "version"]},
            "paths": {"patternProperties": {"^/": {"additionalProperties": operation}}, "additionalProperties": False},
        },
    }
    Draft4Validator(schema).validate(found)
    for path, methods in found["paths"].items():
        for operation_found in methods.values():
            named = {p["name"] for p in operation_found.get("parameters", [])}
            assert named == {name.rstrip("+") for name in re.findall(r"{([^}]+)}", path)}


NAMES = ["claude-jwt-claims", "claude-guard", "claude-rate-tiers", "post-function", "cors"]
PLUGINS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(NAMES), "enabled": st.sampled_from([True, True, False])}),
    max_size=4,
    unique_by=lambda plugin: plugin["name"],
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Plugins at every place, nested and flat, on services by url and by host."""
    services = []
    for number in range(draw(st.integers(1, 3))):
        routes = []
        for index in range(draw(st.integers(1, 3))):
            own: dict[str, Any] = {
                "name": f"r{number}{index}",
                "paths": [f"/{number}/{index}"],
                "hosts": draw(st.sampled_from([[], ["a.example.com"], ["*.example.com", "b.example.com"]])),
                "protocols": draw(st.sampled_from([["http", "https"], ["https"]])),
                "plugins": draw(PLUGINS),
            }
            routes.append(own)
        place: dict[str, Any] = draw(
            st.sampled_from([{"url": "http://invoker:8100"}, {"host": "invoker", "port": 8100, "protocol": "http"}])
        )
        services.append({"name": f"s{number}", **place, "plugins": draw(PLUGINS), "routes": routes})
    flat = [plugin | {"service": "s0"} for plugin in draw(PLUGINS) if draw(st.booleans())]
    known = {plugin["name"] for plugin in services[0]["plugins"]}
    return {
        "_format_version": "3.0",
        "services": services,
        "plugins": [plugin for plugin in flat if plugin["name"] not in known] + draw(PLUGINS),
    }


@given(config=configurations())
def test_what_runs_on_a_route_in_kong_runs_there_in_kubernetes(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "exported.yml"
    path.write_text(yaml.safe_dump(config))
    view = from_file(path, {})
    made = resources(view)
    everywhere = {r["plugin"] for r in made if r["kind"] == "KongClusterPlugin"}
    local = {r["metadata"]["name"]: r["plugin"] for r in made if r["kind"] == "KongPlugin"}
    found = {}
    for resource in made:
        if resource["kind"] == "Ingress":
            annotations = resource["metadata"]["annotations"]
            named = [name for name in annotations.get("konghq.com/plugins", "").split(",") if name]
            rules = resource["spec"]["rules"]
            found[resource["metadata"]["name"]] = (
                {local[name] for name in named} | everywhere,
                [rule["host"] for rule in rules if "host" in rule],
                annotations.get("konghq.com/protocols"),
                rules[0]["http"]["paths"][0]["backend"]["service"]["name"],
            )
    assert found == {
        route.name: (
            {plugin["name"] for plugin in route.plugins if plugin.get("enabled", True)},
            route.route["hosts"],
            "https" if route.route["protocols"] == ["https"] else None,
            "invoker",
        )
        for route in view.routes
    }


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
