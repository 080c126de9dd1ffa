"""kong.yml as an OpenAPI document for Amazon API Gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from kong_claude.cli.main import main
from kong_claude.export.aws import template

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
        ("/claude/invoke", "/claude/invoke"),
        ("~/a/(?<b>[^/]+)/c$", "/a/{b}/c"),
        ("~/r/(?<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/invoke$", "/r/{repo}/invoke"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    assert template(path) == expected


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
            assert all("{" + name + "}" in path for name in named)
