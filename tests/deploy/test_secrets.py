"""Who is given which secret, and who reaches whom: compose and Kubernetes as data, the scripts and commands for real."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from claude_contract.attestation import Signer, parse_pem, signer_from_config, verify
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KUBERNETES = ROOT / "deploy" / "kubernetes"
MAKE_SECRETS = ROOT / "deploy" / "docker" / "make-secrets.sh"
WITH_SECRETS = ROOT / "deploy" / "docker" / "with-secrets.sh"

# What each container sees of the secrets, and the networks that it is on.
TABLE: dict[str, tuple[str | None, set[str]]] = {
    "kong": ("secrets-kong", {"edge", "invoker", "redis", "metrics"}),
    "redis": ("secrets-redis", {"redis"}),
    "redis-runs": ("secrets-redis-runs", {"redis-runs"}),
    "invoker": ("secrets-invoker", {"invoker", "redis", "redis-runs", "api"}),
    "worker": ("secrets-invoker", {"redis", "redis-runs", "api", "workers"}),
    "standin": (None, {"api"}),
    "tools": ("secrets-tools", {"edge"}),
    "edge": (None, {"edge"}),
    "oauth2-proxy": (None, {"edge"}),
    "prometheus": (None, {"metrics", "invoker", "workers", "dashboards"}),
    "grafana": (None, {"dashboards"}),
}
FILES = {
    "kong": {"jwt-secret", "attestation-key", "redis-url"},
    "redis": {"redis-password", "redis.conf"},
    "redis-runs": {"redis-password", "redis.conf"},
    "invoker": {"attestation-public-key", "webhook-secret", "redis-url", "runs-redis-url"},
    "tools": {"jwt-secret"},
}
WHERE_TOOLS_RUN = ("invoker", "worker")


def secret_volumes(service: str) -> dict[str, str]:
    mounted = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    return {volume[0]: ":".join(volume[1:]) for volume in mounted if volume[0].startswith("secrets")}


def test_every_service_is_in_the_table() -> None:
    assert {*SERVICES} - {"secrets"} == {*TABLE}
    assert {n for _, networks in TABLE.values() for n in networks} == {*COMPOSE["networks"]}


@pytest.mark.parametrize("service", TABLE)
def test_a_container_sees_its_own_secrets_and_is_on_its_own_networks(service: str) -> None:
    volume, networks = TABLE[service]
    assert secret_volumes(service) == ({volume: "/secrets:ro"} if volume else {})
    assert {*SERVICES[service].get("networks", ["default"])} == networks
    assert "network_mode" not in SERVICES[service]


def test_the_maker_of_secrets_fills_each_volume_and_talks_to_nobody() -> None:
    assert secret_volumes("secrets") == {f"secrets-{reader}": f"/secrets/{reader}" for reader in FILES}
    assert SERVICES["secrets"]["network_mode"] == "none"


@pytest.mark.parametrize("service", WHERE_TOOLS_RUN)
def test_where_tools_run_only_these_are_reached(service: str) -> None:
    mine = TABLE[service][1]
    peers = {other for other, (_, networks) in TABLE.items() if networks & mine} - {*WHERE_TOOLS_RUN}
    assert peers == {"redis", "redis-runs", "standin", "kong", "prometheus"}
    # Of these, who listens on a shared network: Kong's proxy, and neither its Admin API, nor the metrics, nor Prometheus.
    kong = SERVICES["kong"]["environment"]
    assert kong["KONG_ADMIN_LISTEN"] == "127.0.0.1:8001"
    assert kong["KONG_ADMIN_GUI_LISTEN"] == "off"
    metrics = re.search(r"--metrics-listen (\S+):8109", kong["KONG_PLUGINSERVER_CLAUDE_GATEWAY_START_CMD"])
    assert metrics
    for listens, server in ((metrics[1], "kong"), ("prometheus-api", "prometheus")):
        named = {
            network
            for network, options in SERVICES[server]["networks"].items()
            if listens in (options or {}).get("aliases", [])
        }
        assert named and not named & mine, (server, named)
    assert "--web.listen-address=prometheus-api:9090" in SERVICES["prometheus"]["command"]


def test_whoever_asks_for_metrics_does_it_by_the_name_that_is_listened_on() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped if "static_configs" in job}
    port = re.search(r"INVOKER_PORT=(\d+)", (ROOT / "invoker/Dockerfile").read_text())
    assert port
    assert targets == {"claude-pluginserver": ["pluginserver:8109"], "claude-invoker": [f"invoker:{port[1]}"]}
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus-api:9090"
    kong_yml = yaml.safe_load((ROOT / "kong.yml").read_text())
    assert "http://pluginserver:8109" in {service["url"] for service in kong_yml["services"]}


def test_only_kong_and_the_fronts_publish_ports() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {*published} == {"kong", "edge", "oauth2-proxy", "grafana"}
    assert len(published["kong"]) == 1 and published["kong"][0].endswith(":8000")


def test_what_invoker_and_worker_are_told_to_read_is_there() -> None:
    for service in WHERE_TOOLS_RUN:
        named = {v for k, v in SERVICES[service]["environment"].items() if k.endswith("_FILE")}
        assert named == {f"/secrets/{name}" for name in FILES["invoker"]}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


def make(directory: Path) -> None:
    group = SERVICES["secrets"]["environment"]["SECRETS_GROUP"]
    environment = dict(os.environ) | {"SECRETS_DIR": str(directory), "SECRETS_GROUP": group}
    subprocess.run(["sh", str(MAKE_SECRETS)], env=environment, check=True, timeout=HANG_S)


def content(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


@as_root
@needs_openssl
def test_each_file_is_of_the_one_user_that_needs_it(made: Path) -> None:
    assert {reader.name: {file.name for file in reader.iterdir()} for reader in made.iterdir()} == FILES
    redis_user = int(SERVICES["redis"]["user"].partition(":")[0])
    (kong_group,) = map(int, SERVICES["kong"]["group_add"])
    for reader, (owner, group, mode) in {
        "kong": (0, kong_group, 0o440),
        "redis": (redis_user, None, 0o400),
        "redis-runs": (redis_user, None, 0o400),
        "invoker": (0, 0, 0o400),
        "tools": (0, 0, 0o400),
    }.items():
        for path in (made / reader, *(made / reader).iterdir()):
            found = path.stat()
            # A directory is to be entered by those who may read its files, and written by its owner.
            wanted = {0o440: 0o750, 0o400: 0o700}[mode] if path.is_dir() else mode
            assert stat.S_IMODE(found.st_mode) == wanted, path
            assert found.st_uid == owner, path
            assert group is None or found.st_gid == group, path


@as_root
@needs_openssl
def test_the_parts_agree_and_a_second_start_changes_nothing(made: Path) -> None:
    first = content(made)
    private, public = first["kong/attestation-key"], first["invoker/attestation-public-key"]
    signer = signer_from_config({"private_key": private})
    assert signer
    claims = signer.open(method="GET", path="/", route="r", request_id="q")
    assert verify(signer.sign(claims), {"1": parse_pem(public, "x")}, issuer="kong-claude", audience="claude-invoker")
    with pytest.raises(TypeError):
        Signer("1", parse_pem(public, "x"), {}).sign(claims)
    password = first["redis/redis-password"].strip()
    assert first["kong/redis-url"] == first["invoker/redis-url"] == f"redis://:{password}@redis:6379/0"
    assert f"requirepass {password}\n" in first["redis/redis.conf"]
    others = first["redis-runs/redis-password"].strip()
    assert first["invoker/runs-redis-url"] == f"redis://:{others}@redis-runs:6379/0"
    assert f"requirepass {others}\n" in first["redis-runs/redis.conf"] and others not in first["redis/redis.conf"]
    assert first["tools/jwt-secret"] == first["kong/jwt-secret"]
    secrets = [first["kong/jwt-secret"], first["invoker/webhook-secret"], first["redis/redis-password"]]
    secrets.append(first["redis-runs/redis-password"])
    assert len({*secrets}) == 4 and all(len(secret.strip()) >= 64 for secret in secrets)
    make(made)
    assert content(made) == first


@as_root
@needs_openssl
def test_ones_own_secrets_stay_and_a_cut_off_start_is_made_good(tmp_path: Path) -> None:
    (tmp_path / "kong").mkdir()
    (tmp_path / "kong/jwt-secret").write_text("my own secret, forty characters and more")
    (tmp_path / "kong/attestation-key").write_text("")
    make(tmp_path)
    found = content(tmp_path)
    assert found["kong/jwt-secret"] == found["tools/jwt-secret"] == "my own secret, forty characters and more"
    assert "PRIVATE KEY" in found["kong/attestation-key"]


def with_secrets(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(WITH_SECRETS), "sh", "-c", 'printf %s "$CLAUDE_ATTESTATION_KEY"']
    env = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(directory), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)


@needs_openssl
def test_kongs_environment_gets_the_key_whole(tmp_path: Path) -> None:
    key = tmp_path / "attestation-key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, timeout=HANG_S)
    key.chmod(0o440)
    assert with_secrets(tmp_path).stdout == key.read_text().strip()
    assert signer_from_config({"private_key": with_secrets(tmp_path).stdout})
    assert with_secrets(tmp_path, CLAUDE_ATTESTATION_KEY="set already").stdout == "set already"
    key.chmod(0o444)
    refused = with_secrets(tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"chmod o-rwx {key}" in refused.stderr


def blocks(document: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / document).read_text(), re.DOTALL | re.MULTILINE)


@needs_openssl
def test_the_key_pair_of_the_document(tmp_path: Path) -> None:
    (script,) = [block for block in blocks("fail-closed.md") if "genpkey" in block]
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=HANG_S, capture_output=True)
    signer = signer_from_config({"private_key": (tmp_path / "attestation-key").read_text()})
    assert signer
    public = parse_pem((tmp_path / "attestation-public-key").read_text(), "x")
    claims = signer.open(method="GET", path="/", route="r", request_id="q")
    assert verify(signer.sign(claims), {"1": public}, issuer="kong-claude", audience="claude-invoker")


# Stands for kubectl: notes namespace and name of each Secret, with the files that it would be made of.
KUBECTL = """#!/usr/bin/env python3
import json, os, pathlib, sys
words = sys.argv[1:]
assert not any(word.startswith("--from-literal") for word in words), "a secret in argv"
if "secret" in words:
    folder = pathlib.Path(words[-1].removeprefix("--from-file="))
    made = {file.name: [file.read_text(), file.stat().st_mode & 0o777] for file in folder.iterdir()}
    with open(os.environ["NOTED"], "a") as noted:
        noted.write(json.dumps([words[1], words[5], made]) + "\\n")
