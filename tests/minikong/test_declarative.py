"""Declarative configs beyond the recorded ones: YAML's traps, references, ids, precedence, the Admin API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minikong import admin, declarative, lyaml
from minikong.entities import derived_id
from minikong.precedence import Precedence, by_priority
from minikong.schema import bundled, pcre, pretty
from minikong.schema.metaschema import BadSchema
from minikong.schema.upstream_fields import makes_checks

_FIELDS: list[dict[str, Any]] = [
    {"s": {"type": "string", "referenceable": True}},
    {"list": {"type": "array", "elements": {"type": "string", "referenceable": True}}},
    {"map": {"type": "map", "keys": {"type": "string"}, "values": {"type": "string", "referenceable": True}}},
    {"rec": {"type": "record", "fields": [{"n": {"type": "number", "default": 1.5}}]}},
    {"off": {"type": "record", "required": False, "fields": [{"n": {"type": "integer", "required": True}}]}},
]


def _schema(fields: list[dict[str, Any]] = _FIELDS) -> declarative.Schema:
    config = {"type": "record", "fields": fields}
    return declarative.Schema({**bundled.schemas(), "mine": {"name": "mine", "fields": [{"config": config}]}})


SCHEMA = _schema()


def _load(text: str, environ: dict[str, str] | None = None) -> declarative.Config:
    return declarative.load(f'_format_version: "3.0"\n{text}', SCHEMA, "kong.yml", environ or {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("NO", False),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("0x1F", 31),
        ("017", 15),
        ("019", 19),
        ("0b101", 5),
        ("1_000", 1000),
        ("3.0", 3),
        ("1e3", 1000),
        ("1e300", 1e300),
        ("9007199254740993", 9007199254740992),
        ("190:20:30", 685230),
        (".inf", float("inf")),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("'on'", "on"),
        ('"1"', "1"),
        ("!!str 5", "5"),
        ("[]", {}),
    ],
)
def test_yaml_scalars_as_lyaml_reads_them(text: str, value: object) -> None:
    found, _ = lyaml.load(f"k: {text}\n")
    assert found == {"k": value}
    assert type(found["k"]) is type(value)


def test_anchors_and_merges() -> None:
    found, lines = lyaml.load("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert found == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert lines[("b", "y")] == 4


def test_ids_are_derived_from_names() -> None:
    config = _load(
        "services:\n- {name: up, url: 'http://a', routes: [{name: r, paths: [/x], plugins: [{name: mine}]}]}\n"
    )
    route = derived_id("routes", "r")
    assert list(config.services) == [derived_id("services", "up")]
    assert config.routes[route].service_id == derived_id("services", "up")
    assert config.plugins[0].id == derived_id("plugins", f"plugins:*:mine:{route}::")


def test_references_are_resolved_where_the_schema_allows_them() -> None:
    config = _load(
        "plugins:\n- name: mine\n  config:\n    s: '{vault://env/my-key}'\n    list: [a, '{vault://env/my-json/b}']\n"
        "    map: {k: '{vault://env/nowhere}'}\n",
        {"MY_KEY": "v", "MY_JSON": '{"b": "c"}'},
    )
    made = config.plugins[0].config
    assert (made["s"], made["list"], made["map"]) == ("v", ["a", "c"], {"k": ""})
    assert made["$refs"]["s"] == "{vault://env/my-key}"
    assert made["rec"] == {"n": 1.5}
    assert "off" not in made


def test_flat_and_nested_make_the_same() -> None:
    nested = _load("services:\n- {name: up, url: 'http://a:1/b', routes: [{name: r, paths: [/x]}]}\n")
    flat = _load("services: [{name: up, host: a, port: 1, path: /b}]\nroutes: [{name: r, paths: [/x], service: up}]\n")
    for one, other in zip(nested.routes.values(), flat.routes.values(), strict=True):
        one.created_at = one.updated_at = other.created_at = other.updated_at = 0
        assert one == other


@pytest.mark.parametrize(
    ("text", "located"),
    [
        (
            "services:\n- name: up\n  url: http://a\n  retries: many\n",
            ["kong.yml:5: services[1].retries (service up): expected an integer"],
        ),
        ("routes:\n- paths: [/a]\n  nope: 1\n", ["kong.yml:4: routes[1].nope: unknown field"]),
        ("certificates: []\n", ["kong.yml:2: certificates: minikong does not have this kind of entity"]),
        (
            "upstreams:\n- {name: u, hash_on: ip}\n",
            ["kong.yml:3: upstreams[1].hash_on (upstream u): expected one of: none"],
        ),
        (
            "upstreams:\n- name: u\n  healthchecks:\n    active: {timeout: soon}\n",
            ["kong.yml:5: upstreams[1].healthchecks.active.timeout (upstream u): expected a number"],
        ),
        (
            "plugins: [{name: rate-limiting, config: {policy: redis}}]\n",
            ["kong.yml:2: plugins[1].config.policy (plugin rate-limiting): expected one of: local"],
        ),
        (
            'routes: [{paths: ["~/(a"]}]\n',
            [
                "kong.yml:2: routes[1].paths[1]: invalid regex: '/(a' (PCRE returned: pcre2_compile() failed: "
                'missing closing parenthesis in "/(a")'
            ],
        ),
    ],
)
def test_errors_name_file_line_and_field(text: str, located: list[str]) -> None:
    with pytest.raises(declarative.DeclarativeError) as refused:
        _load(text)
    assert refused.value.located("kong.yml") == located


def test_what_an_anchor_brings_to_several_is_told_once_at_its_line() -> None:
    text = "plugins:\n- {name: key-auth, enabled: false, config: &shared {key_names: 1}}\nroutes:\n" + "".join(
        f"- {{name: r{n}, paths: [/{n}], plugins: [{{name: key-auth, config: *shared}}]}}\n" for n in range(3)
    )
    with pytest.raises(declarative.DeclarativeError) as refused:
        _load(text)
    (line,) = refused.value.located("kong.yml")
    assert line.startswith("kong.yml:3: plugins[1].config.key_names (plugin key-auth): ")


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("not-a-url", ["host", "path"]),
        ("http://", ["host"]),
        ("ftp://invoker:8080", ["protocol"]),
        ("http://invoker:99999", ["port"]),
        ("invoker:8080", ["protocol", "host", "path"]),
        ("null", ["protocol", "host", "path"]),
    ],
)
def test_a_bad_url_is_one_problem_that_says_what_is_wrong_in_it(url: str, wrong: list[str]) -> None:
    with pytest.raises(declarative.DeclarativeError) as refused:
        _load(f"services:\n- name: a\n  url: {url}\n")
    (line,) = refused.value.located("kong.yml")
    said = line.removeprefix("kong.yml:4: services[1].url (service a): not like http://host:port/path: ")
    assert [part.partition(":")[0] for part in said.split("; ")] == wrong


def test_what_a_url_lacks_is_told_at_its_line_and_once_however_many_have_it() -> None:
    text = "services:\n- &one\n  name: a\n  url: invoker:8100\n- <<: *one\n  name: b\n"
    with pytest.raises(declarative.DeclarativeError) as refused:
        _load(text)
    (line,) = refused.value.located("kong.yml")
    assert line.startswith("kong.yml:5: services[1].url (service a): ")


def test_control_the_same_mistake_written_twice_is_told_twice() -> None:
    plugin = "plugins: [{name: key-auth, config: {key_names: 1}}]"
    text = f"routes:\n- {{name: a, paths: [/a], {plugin}}}\n- {{name: b, paths: [/b], {plugin}}}\n"
    with pytest.raises(declarative.DeclarativeError) as refused:
        _load(text)
    told = refused.value.located("kong.yml")
    assert ["plugin key-auth of route a" in told[0], "plugin key-auth of route b" in told[1]] == [True, True]


# As `deck gateway dump` of Kong 3.9 has it, with health checks switched on.
DUMPED = """
upstreams:
- algorithm: round-robin
  hash_fallback: none
  hash_on: none
  hash_on_cookie_path: /
  healthchecks:
    active:
      concurrency: 10
      healthy: {http_statuses: [200, 302], interval: 5, successes: 1}
      headers: {x-probe: ["1"]}
      http_path: /healthz
      https_verify_certificate: true
      timeout: 1
      type: http
      unhealthy:
        http_failures: 3
        http_statuses: [429, 404, 500, 501, 502, 503, 504, 505]
        interval: 5
        tcp_failures: 3
        timeouts: 3
    passive:
      healthy: {http_statuses: [200, 201], successes: 0}
      type: http
      unhealthy: {http_failures: 0, http_statuses: [429, 500, 503], tcp_failures: 0, timeouts: 0}
    threshold: 0
  name: pool.example
  slots: 10000
  targets:
  - {target: "127.0.0.1:8100", weight: 100}
  use_srv_name: false
