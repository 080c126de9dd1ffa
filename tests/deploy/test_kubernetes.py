"""deploy/kubernetes: valid by Kubernetes' own schemas, complete, and the same routes as kong.yml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from claude_invoker.cli.users import SPAN
from claude_invoker.egress import addresses
from claude_invoker.settings import Settings
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


def policy(name: str) -> dict[str, Any]:
    (found,) = [r for _, r in ALL if r["kind"] == "NetworkPolicy" and r["metadata"]["name"] == name]
    spec: dict[str, Any] = found["spec"]
    return spec


def test_where_runs_are_they_reach_no_more_than_what_is_public() -> None:
    """By the table of the egress filter: what that refuses is closed to whoever gets past it."""
    *_, internet = policy("runs")["egress"]
    assert internet["ports"] == [{"protocol": "TCP"}], "neither UDP nor, by it, names elsewhere"
    blocks = [destination["ipBlock"] for destination in internet["to"]]
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0", str(addresses._V6_UNICAST)]
    for block, closed in zip(blocks, (addresses._V4, addresses._V6), strict=True):
        assert set(block["except"]) == set(map(str, closed))


def test_names_are_asked_of_the_clusters_own_service_only() -> None:
    names, *others = policy("runs")["egress"]
    assert names["to"] and {port["port"] for port in names["ports"]} == {53}
    assert not any(port.get("port") == 53 for rule in others for port in rule["ports"])


def test_only_prometheus_asks_a_worker_and_of_the_pods_of_runs_only_an_invoker_asks_an_invoker() -> None:
    worker = policy("worker")
    assert worker["policyTypes"] == ["Ingress"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert worker["ingress"] == [{"from": [monitoring], "ports": [{"port": 8110}]}]
    (redis,) = [rule for rule in policy("runs")["egress"] if {"port": 6379} in rule["ports"]]
    (expression,) = redis["to"][0]["podSelector"]["matchExpressions"]
    assert expression == {"key": "app", "operator": "NotIn", "values": ["invoker", "worker"]}
    replicas, invoker = policy("replicas"), policy("invoker")
    others = {"podSelector": {"matchLabels": {"app": "invoker"}}}
    assert {"podSelector": replicas["podSelector"]} == others
    assert replicas["egress"] == [{"to": [others], "ports": [{"port": 8100}]}]
    (asked,) = invoker["ingress"]
    assert [peer for peer in asked["from"] if "podSelector" in peer] == [others]


def test_the_urls_of_the_documents_name_what_the_operator_makes() -> None:
    """A Sentinel's service is NAME-sentinel, and what it watches is `masterGroupName` (`myMaster` where none is said):
    redis-operator, k8sutils/redis-sentinel.go and api/common_types.go."""
    text = (ROOT / "docs/start/kubernetes.md").read_text()
    written = re.findall(r"redis\+sentinel://:%s@(\S+?)\.kong-claude:26379/(\S+?)/0", text)
    sentinels = [resource for _, resource in ALL if resource["kind"] == "RedisSentinel"]
    made = [
        (f"{s['metadata']['name']}-sentinel", s["spec"]["redisSentinelConfig"]["masterGroupName"]) for s in sentinels
    ]
    assert written == made and len(made) == 2
    watched = [sentinel["spec"]["redisSentinelConfig"]["redisReplicationName"] for sentinel in sentinels]
    assert watched == [r["metadata"]["name"] for _, r in ALL if r["kind"] == "RedisReplication"]


def merged(value: Any, patch: Any) -> Any:
    """As a strategic merge patch: maps member by member, lists of named things by their names."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return value | {name: merged(value.get(name), member) for name, member in patch.items()}
    if isinstance(value, list) and isinstance(patch, list) and all("name" in member for member in patch):
        named = {member["name"]: member for member in value}
        return list({**named, **{m["name"]: merged(named.get(m["name"]), m) for m in patch}}.values())
    return patch


