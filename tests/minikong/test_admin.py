"""The Admin API tells what stands in the configuration, not what it resolves to; its unix socket is its owner's."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from minikong import admin, conf, declarative
from minikong.entities import PluginEntity, derived_id
from minikong.http import listener
from minikong.schema import bundled
from tests.support.waiting import HANG_S

REFERENCE, SECRET = "{vault://env/the-secret}", "resolved-5f1c0a"
ENVIRON = {"THE_SECRET": SECRET}
TEXT = {"type": "string", "referenceable": True}
FIELDS = [
    {"plain": TEXT},
    {"list": {"type": "array", "elements": TEXT}},
    {"set": {"type": "set", "elements": TEXT}},
    {"map": {"type": "map", "keys": {"type": "string"}, "values": TEXT}},
    {"record": {"type": "record", "fields": [{"inner": TEXT}]}},
    {"records": {"type": "array", "elements": {"type": "record", "fields": [{"inner": TEXT}]}}},
]
KONG_YML = f"""
_format_version: "3.0"
consumers: [{{username: alice}}]
upstreams: [{{name: pool, tags: [shared], targets: [{{target: "127.0.0.1:9"}}]}}]
services:
- name: up
  tags: [shared, own]
  url: http://pool
  routes: [{{name: all, paths: ["/"]}}]
plugins:
- name: mine
  instance_name: one
  config:
    plain: "{REFERENCE}"
    list: ["{REFERENCE}", clear]
    set: ["{REFERENCE}"]
    map: {{key: "{REFERENCE}"}}
    record: {{inner: "{REFERENCE}"}}
    records: [{{inner: "{REFERENCE}"}}]
"""
OF_ALL = "- {name: mine, instance_name: of-all, route: all, config: {plain: x}}\n"
PART = '--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--x--\r\n'
# Everything that can be asked; a new route of the Admin API has to be added here.
ASKED = [
    ("GET", "/"),
    ("GET", "/status"),
    *[("GET", f"/{collection}") for collection in ("services", "routes", "plugins", "consumers", "upstreams")],
    ("GET", "/plugins/one"),
    ("GET", "/services/up"),
    ("GET", "/routes/all"),
    ("GET", "/consumers/alice"),
    ("GET", "/upstreams/pool"),
    ("GET", "/upstreams/pool/targets"),
    ("GET", "/services/up/routes"),
    ("GET", "/services/up/plugins"),
    ("GET", "/routes/all/plugins"),
    ("GET", "/consumers/alice/plugins"),
    ("GET", "/plugins/enabled"),
    ("GET", "/schemas/plugins/mine"),
    ("GET", "/tags"),
    ("GET", "/tags/shared"),
    ("GET", "/config"),
    ("POST", "/config"),
    ("POST", "/schemas/plugins/validate"),
]


def schema() -> declarative.Schema:
    config = {"type": "record", "fields": FIELDS}
    return declarative.Schema({"mine": {"name": "mine", "fields": [{"config": config}]}})


@pytest.fixture
def answers() -> Iterator[dict[tuple[str, str], tuple[int, str]]]:
    running: list[declarative.Config] = []
    api = admin.Admin(schema(), on_config=running.append, environ=ENVIRON)
    found = {}
    for method, target in (("POST", "/config"), *ASKED):
        body = {"POST /config": KONG_YML, "POST /schemas/plugins/validate": '{"name": "mine"}'}.get(
            f"{method} {target}"
        )
        status, _, answer = api.handle(method, target, (body or "").encode(), {})
        found[method, target] = status, answer.decode()
    (plugin,) = running[-1].plugins
    # The plugin itself gets the value: otherwise nothing would be hidden here.
    assert json.dumps(plugin.config).count(SECRET) == 6
    assert SECRET not in repr(plugin)
    yield found


def test_every_answer_shows_references_only(answers: dict[tuple[str, str], tuple[int, str]]) -> None:
    assert all(status in (200, 201) for status, _ in answers.values()), answers
    assert [asked for asked, (_, body) in answers.items() if SECRET in body] == []
    for asked in (("GET", "/plugins"), ("GET", "/plugins/one"), ("GET", "/config"), ("POST", "/config")):
        assert answers[asked][1].count(REFERENCE) == 6, asked


def test_all_routes_are_asked_above() -> None:
    for pattern, method, _ in admin._ROUTES:
        assert any(method == verb and pattern.fullmatch(target) for verb, target in ASKED), pattern


def test_a_configuration_that_is_shown_resolved_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the old behaviour the same answers hold the secret."""
    monkeypatch.setattr(PluginEntity, "as_pdk", lambda self: {"id": self.id, "config": self.config})
    api = admin.Admin(schema(), environ=ENVIRON)
    assert SECRET in api.handle("POST", "/config", KONG_YML.encode(), {})[2].decode()
    assert SECRET in api.handle("GET", "/plugins", b"", {})[2].decode()


def ask(path: Path, target: str = "/status") -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(HANG_S)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return int(client.recv(4096).split()[1])


