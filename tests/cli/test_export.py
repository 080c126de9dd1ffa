"""kong.yml as an OpenAPI document for Amazon API Gateway."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from kong_claude.cli.main import main
from kong_claude.doctor.view import RouteView, from_file
from kong_claude.export.aws import document, templates
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
    assert "/claude/repos/{repo_1}/{repo_2}/invoke" in paths
    assert "/claude/jobs/{proxy+}" in paths
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
                                    "issuers": [{"issuer": "https://id.example.com"}],
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
    text, found = exported(capsys, "--config", str(path), "--vpc-link", "vpc-1")
    assert "*id" not in text, "aliases"
    scheme = found["components"]["securitySchemes"]["id-example-com"]["x-amazon-apigateway-authorizer"]
    assert scheme["jwtConfiguration"] == {"issuer": "https://id.example.com", "audience": ["claude"]}
    operation = found["paths"]["/x"]["get"]
    assert operation["security"] == [{"id-example-com": []}]
    assert operation["x-amazon-apigateway-integration"]["connectionId"] == "vpc-1"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/claude/invoke", ["/claude/invoke", "/claude/invoke/{proxy+}"]),
        ("/claude/", ["/claude/", "/claude/{proxy+}"]),
        ("/", ["/", "/{proxy+}"]),
        ("~/a/(?<b>[^/]+)/c$", ["/a/{b}/c"]),
        ("~/a/(?<b>[^/]+)", ["/a/{b}", "/a/{b}/{proxy+}"]),
        (r"~/v1\.0/x$", ["/v1.0/x"]),
        ("~/r/(?<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/invoke$", ["/r/{repo_1}/{repo_2}/invoke"]),
        ("~/r/(?<rest>.+)$", ["/r/{rest+}"]),
        (r"~/r/(?<v>v1|v2)/(?<n>\d+)$", ["/r/{v}/{n}"]),
    ],
)
def test_paths(path: str, expected: list[str]) -> None:
    assert templates(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        r"~/a/\d+$",
        "~/a|/b",
        "~/(x)",
        "~/a.*",
        "~/a/[bc]$",
        "~/(?<a>.+)/b$",
        "~/(?<a>x/y|z)$",
        "~/(?<a>x(/y)?)$",
        "~/(?<a>x/?y)$",
    ],
)
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


def test_two_audiences_of_an_issuer_are_two_authorizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kong.json"
    routes = [
        {"name": name, "paths": [f"/{name}"], "methods": ["GET"], "plugins": [asks({"audience": [name]})]}
        for name in ("a", "b")
    ]
    path.write_text(json.dumps(FILE | {"services": [{"name": "s", "url": "http://invoker", "routes": routes}]}))
    _, found = exported(capsys, "--config", str(path))
    for name in ("a", "b"):
        (security,) = found["paths"][f"/{name}"]["get"]["security"]
        (scheme,) = security
        authorizer = found["components"]["securitySchemes"][scheme]["x-amazon-apigateway-authorizer"]
        assert authorizer["jwtConfiguration"]["audience"] == [name]


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({"hosts": ["a.example.com"]}, "route r: hosts a.example.com: API Gateway asks for kong.example.com"),
        ({"snis": ["a.example.com"]}, "route r: snis a.example.com"),
        ({"protocols": ["http"]}, "route r: protocols http"),
        ({"protocols": ["grpc", "grpcs"]}, "route r: protocols grpc, grpcs"),
        ({"sources": [{"ip": "10.0.0.1"}]}, "route r: sources: Kong sees API Gateway's addresses"),
        ({"paths": None, "methods": ["GET"]}, "route r has no paths"),
        ({"paths": ["~/a.*b$"]}, "route r: path ~/a.*b$: API Gateway has no such pattern"),
        ({"paths": ["/other"]}, "route other: GET /other is another route's too, of other authorizers"),
    ],
)
def test_what_does_not_fit_is_an_error(
    route: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kong.json"
    own = {"name": "r", "paths": ["/a"], "plugins": [asks({})]} | route
    other = {"name": "other", "paths": ["/other"], "headers": {"x-a": ["1"]}}
    path.write_text(json.dumps(FILE | {"services": [{"name": "s", "url": "http://invoker", "routes": [own, other]}]}))
    assert main(["export", "aws", "--config", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_a_route_of_the_targets_host_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kong.json"
    route = {"name": "r", "paths": ["/a"], "hosts": ["other.example.com", "*.example.com"]}
    path.write_text(json.dumps(FILE | {"services": [{"name": "s", "url": "http://invoker", "routes": [route]}]}))
    _, found = exported(capsys, "--config", str(path), "--target", "https://Kong.example.com")
    assert set(found["paths"]) == {"/a", "/a/{proxy+}"}


FILE: dict[str, Any] = {"_format_version": "3.0"}
OURS = {"issuer": "https://id.example.com", "algorithms": ["RS256"], "discovery": True}


def asks(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "claude-jwt-claims", "config": {"issuers": [OURS], "audience": ["claude"]} | config, **more}


KEYLESS = "https://inline.example.com"  # publishes no keys
ISSUERS = [
    [OURS],
    [{"issuer": "https://other.example.com", "algorithms": ["RS256", "RS512"], "jwks_uri": "https://k.example.com"}],
    [OURS, {"issuer": "https://other.example.com", "algorithms": ["RS256"], "discovery": True}],
    [OURS | {"algorithms": ["RS256", "ES256"]}],
    [{"issuer": "dev", "algorithms": ["HS256"], "secret": "x"}],
    [OURS | {"issuer": KEYLESS, "discovery": False, "jwks": "{}"}],
    [OURS | {"issuer": "https://id.example.com/{tenantid}", "tenants": ["a", "b"]}],
]
SETTINGS: dict[str, list[Any]] = {
    "audience": [["claude", "api"]],
    "audience_claims": [["aud"], ["aud", "client_id"], ["azp"]],
    "raw_header_names": [["x-api-key"]],
    "header_names": [["Authorization"], ["x-token"]],
    "cookie_names": [["token"]],
    "anonymous": ["nobody"],
}
PATHS = [
    ("/x", ["/x", "/x/y", "/x/y/z"]),
    ("~/x/(?<id>[^/]+)$", ["/x/1"]),
    ("~/x/(?<r>[a-z]+/[a-z]+)/end$", ["/x/a/b/end"]),
]


def configuration(random: Random) -> dict[str, Any]:
    """Plugins at routes and services, some switched off; services that are, too."""

    def plugins() -> list[dict[str, Any]]:
        more = {f: random.choice(values) for f, values in SETTINGS.items() if random.random() < 0.1}
        asked = asks({"issuers": random.choice([*ISSUERS, ISSUERS[0], ISSUERS[0]])} | more)
        limits = {"name": "claude-rate-tiers", "config": {"tiers": [{"name": "pro", "minute": random.randint(1, 9)}]}}
        chosen = random.sample([asked, limits, {"name": "claude-guard"}], random.randint(0, 3))
        return [plugin | {"enabled": random.random() < 0.8} for plugin in chosen]

    services = []
    for number in range(random.randint(1, 3)):
        routes = [
            {
                "name": f"r{number}{index}",
                "paths": [random.choice(PATHS)[0].replace("/x", f"/{number}/{index}", 1)],
                "methods": random.choice([["GET"], ["GET", "POST"]]),
                "plugins": plugins(),
            }
            for index in range(random.randint(1, 3))
        ]
        own = {"name": f"s{number}", "url": "http://i", "enabled": random.random() < 0.8}
        services.append(own | {"plugins": plugins(), "routes": routes})
    return FILE | {"services": services}


@dataclass(frozen=True)
class Token:
    issuer: str
    algorithm: str
    claims: dict[str, str]
    header: str = "authorization"


TOKENS = [
    Token(issuer, algorithm, claims, header)
    for issuer in ("https://id.example.com", "https://id.example.com/a", "https://other.example.com", KEYLESS, "dev")
    for algorithm in ("RS256", "RS512", "ES256", "HS256")
    for claims in ({"aud": "claude"}, {"aud": "api"}, {"client_id": "claude"}, {"azp": "claude"})
    for header in ("authorization", "x-api-key", "x-token", "cookie")
]

GOOD = [
    token
    for token in TOKENS
    if {"aud", "azp"} & token.claims.keys() and token.claims != {"aud": "api"} and token.algorithm != "RS512"
]


def kong_takes(route: RouteView, token: Token) -> bool:
    """Whether the route's plugins let the token in."""
    for plugin in route.active("claude-jwt-claims"):
        config = plugin["config"]
        headers = [name.lower() for name in config.get("header_names", ["authorization"])]
        headers += [*config.get("raw_header_names", []), *(["cookie"] if "cookie_names" in config else [])]
        named = [i for i in config["issuers"] if token.issuer in _spelled(i) and token.algorithm in i["algorithms"]]
        audience = next((token.claims[c] for c in config.get("audience_claims", ["aud"]) if c in token.claims), None)
        if not (token.header in headers and named and audience in config["audience"]) and "anonymous" not in config:
            return False
    return True