"""


@needs_openssl
def test_the_secrets_of_the_document_are_those_that_the_pods_name(tmp_path: Path) -> None:
    (script,) = [block for block in blocks("start/kubernetes.md") if "create secret" in block]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    (tmp_path / "work").mkdir()
    environment = dict(os.environ) | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "NOTED": str(tmp_path / "noted"),
        "ANTHROPIC_API_KEY": "sk-ant-of-the-test",
    }
    subprocess.run(["bash", "-euc", script], cwd=tmp_path / "work", env=environment, check=True, timeout=HANG_S)
    assert [*(tmp_path / "work").iterdir()] == [], "secrets left on the disk"
    noted = [json.loads(line) for line in (tmp_path / "noted").read_text().splitlines()]
    made = {(namespace, name): files for namespace, name, files in noted}
    assert {mode for files in made.values() for _, mode in files.values()} == {0o600}
    assert {where: {*files} for where, files in made.items()} == named_by_the_pods()
    gateway, invoker = made["kong", "kong-claude-gateway"], made["kong-claude", "kong-claude-invoker"]
    signer = signer_from_config({"private_key": gateway["attestation-key"][0]})
    assert signer
    claims = signer.open(method="GET", path="/", route="r", request_id="q")
    public = parse_pem(invoker["attestation-public-key"][0], "x")
    assert verify(signer.sign(claims), {"1": public}, issuer="kong-claude", audience="claude-invoker")
    for files in made.values():
        for name, (text, _) in files.items():
            assert "attestation" in name or (text and text == text.strip()), f"{name} would be used with its line break"
    assert not any("PRIVATE" in text for text, _ in invoker.values())


def named_by_the_pods() -> dict[tuple[str, str], set[str]]:
    """(namespace, Secret) → the keys that some pod refers to."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in filter(None, yaml.safe_load_all(path.read_text())):
            namespace = "kong" if path.name == "kong-values.yaml" else document.get("metadata", {}).get("namespace")
            for name, keys in references(document):
                found.setdefault((namespace, name), set()).update(keys)
    return found