def test_a_unix_socket_of_its_owner(minikong: Any, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    before = os.umask(0)  # the socket's mode must not hang on it
    try:
        kong = minikong(
            KONG_YML.replace("mine", "request-termination").partition("  config:")[0], admin_listen=f"unix:{path}"
        )
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kong.admin_url == f"unix:{path}"
    assert ask(path) == 200
    with pytest.raises(OSError, match="something listens on"):
        listener._bind(str(path))


def test_a_killed_predecessors_socket_is_no_obstacle_and_a_stop_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    command = [
        str(Path(sys.executable).with_name("minikong")),
        "--proxy-listen",
        "127.0.0.1:0",
        "--admin-listen",
        f"unix:{path}",
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KONG_")}

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=clean, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                assert ask(path) == 200
                return process
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

    killed = start()
    killed.kill()
    killed.wait(HANG_S)
    assert path.exists()
    second = start()
    second.terminate()
    assert second.wait(HANG_S) == 0
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kong.yml"
    path.write_text("mine")
    with pytest.raises(OSError):
        listener._bind(str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(("key", "value"), [("proxy_listen", "unix:/tmp/x"), ("admin_listen", "unix:x")])
def test_only_the_admin_api_and_by_a_full_path(key: str, value: str) -> None:
    with pytest.raises(conf.ConfError, match=f"{key}: expected <ip>:<port>"):
        conf.load(overrides={key: value})
    assert conf.load(overrides={"admin_listen": "unix:/tmp/x"}).admin_listen[0].path == "/tmp/x"


# As Kong 3.9.3 answered each of these. {} stands for the file.
POSTED: list[tuple[str, str, str, int]] = [
    ("multipart", "multipart/form-data; boundary=x", PART.format(name="config", value="{}"), 201),
    ("form", "application/x-www-form-urlencoded", "config={}", 201),
    ("JSON that holds the file", "application/json", "{}", 201),
    ("the file as it is", "text/yaml", "{}", 201),
    ("the file as it is, called a form", "application/x-www-form-urlencoded", "{}", 201),
    ("fields of a document", "multipart/form-data; boundary=x", PART.format(name="_format_version", value="3.0"), 201),
    ("form without it", "application/x-www-form-urlencoded", "foo=bar", 400),
    ("multipart without it", "multipart/form-data; boundary=x", PART.format(name="foo", value="bar"), 400),
    ("JSON without it", "application/json", '{"foo": 1}', 400),
    ("text", "text/plain", "{}", 415),
]


@pytest.mark.parametrize(("kind", "body", "status"), [row[1:] for row in POSTED], ids=[row[0] for row in POSTED])
def test_a_configuration_comes_in_each_form_that_kong_takes(kind: str, body: str, status: int) -> None:
    """`curl -F config=@kong.yml`, `--data-urlencode config@kong.yml`, http's `config=@kong.yml`."""
    running: list[declarative.Config] = []
    api = admin.Admin(schema(), on_config=running.append, environ=ENVIRON)
    file = {"application/json": json.dumps({"config": KONG_YML}), "application/x-www-form-urlencoded": KONG_YML}
    if body == "config={}":
        file[kind] = quote(KONG_YML)
    given = body.replace("{}", file.get(kind, KONG_YML.replace("\n", "\r\n"))).encode()
    assert api.handle("POST", "/config", given, {"content-type": kind})[0] == status
    assert len(running) == (status == 201)
    if "{}" in body and running:
        assert list(running[0].services) == [derived_id("services", "up")]


def told(api: admin.Admin, target: str) -> Any:
    status, _, body = api.handle("GET", target, b"", {})
    return json.loads(body) if status == 200 else status


def test_what_is_asked_of_one_entity_or_tag() -> None:
    api = admin.Admin(schema(), declarative.load(KONG_YML + OF_ALL, schema(), None, ENVIRON), environ=ENVIRON)
    assert [r["name"] for r in told(api, "/services/up/routes")["data"]] == ["all"]
    assert [p["instance_name"] for p in told(api, "/routes/all/plugins")["data"]] == ["of-all"]
    assert told(api, "/services/up/plugins")["data"] == told(api, "/consumers/alice/plugins")["data"] == []
    assert told(api, "/routes/nope/plugins") == 404
    assert sorted(row["entity_name"] for row in told(api, "/tags/shared")["data"]) == ["services", "upstreams"]
    assert {row["tag"] for row in told(api, "/tags")["data"]} == {"shared", "own"}
    assert told(api, "/tags/nope")["data"] == []
    assert told(api, "/plugins/enabled") == {"enabled_plugins": ["mine"]}
    assert [name for entry in told(api, "/schemas/plugins/mine")["fields"] for name in entry] == ["config"]
    assert told(api, "/schemas/plugins/nope") == 404


def test_what_is_exported_is_the_same_configuration() -> None:
    """Real Kong takes it as well, and exports the same again."""
    schemas = declarative.Schema(bundled.schemas())

    def exported(text: str) -> tuple[str, declarative.Config]:
        api = admin.Admin(schemas, declarative.load(text, schemas, None, {}), environ={})
        # When it was loaded, in Kong, too.
        return re.sub("updated_at: .*", "", told(api, "/config")["config"]), api.config

    once, config = exported((Path(__file__).parent / "data" / "whole.yml").read_text())
    twice, again = exported(once)
    assert once == twice
    assert [c.collection for c in again.credentials] == ["keyauth_credentials", "jwt_secrets", "acls"]
    assert [p.config for p in again.plugins] == [p.config for p in config.plugins]
    assert len(again.plugins) == 4


def test_every_bundled_schema_can_be_shown() -> None:
    """Some of what they hold is code."""
    bundle = declarative.Schema(bundled.schemas())
    api = admin.Admin(bundle, environ={})
    for name in told(api, "/plugins/enabled")["enabled_plugins"]:
        assert told(api, f"/schemas/plugins/{name}")["fields"], name


def test_what_kong_hides_of_its_settings_is_hidden_here() -> None:
    given = {"KONG_SSL_CERT_KEY": "a-key", "KONG_DECLARATIVE_CONFIG_STRING": "a-file", "KONG_PLUGINS": "bundled, mine"}
    api = admin.Admin(schema(), environ={}, settings=conf.load(env=given).settings)
    said = told(api, "/")["configuration"]
    assert said["ssl_cert_key"] == said["declarative_config_string"] == "******"
    assert said["plugins"] == ["bundled", "mine"]
    assert said["untrusted_lua"] == "sandbox"