def _spelled(issuer: dict[str, Any]) -> list[str]:
    return [issuer["issuer"].replace("{tenantid}", tenant) for tenant in issuer.get("tenants", [""])]


def at_aws(found: dict[str, Any], method: str, path: str, token: Token) -> str:
    """Where API Gateway sends a request: a URL, or nowhere, or what its authorizer answers."""
    fits = [(template, m) for template in found["paths"] if (m := _pattern(template).fullmatch(path))]
    fits = [(template, m) for template, m in fits if method.lower() in found["paths"][template]]
    if not fits:
        return "nowhere"
    template, match = min(fits, key=lambda each: ("+}" in each[0], "{" in each[0]))
    operation = found["paths"][template][method.lower()]
    for name in [name for each in operation.get("security", []) for name in each]:
        authorizer = found["components"]["securitySchemes"][name]["x-amazon-apigateway-authorizer"]["jwtConfiguration"]
        audience = token.claims.get("aud") or token.claims.get("client_id")
        rsa = token.algorithm.startswith("RS")
        ours = token.issuer == authorizer["issuer"] != KEYLESS and audience in authorizer["audience"]
        if not (ours and rsa and token.header == "authorization"):
            return "401"
    return str(operation["x-amazon-apigateway-integration"]["uri"]).format(**match.groupdict())


