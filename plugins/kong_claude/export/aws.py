"""Amazon API Gateway (HTTP API): an OpenAPI 3.0 document with `x-amazon-apigateway-*` extensions. Pure.

Sources: AWS, "Working with OpenAPI definitions for HTTP APIs"; "x-amazon-apigateway-authorizer object";
"x-amazon-apigateway-integration object".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kong_claude.doctor.view import RouteView, View
from kong_claude.problem import Problem

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# A route without a JWT plugin, or with issuers that API Gateway cannot check.
_PLAIN = re.compile(r"(/([A-Za-z0-9._~%-]+|\{\w+\})?)+")
_CAPTURE = re.compile(r"\(\?<(\w+)>(?:\[[^\]]*\]|[^()])*\)")

HEADER = """\
# Written by `kong-claude export aws` from kong.yml. Import it as an HTTP API:
#   aws apigatewayv2 import-api --body file://this.yaml
#
# API Gateway checks the token's signature, issuer and audience and throttles; everything else stays with Kong, which
# this API sends its requests to. What has no equivalent there:
#   - issuers with a shared secret (HS256) or inline keys: a JWT authorizer takes OIDC issuers (RSA keys) only
#   - rules over claims, repo_claim, revocation, several tokens in one request: a JWT authorizer knows scopes only
#   - concurrency leases, money budgets, sliding windows by subject: usage plans count API keys in fixed windows and
#     belong to REST APIs; x-kong-claude-usage-plans below has the tiers' numbers for `aws apigateway create-usage-plan`
#   - captures that span a slash ({repo} for org/app), and routes that differ by a header only
#   - prompt context, profiles, locked fields, attestation, the fail-closed guard
#   - answers longer than 30 s: an integration of an HTTP API ends there. Use jobs, not open connections
#   - event streams: an HTTP API buffers answers
"""


def document(view: View, target: str, vpc_link: str | None = None) -> dict[str, Any]:
    """The OpenAPI document. `target`: base URL of Kong."""
    schemes: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in view.routes:
        security: list[dict[str, list[str]]] = [{name: []} for name in authorizers(route, schemes)]
        if not route.route.get("paths"):
            raise Problem(f"route {route.name} has no paths: API Gateway needs some, such as /")
        for number, path in enumerate(itertools.chain.from_iterable(map(templates, route.route["paths"]))):
            suffix = f"-{number + 1}" if number else ""
            for method in route.route.get("methods") or METHODS:
                operation: dict[str, Any] = {
                    "operationId": f"{route.name}{suffix}-{method.lower()}",
                    "responses": {"default": {"description": "From Kong"}},
                    "x-amazon-apigateway-integration": integration(target, path, method, vpc_link),
                }
                if security:
                    operation["security"] = security
                if parameters := re.findall(r"\{(\w+)\+?\}", path):
                    operation["parameters"] = [parameter(name) for name in parameters]
                # Kong tells routes apart by headers too; here the first one stands for them.
                paths.setdefault(path, {}).setdefault(method.lower(), operation)
    found: dict[str, Any] = {
        "openapi": "3.0.1",
        "info": {"title": "kong-claude", "version": "1.0"},
        "paths": paths,
        "x-kong-claude-usage-plans": list(usage_plans(view)),
    }
    if schemes:
        found["components"] = {"securitySchemes": schemes}
    return found


def parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def templates(path: str) -> list[str]:
    """A Kong path as API Gateway paths: one for itself, one with `{proxy+}` for what it is a prefix of; a named capture
    becomes a parameter. Raises Problem for a pattern that a path there cannot say."""
    made, is_prefix = path, True
    if path.startswith("~"):
        made, is_prefix = path[1:].lstrip("^"), not path.endswith("$")
        made = _CAPTURE.sub(lambda match: "{" + match[1] + "}", made.rstrip("$"))
        made = re.sub(r"\\([^\w])", r"\1", made)
        if not _PLAIN.fullmatch(made):
            raise Problem(
                f"path {path}: API Gateway has no such pattern; use names such as (?<id>[^/]+) between slashes"
            )
    stem = made.rstrip("/")
    return [made or "/", *([f"{stem}/{{proxy+}}"] if is_prefix else [])]


def authorizers(route: RouteView, schemes: dict[str, Any]) -> Iterator[str]:
    """Names of the JWT authorizers of a route; adds them to `schemes`."""
    for plugin in route.named("claude-gateway", "claude-jwt-claims"):
        config: Mapping[str, Any] = plugin.get("config") or {}
        section = config.get("jwt_claims") or config
        for issuer in section.get("issuers") or []:
            # Keys that API Gateway could fetch by itself: an https issuer.
            if not str(issuer.get("issuer", "")).startswith("https://"):
                continue
            name = re.sub(r"\W+", "-", issuer["issuer"].removeprefix("https://")).strip("-")
            schemes[name] = {
                "type": "oauth2",
                "x-amazon-apigateway-authorizer": {
                    "type": "jwt",
                    "identitySource": "$request.header.Authorization",
                    "jwtConfiguration": {"issuer": issuer["issuer"], "audience": list(section.get("audience") or [])},
                },
            }
            yield name


def integration(target: str, path: str, method: str, vpc_link: str | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "http_proxy",
        "httpMethod": method,
        "uri": target + path.replace("+}", "}"),
        "payloadFormatVersion": "1.0",
        "timeoutInMillis": 30000,
        "connectionType": "VPC_LINK" if vpc_link else "INTERNET",
    }
    return made | ({"connectionId": vpc_link} if vpc_link else {})


def usage_plans(view: View) -> Iterator[dict[str, Any]]:
    """Each tier's numbers as a usage plan takes them: a rate, a burst, and one quota (the longest window)."""
    seen = set()
    for plugin in view.plugins:
        config: Mapping[str, Any] = plugin.get("config") or {}
        for tier in (config.get("rate_tiers") or config).get("tiers") or []:
            if tier["name"] in seen:
                continue
            seen.add(tier["name"])
            plan: dict[str, Any] = {"name": tier["name"]}
            rates = [tier[w] / s for w, s in (("second", 1), ("minute", 60), ("hour", 3600)) if tier.get(w)]
            if rates:
                burst = int(tier.get("burst") or tier.get("minute") or 1)
                plan["throttle"] = {"rateLimit": round(min(rates), 3), "burstLimit": burst}
            for window, period in (("month", "MONTH"), ("day", "DAY")):
                if tier.get(window):
                    plan["quota"] = {"limit": tier[window], "period": period}
                    break
            yield plan


def to_yaml(found: Mapping[str, Any]) -> str:
    return HEADER + yaml.safe_dump(dict(found), sort_keys=False, width=120)