"""


def test_a_dump_of_an_upstream_with_healthchecks_loads() -> None:
    (upstream,) = _load(DUMPED).upstreams.values()
    assert [t.target for t in upstream.targets] == ["127.0.0.1:8100"]
    assert upstream.healthchecks["active"]["http_path"] == "/healthz"
    assert makes_checks(upstream.healthchecks)


def test_control_kongs_defaults_make_no_health_checks() -> None:
    (upstream,) = _load("upstreams: [{name: u}]\n").upstreams.values()
    assert upstream.healthchecks["passive"]["unhealthy"]["http_statuses"] == [429, 500, 503]
    assert not makes_checks(upstream.healthchecks)


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "id", "url", "paths", "routes", "plugins", "config", "service", "tags", "s", "rec"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@example({"plugins": [{"name": [[]]}]})
@given(st.dictionaries(st.sampled_from(["services", "routes", "plugins", "consumers", "upstreams"]), _TREES))
def test_any_document_is_answered(tree: dict[str, Any]) -> None:
    gateway = admin.Admin(SCHEMA, environ={})
    body = json.dumps({"_format_version": "3.0", **tree}).encode()
    status, _, answer = gateway.handle("POST", "/config", body, {"content-type": "application/json"})
    json.loads(answer)
    assert status in (201, 400)


@given(st.text(max_size=80))
def test_any_text_is_answered(text: str) -> None:
    status, _, answer = admin.Admin(SCHEMA, environ={}).handle("POST", "/config", text.encode(errors="replace"), {})
    assert status in (400, 500)
    json.loads(answer)


def test_a_refused_config_leaves_the_old_one() -> None:
    gateway = admin.Admin(SCHEMA, environ={})
    good = b'_format_version: "3.0"\nservices: [{name: up, url: "http://a"}]\n'
    assert gateway.handle("POST", "/config", good, {})[0] == 201
    before = gateway.config
    assert gateway.handle("POST", "/config", good + b"nope: 1\n", {})[0] == 400
    assert gateway.config is before


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "said"),
    [
        ("GET", "/", b"", 200, '"version":"3.9.1"'),
        ("GET", "/status", b"", 200, '"reachable":true'),
        ("GET", "/services", b"", 200, '"name":"up"'),
        ("GET", "/services/up", b"", 200, '"host":"a"'),
        ("GET", "/routes/none", b"", 404, '"message":"Not found"'),
        ("GET", "/nothing", b"", 404, '"message":"Not found"'),
        ("DELETE", "/services", b"", 405, '"message":"Method not allowed"'),
        ("POST", "/config", b"", 400, "expected a declarative configuration"),
        ("POST", "/schemas/plugins/validate", b'{"name":"mine"}', 200, "schema validation successful"),
        (
            "POST",
            "/schemas/plugins/validate",
            b'{"name":"mine","config":{"s":1}}',
            400,
            "schema violation (config.s: expected a string)",
        ),
        ("POST", "/schemas/plugins/validate", b"{", 400, "Cannot parse JSON body"),
    ],
)
def test_admin_api(method: str, target: str, body: bytes, status: int, said: str) -> None:
    gateway = admin.Admin(SCHEMA, _load("services: [{name: up, url: 'http://a'}]\n"), environ={})
    got, headers, answer = gateway.handle(method, target, body, {})
    assert got == status
    assert said in answer.decode()
    assert dict(headers)["Content-Length"] == str(len(answer))


def test_precedence() -> None:
    config = _load(
        "consumers: [{username: alice}]\n"
        "services: [{name: up, url: 'http://a', routes: [{name: r, paths: [/x]}, {name: q, paths: [/q]}]}]\n"
        "plugins:\n"
        "- {name: mine, config: {s: global}}\n"
        "- {name: mine, service: up, config: {s: service}}\n"
        "- {name: mine, route: r, config: {s: route}}\n"
        "- {name: mine, consumer: alice, config: {s: consumer}}\n"
        "- {name: mine, route: r, consumer: alice, config: {s: both}}\n"
        "- {name: key-auth, enabled: false}\n"
        "- {name: correlation-id, route: q, protocols: [grpc]}\n"
    )
    precedence = Precedence(config)
    ids = {route.name: route.id for route in config.routes.values()}
    service, alice = next(iter(config.services)), next(iter(config.consumers))

    def runs(route: str | None, consumer: str | None) -> str:
        found = precedence.lookup("mine", ids.get(route or ""), service if route else None, consumer)
        assert found is not None
        return str(found.config["s"])

    assert runs("r", None) == "route"
    assert runs("q", None) == "service"
    assert runs(None, None) == "global"
    assert runs("q", alice) == "consumer"
    assert runs("r", alice) == "both"
    assert precedence.lookup("key-auth", None, None, None) is None
    assert [e.config["s"] for e in precedence.global_entities(["mine"])] == ["global"]
    numbers = [entity.seq for entity in precedence.entities]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_order_of_priorities() -> None:
    assert by_priority({"a": 5, "b": 10, "c": 5}) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([{"a": {}}], "2 schema violations (a: missing type declaration; fields.1: {"),
        ([{"a": {"type": "integer", "match": "x"}}], "(a: field of type 'integer' cannot have attribute 'match')"),
        ([{"a": {"type": "record"}}], "(a: field of type 'record' must declare 'fields')"),
        ([{"a": "x"}], "a: 'a' must be a table"),
        ([{"a": {"type": "json", "json_schema": {"inline": {"type": "object", "oneOf": []}}}}], "keyword 'oneOf'"),
    ],
)
def test_bad_schemas(fields: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(BadSchema) as refused:
        _schema(fields)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([1, "a"], '{1,"a"}'),
        ({"b": 1, "a": {"x": True}}, "{a={x=true},b=1}"),
        ({"end": 1, "a b": 2}, '{["a b"]=2,["end"]=1}'),
        ({1: "x", 3: "z", "k": 1}, '{"x",k=1,[3]="z"}'),
        (['say "hi"'], '{"say \\"hi\\""}'),
        (["two\nlines"], "{[[two\nlines]]}"),
        (["a]"], "{[=[a]]=]}"),
    ],
)
def test_pretty(value: Any, text: str) -> None:
    assert pretty.write(value, "") == text


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("/(?i)case", "/CASE", "case"),
        ("a(?i)b|c", "C", "A"),
        ("(a(?i)b)c", "aBc", "aBC"),
        ("(?<x>[[:digit:]]+)/", "12/", "x/"),
        (r"^\h+\z", " \t", " \t\n"),
        ("[[a]", "[", "b"),
    ],
)
def test_pcre_patterns(pattern: str, matching: str, other: str) -> None:
    assert pcre.compile(pattern).search(matching)
    assert not pcre.compile(pattern).search(other)


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("{vault://env/my-key}", "v"),
        ("{vault://env/key?prefix=my_}", "v"),
        ("{vault://env/my-json/b}", "c"),
        ("{vault://env/my-json/n}", "5"),
        ("{vault://env/my-json/nowhere}", None),
        ("{vault://env/my-key/b}", None),
        ("{vault://env/}", None),
        ("{vault://aws/my-key}", None),
    ],
)
def test_references(reference: str, value: str | None) -> None:
    environ = {"MY_KEY": "v", "MY_JSON": '{"b": "c", "n": 5}'}
    assert declarative.resolve_env(reference, environ) == value
