"""deploy/kubernetes: valid by Kubernetes' own schemas, complete, and the same routes as kong.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kong_claude.doctor.view import from_file
from kong_claude.export.kubernetes import to_yaml
from kong_claude.guard import LUA_PLUGINS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
CUSTOM = ("configuration.konghq.com/", "redis.redis.opstreelabs.in/", "kustomize.config.k8s.io/")


def resources() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "kong-values.yaml":
            found += [(path.name, r) for r in yaml.safe_load_all(path.read_text()) if r]
    return found


ALL = resources()


def name(item: tuple[str, dict[str, Any]]) -> str:
    return f"{item[0]}:{item[1]['kind']}:{item[1].get('metadata', {}).get('name', '')}"


@pytest.mark.parametrize("item", [i for i in ALL if not i[1]["apiVersion"].startswith(CUSTOM)], ids=name)
def test_the_schema_accepts_it(item: tuple[str, dict[str, Any]]) -> None:
    kubernetes_validate.validate(item[1], "1.33", strict=True)


@pytest.mark.parametrize("item", [i for i in ALL if "konghq" in i[1]["apiVersion"]], ids=name)
def test_a_kong_plugin_has_what_the_controller_wants(item: tuple[str, dict[str, Any]]) -> None:
    resource = item[1]
    assert resource["kind"] in ("KongPlugin", "KongClusterPlugin")
    assert resource["plugin"]
    assert set(resource) <= {"apiVersion", "kind", "metadata", "plugin", "config", "protocols"}
    assert len(resource["metadata"]["name"]) <= 253


def test_routes_are_those_of_kong_yml() -> None:
    assert (FOLDER / "routes.yaml").read_text() == to_yaml(
        from_file(ROOT / "kong.yml", {}), [resource for _, resource in ALL]
    ), (
        "write it anew: kong-claude export kubernetes --services deploy/kubernetes/invoker.yaml"
        " --out deploy/kubernetes/routes.yaml"
    )


def test_every_route_names_plugins_and_services_that_exist() -> None:
    plugins = {r["metadata"]["name"] for _, r in ALL if r["kind"] == "KongPlugin"}
    services = {r["metadata"]["name"] for _, r in ALL if r["kind"] == "Service"}
    for _, resource in ALL:
        if resource["kind"] != "Ingress":
            continue
        named = set(resource["metadata"]["annotations"]["konghq.com/plugins"].split(","))
        assert named <= plugins
        assert any("guard" in plugin for plugin in named), "no guard"
        for path in resource["spec"]["rules"][0]["http"]["paths"]:
            assert path["backend"]["service"]["name"] in services


def test_kustomization_lists_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    others = {p.name for p in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "kong-values.yaml"}
    assert set(listed) == others


def test_kongs_settings_are_those_of_the_compose_file() -> None:
    values = yaml.safe_load((FOLDER / "kong-values.yaml").read_text())["gateway"]["env"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["kong"]["environment"]
    for setting, value in values.items():
        theirs = compose[f"KONG_{setting.upper()}"]
        # Compose binds the metrics to one network; here a policy guards them.
        assert value == theirs.replace("--metrics-listen pluginserver:", "--metrics-listen 0.0.0.0:"), setting
    plugins = values["pluginserver_names"].split(",")
    assert values["plugins"].split(",")[1:] == [*plugins, *LUA_PLUGINS]
    for plugin in plugins:
        assert values[f"pluginserver_{plugin.replace('-', '_')}_query_cmd"].endswith(f"--dump {plugin}")


@pytest.mark.parametrize("kind", ["invoker", "worker"])
def test_pods_hold_no_more_power_than_they_need(kind: str) -> None:
    (deployment,) = [r for _, r in ALL if r["kind"] == "Deployment" and r["metadata"]["name"] == kind]
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["resources"]["limits"]["memory"]
    assert not any(e["name"].endswith(("KEY", "SECRET")) for e in container["env"]), "secrets come by file"


def test_workers_scale_on_a_metric_that_the_invoker_exports() -> None:
    (scaler,) = [r for _, r in ALL if r["kind"] == "HorizontalPodAutoscaler"]
    metric = scaler["spec"]["metrics"][0]["external"]["metric"]["name"]
    assert f'"{metric}"' in (ROOT / "invoker" / "claude_invoker" / "metrics.py").read_text()


def test_kongs_access_log_is_the_same_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["kong"]["environment"]
    lines = (ROOT / "deploy" / "kong" / "access-log.env").read_text().splitlines()
    for name, value in (line.split("=", 1) for line in lines if line and not line.startswith("#")):
        assert compose[name].replace("$$", "$") == value