def _pattern(template: str) -> re.Pattern[str]:
    text = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", template)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text))


def test_who_gets_in_through_api_gateway_is_who_gets_in(tmp_path: Path) -> None:
    random = Random(0)
    for _ in range(150):
        holds(configuration(random), tmp_path / "exported.json", random)


def holds(config: dict[str, Any], path: Path, random: Random) -> None:
    path.write_text(json.dumps(config))
    view = from_file(path, {})
    found = document(view, "https://kong.example.com")
    served = {route.name for route in view.served}
    for route in view.routes:
        number = route.name[1:]
        (own,) = route.route["paths"]
        place = f"/{number[0]}/{number[1]}"
        asked = next(asked for shape, asked in PATHS if shape.replace("/x", place, 1) == own)
        for each in (one.replace("/x", place, 1) for one in asked):
            assert at_aws(found, "DELETE", each, TOKENS[0]) == "nowhere"
            for method in route.route["methods"]:
                for token in [*random.sample(GOOD, 20), *random.sample(TOKENS, 8)]:
                    to = at_aws(found, method, each, token)
                    if route.name not in served:
                        assert to == "nowhere"
                    elif kong_takes(route, token):
                        assert to == f"https://kong.example.com{each}"
                    else:  # Kong refuses it, where API Gateway has not
                        assert to in ("401", f"https://kong.example.com{each}")
    limits = {
        plugin["config"]["tiers"][0]["minute"]
        for plugin in view.plugins
        if plugin["name"] == "claude-rate-tiers" and plugin["enabled"]
    }
    assert {plan["throttle"]["burstLimit"] for plan in found["x-kong-claude-usage-plans"]} == limits
    alone = found.get("x-kong-claude-checked-by-kong-alone", {})
    for route in view.served:
        checked = any(
            "security" in operation
            for methods in found["paths"].values()
            for operation in methods.values()
            if operation["operationId"].startswith(f"{route.name}-")
        )
        assert bool(route.active("claude-jwt-claims")) == (checked or route.name in alone)
        assert not (checked and route.name in alone)