def references(value: Any) -> list[tuple[str, set[str]]]:
    if isinstance(value, list):
        return [reference for item in value for reference in references(item)]
    if not isinstance(value, dict):
        return []
    found = []
    for name, inner in value.items():
        if name in ("secretKeyRef", "redisSecret"):
            found.append((inner["name"], {inner["key"]}))
        elif name == "secret" and isinstance(inner, dict) and "secretName" in inner:
            found.append((inner["secretName"], {item["key"] for item in inner["items"]}))
        else:
            found += references(inner)
    return found


def documents(name: str, kind: str) -> dict[str, Any]:
    loaded = filter(None, yaml.safe_load_all((KUBERNETES / name).read_text()))
    return {document["metadata"]["name"]: document for document in loaded if document["kind"] == kind}


@pytest.mark.parametrize("pod", WHERE_TOOLS_RUN)
def test_a_pod_mounts_what_it_reads_for_root_alone(pod: str) -> None:
    spec = documents(f"{pod}.yaml", "Deployment")[pod]["spec"]["template"]["spec"]
    (mounted,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert mounted["secretName"] == "kong-claude-invoker"
    assert mounted["defaultMode"] == 0o400
    (container,) = spec["containers"]
    read = {e["value"] for e in container["env"] if e["name"].endswith("_FILE")}
    assert read == {f"/secrets/{item['path']}" for item in mounted["items"]}
    assert not any("mode" in item for item in mounted["items"])
    assert "securityContext" not in spec, "fsGroup would open the files to a group"


def test_nothing_of_kubernetes_names_the_one_secret_of_before() -> None:
    for path in KUBERNETES.glob("*.yaml"):
        assert not re.search(r"(secretName|name): kong-claude\b[,}]", path.read_text()), path


def test_policies_keep_runs_from_the_admin_api_and_the_metrics() -> None:
    policies = documents("network.yaml", "NetworkPolicy")
    runs, gateway = policies["runs"]["spec"], policies["gateway"]
    selected = runs["podSelector"]["matchExpressions"][0]
    assert (selected["key"], {*selected["values"]}) == ("app", {*WHERE_TOOLS_RUN})
    assert runs["policyTypes"] == ["Egress"]
    for rule in runs["egress"]:
        for peer in rule["to"]:
            if "namespaceSelector" in peer:
                assert peer["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
                assert {port["port"] for port in rule["ports"]} == {53}
            elif "podSelector" in peer:
                assert {port["port"] for port in rule["ports"]} == {6379, 26379}
            elif peer["ipBlock"]["cidr"] == "0.0.0.0/0":
                assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= {
                    *peer["ipBlock"]["except"]
                }
    assert gateway["metadata"]["namespace"] == "kong"
    assert gateway["spec"]["podSelector"] == {}
    for rule in gateway["spec"]["ingress"]:
        ports = {port["port"] for port in rule.get("ports", [])}
        peers = rule.get("from")
        if peers is None:
            assert ports == {8000, 8443, 8080}
        elif peers != [{"podSelector": {}}]:
            (peer,) = peers
            assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
            assert ports and not ports & {8001, 8444}


def test_every_resource_says_its_namespace() -> None:
    """No common one is laid over them: Kong's policy would land beside the invoker and guard nothing."""
    assert "namespace" not in yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    for path in KUBERNETES.glob("*.yaml"):
        if path.name in ("kong-values.yaml", "kustomization.yaml"):
            continue
        for document in filter(None, yaml.safe_load_all(path.read_text())):
            if document["kind"] not in ("Namespace", "KongClusterPlugin"):
                assert document["metadata"].get("namespace") in ("kong-claude", "kong"), (path, document["metadata"])


def interpolated(value: str, **variables: str) -> str:
    """As docker compose does it for `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), value)


@pytest.mark.parametrize("variables", [{}, {"KONG_CLAUDE_NETWORK": "10.9.8"}])
def test_nobodys_forwarded_headers_are_believed_but_the_edges(variables: dict[str, str]) -> None:
    """Not a whole network's: a container that is taken over, or the machine's own users, would be anybody's address."""
    (subnet,) = COMPOSE["networks"]["edge"]["ipam"]["config"]
    network = ipaddress.ip_network(interpolated(subnet["subnet"], **variables))
    address = {
        name: ipaddress.ip_address(interpolated(SERVICES[name]["networks"]["edge"]["ipv4_address"], **variables))
        for name in ("kong", "edge", "oauth2-proxy")
    }
    assert len(set(address.values())) == 3
    assert all(found in network for found in address.values())
    gateway = network.network_address + 1
    assert gateway not in address.values()
    trusted = interpolated(SERVICES["kong"]["environment"]["KONG_TRUSTED_IPS"], **variables).split(",")
    assert {ipaddress.ip_address(found) for found in trusted} == {address["edge"], address["oauth2-proxy"]}
    command = [interpolated(word, **variables) for word in SERVICES["oauth2-proxy"]["command"]]
    believed = [word.partition("=")[2] for word in command if word.startswith("--trusted-proxy-ip=")]
    assert {ipaddress.ip_address(found) for found in believed} == {address["edge"], gateway}