def optioned(option: str) -> dict[str, dict[str, Any]]:
    """Invoker and worker with one of deploy/kubernetes/options."""
    component = yaml.safe_load((FOLDER / "options" / option / "kustomization.yaml").read_text())
    assert component["kind"] == "Component"
    found = {}
    for patch in (yaml.safe_load(entry["patch"]) for entry in component["patches"]):
        (one,) = [r for _, r in ALL if r["kind"] == "Deployment" and r["metadata"] == patch["metadata"]]
        found[patch["metadata"]["name"]] = merged(one, patch)
    for name in component.get("resources", ()):
        resource = yaml.safe_load((FOLDER / "options" / option / name).read_text())
        kubernetes_validate.validate(resource, "1.33", strict=True)
        assert resource["kind"] == "RuntimeClass"
        assert {r["spec"]["template"]["spec"]["runtimeClassName"] for r in found.values()} == {
            resource["metadata"]["name"]
        }
    return found


def test_single_sign_on_is_what_compose_has_with_the_upstream_of_a_cluster() -> None:
    folder = FOLDER / "options" / "single-sign-on"
    component = yaml.safe_load((folder / "kustomization.yaml").read_text())
    (patch,) = (yaml.safe_load(entry["patch"]) for entry in component["patches"])
    (invoker,) = [r for _, r in ALL if r["kind"] == "Deployment" and r["metadata"] == patch["metadata"]]
    patched = merged(invoker, patch)
    kubernetes_validate.validate(patched, "1.33", strict=True)
    added = patched["spec"]["template"]["spec"]["containers"][0]["env"][-1]
    compose = yaml.safe_load((ROOT / "docker-compose.sso.yml").read_text())["services"]["invoker"]["environment"]
    assert {added["name"]: added["value"]} == compose
    (name,) = component["resources"]
    found = {r["kind"]: r for r in yaml.safe_load_all((folder / name).read_text())}
    assert set(found) == {"ConfigMap", "Deployment", "Service", "Ingress", "NetworkPolicy"}
    for resource in found.values():
        kubernetes_validate.validate(resource, "1.33", strict=True)
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert container["image"] == services["oauth2-proxy"]["image"]
    assert {each["name"] for each in container["env"]} == {*services["oauth2-proxy"]["environment"]}
    there, here = (
        tomllib.loads(text)
        for text in (
            found["ConfigMap"]["data"]["oauth2-proxy.cfg"],
            (ROOT / "deploy/oauth2-proxy/oauth2-proxy.cfg").read_text(),
        )
    )
    assert there == here | {"upstreams": ["http://kong-gateway-proxy.kong"], "pass_host_header": False}
    (rule,) = found["Ingress"]["spec"]["rules"]
    assert urlsplit(there["redirect_url"]).hostname == rule["host"], "Kong's own name leads to the dashboard's route"


@pytest.mark.parametrize("option", sorted({path.name for path in (FOLDER / "options").iterdir()} - {"single-sign-on"}))
def test_what_can_be_added_is_valid_for_invoker_and_worker(option: str) -> None:
    found = optioned(option)
    assert set(found) == {"invoker", "worker"}
    for name, resource in found.items():
        kubernetes_validate.validate(resource, "1.33", strict=True)
        (before,) = [r for _, r in ALL if r["kind"] == "Deployment" and r["metadata"]["name"] == name]
        (container,), (original,) = (r["spec"]["template"]["spec"]["containers"] for r in (resource, before))
        assert container["securityContext"]["capabilities"] == original["securityContext"]["capabilities"]
        names, before_it = ({variable["name"] for variable in each["env"]} for each in (container, original))
        assert before_it <= names
        added = {name.removeprefix("INVOKER_").lower() for name in names - before_it}
        assert added <= set(Settings.model_fields)
        assert resource != before


def test_users_of_a_pods_own_fit_into_it() -> None:
    (container,) = optioned("users")["worker"]["spec"]["template"]["spec"]["containers"]
    (base,) = [int(e["value"]) for e in container["env"] if e["name"] == "INVOKER_UID_BASE"]
    assert base + SPAN <= 65_536


def test_the_profile_of_the_option_is_the_one_beside_it() -> None:
    (container,) = optioned("hosts")["invoker"]["spec"]["template"]["spec"]["containers"]
    profile = container["securityContext"]["seccompProfile"]
    assert profile["type"] == "Localhost"
    assert (FOLDER / Path(profile["localhostProfile"]).name).is_file()


def test_workers_scale_on_a_metric_that_the_invoker_exports() -> None:
    (scaler,) = [r for _, r in ALL if r["kind"] == "HorizontalPodAutoscaler"]
    metric = scaler["spec"]["metrics"][0]["external"]["metric"]["name"]
    assert f'"{metric}"' in (ROOT / "invoker" / "claude_invoker" / "metrics.py").read_text()
