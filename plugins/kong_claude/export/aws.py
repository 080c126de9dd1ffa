"""Amazon API Gateway (HTTP API): an OpenAPI 3.0 document with `x-amazon-apigateway-*` extensions. Pure.

Sources: AWS, "Working with OpenAPI definitions for HTTP APIs"; "x-amazon-apigateway-authorizer object";
"x-amazon-apigateway-integration object".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase as fnmatch
from typing import Any
from urllib.parse import urlsplit

import yaml

from kong_claude.doctor.view import RouteView, View, runs
from kong_claude.problem import Problem

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PLAIN = re.compile(r"(/([A-Za-z0-9._~%-]+|\{\w+\+?\})?)+")
_CAPTURE = re.compile(r"\(\?<(\w+)>((?:\[[^\]]*\]|[^()\[])*)\)")
_PIECE = re.compile(r"\[\^?[^\]]*\]|\\.|[^\[\\]")
_KEYS = ("secret", "public_key", "jwks")

HEADER = """\
# Written by `kong-claude export aws` from kong.yml. Import it as an HTTP API:
#   aws apigatewayv2 import-api --body file://this.yaml
#
# Kong, which this API sends its requests to, goes on checking everything: who is let in is what kong.yml says. Where a
# JWT authorizer lets in the same tokens, API Gateway checks signature, issuer and audience before it; the other routes
# are listed with the reason in x-kong-claude-checked-by-kong-alone. What has no equivalent there:
#   - issuers with a shared secret (HS256) or inline keys, a second issuer, a token in another header or a cookie: an
#     authorizer takes one OIDC issuer (RSA keys) and looks into Authorization
#   - rules over claims, repo_claim, revocation, several tokens in one request: a JWT authorizer knows scopes only
#   - concurrency leases, money budgets, sliding windows by subject: usage plans count API keys in fixed windows and
#     belong to REST APIs; x-kong-claude-usage-plans below has the tiers' numbers for `aws apigateway create-usage-plan`
#   - a path that two templates fit: the more specific one's authorizer is asked
#   - prompt context, profiles, locked fields, attestation, the fail-closed guard
#   - answers longer than 30 s: an integration of an HTTP API ends there. Use jobs, not open connections
#   - event streams: an HTTP API buffers answers
"""


def document(view: View, target: str, vpc_link: str | None = None) -> dict[str, Any]:
    """The OpenAPI document. `target`: base URL of Kong. Raises Problem with all that has no equivalent, a line each."""
    gaps: dict[str, None] = {}
    schemes: dict[str, Any] = {}
    kongs: dict[str, str] = {}
    paths: dict[str, dict[str, Any]] = {}
    spelled: dict[str, str] = {}  # without the names of its parameters → the path
    for route in view.served:
        gaps |= dict.fromkeys(unreachable(route, target))
        authorizer = authorizer_of(route)
        if isinstance(authorizer, str):
            kongs |= {route.name: authorizer} if authorizer else {}
        security: list[dict[str, list[str]]] = (
            [{scheme_name(authorizer, schemes): []}] if isinstance(authorizer, Mapping) else []
        )
        try:
            found = [template for path in route.route.get("paths") or [] for template in templates(path)]
        except Problem as problem:
            gaps[f"route {route.name}: {problem}"] = None
            continue
        for number, template in enumerate(found):
            suffix = f"-{number + 1}" if number else ""
            path = spelled.setdefault(re.sub(r"\{\w+", "{", template), template)
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
                # Kong tells routes apart by headers and hosts too; here the first one stands for them.
                known = paths.setdefault(path, {}).setdefault(method.lower(), operation)
                if known.get("security") != operation.get("security"):
                    gaps[f"route {route.name}: {method} {path} is another route's too, of other authorizers"] = None
    if gaps:
        raise Problem("this configuration does not fit API Gateway:\n  " + "\n  ".join(gaps))
    made: dict[str, Any] = {
        "openapi": "3.0.1",
        "info": {"title": "kong-claude", "version": "1.0"},
        "paths": paths,
        "x-kong-claude-usage-plans": list(usage_plans(view)),
    }
    if kongs:
        made["x-kong-claude-checked-by-kong-alone"] = kongs
    if schemes:
        made["components"] = {"securitySchemes": schemes}
    return made


def unreachable(route: RouteView, target: str) -> Iterator[str]:
    """Why Kong would not find the route by what API Gateway sends to the target."""
    own, url = route.route, urlsplit(target)
    what = f"route {route.name}"
    if not own.get("paths"):
        yield f"{what} has no paths: API Gateway needs some, such as /"
    if url.scheme not in (own.get("protocols") or ("http", "https")):
        yield f"{what}: protocols {', '.join(own['protocols'])}: API Gateway speaks {url.scheme} with {target}"
    for field in ("hosts", "snis"):
        named = own.get(field) or []
        if named and not any(
            fnmatch(each, name.lower()) for name in named for each in (url.hostname or "", url.netloc)
        ):
            yield f"{what}: {field} {', '.join(named)}: API Gateway asks for {url.netloc}: add it, or say --target"
    for field in ("sources", "destinations"):
        if own.get(field):
            yield f"{what}: {field}: Kong sees API Gateway's addresses"


def parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def templates(path: str) -> list[str]:
    """A Kong path as API Gateway paths: one for itself, one with `{proxy+}` for what it is a prefix of; a named capture
    becomes a parameter, or one for each part between slashes. Raises Problem for what a path there cannot say."""
    made, is_prefix = path, True
    if path.startswith("~"):
        made, is_prefix = path[1:].lstrip("^"), not path.endswith("$")
        made = _CAPTURE.sub(_parameters, made.rstrip("$"))
        made = re.sub(r"\\([^\w])", r"\1", made)
        if not _PLAIN.fullmatch(made) or "+}" in made.removesuffix("+}") or (made.endswith("+}") and is_prefix):
            raise Problem(
                f"path {path}: API Gateway has no such pattern; use names such as (?<id>[^/]+) between slashes"
            )
    stem = made.rstrip("/")
    return [made or "/", *([f"{stem}/{{proxy+}}"] if is_prefix else [])]


def _parameters(capture: re.Match[str]) -> str:
    """`{name}`; `{name_1}/{name_2}` where the pattern says one slash; `{name+}` where it can be any number of them."""
    name, pieces = capture[1], _PIECE.findall(capture[2])
    if any(_takes_slash(piece) for piece in pieces):
        return "{" + name + "+}"
    parts = 1 + pieces.count("/")
    if parts == 1:
        return "{" + name + "}"
    if "|" in pieces or re.search(r"/[?*+{]", capture[2]):  # another number of parts each time: no template
        return capture[0]
    return "/".join(f"{{{name}_{number + 1}}}" for number in range(parts))


def _takes_slash(piece: str) -> bool:
    """Whether one piece of a pattern, other than a slash itself, can be one."""
    if piece.startswith("["):
        try:
            return bool(re.match(piece, "/"))
        except re.error:  # Kong's own syntax, such as a class by its name
            return True
    return piece in (".", r"\S", r"\W", r"\D")


def authorizer_of(route: RouteView) -> dict[str, Any] | str:
    """The JWT authorizer that lets in what Kong lets in, or why there is none (empty where Kong looks at no token)."""
    asked = route.active("claude-gateway", "claude-jwt-claims")
    if not asked:
        return ""
    if len(asked) > 1:
        return "two plugins look at the token"
    config: Mapping[str, Any] = asked[0].get("config") or {}
    section: Mapping[str, Any] = config.get("jwt_claims") or config
    issuers = section.get("issuers") or []
    if len(issuers) != 1:
        return f"{len(issuers)} issuers"
    issuer = issuers[0]
    if not str(issuer.get("issuer", "")).startswith("https://") or any(issuer.get(key) for key in _KEYS):
        return "an issuer whose keys API Gateway cannot fetch"
    if issuer.get("tenants") or "{" in issuer["issuer"]:
        return "an issuer of many tenants"
    if not all(str(name).startswith("RS") for name in issuer.get("algorithms") or ()):
        return "keys other than RSA"
    if not {"aud", "client_id"}.issuperset(section.get("audience_claims") or ("aud",)):
        return "an audience in another claim"
    if {str(name).lower() for name in section.get("header_names") or ("authorization",)} != {"authorization"}:
        return "a token in another header"
    for field in ("raw_header_names", "cookie_names", "uri_param_names", "anonymous"):
        if section.get(field):
            return f"{field}"
    if section.get("run_on_preflight") is False and "OPTIONS" in (route.route.get("methods") or METHODS):
        return "run_on_preflight"
    return {
        "type": "jwt",
        "identitySource": "$request.header.Authorization",
        "jwtConfiguration": {"issuer": issuer["issuer"], "audience": list(section.get("audience") or [])},
    }


def scheme_name(authorizer: Mapping[str, Any], schemes: dict[str, Any]) -> str:
    """Of this authorizer among the schemes, to which it is added where it is new."""
    scheme = {"type": "oauth2", "x-amazon-apigateway-authorizer": dict(authorizer)}
    issuer = authorizer["jwtConfiguration"]["issuer"]
    name = re.sub(r"\W+", "-", issuer.removeprefix("https://")).strip("-")
    free = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    chosen = next(each for each in free if schemes.get(each, scheme) == scheme)
    schemes[chosen] = scheme
    return chosen


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
    """Each tier's numbers as a usage plan takes them: a rate, a burst, and one quota (the longest window). Another tier
    of the same name has a number after it."""
    seen: dict[str, dict[str, Any]] = {}
    for plugin in filter(runs, view.plugins):
        config: Mapping[str, Any] = plugin.get("config") or {}
        for tier in (config.get("rate_tiers") or config).get("tiers") or []:
            plan: dict[str, Any] = {}
            rates = [tier[w] / s for w, s in (("second", 1), ("minute", 60), ("hour", 3600)) if tier.get(w)]
            if rates:
                burst = int(tier.get("burst") or tier.get("minute") or 1)
                plan["throttle"] = {"rateLimit": round(min(rates), 3), "burstLimit": burst}
            for window, period in (("month", "MONTH"), ("day", "DAY")):
                if tier.get(window):
                    plan["quota"] = {"limit": tier[window], "period": period}
                    break
            names = (tier["name"] if n == 1 else f"{tier['name']}-{n}" for n in itertools.count(1))
            name = next(each for each in names if seen.get(each, plan) == plan)
            if name not in seen:
                seen[name] = plan
                yield {"name": name} | plan


class _Dumper(yaml.SafeDumper):
    """Nothing as an alias: not every reader of OpenAPI knows them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(found: Mapping[str, Any]) -> str:
    return HEADER + yaml.dump(dict(found), Dumper=_Dumper, sort_keys=False, width=120)
