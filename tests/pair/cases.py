"""Routes and requests that both ways must answer alike."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt

from tests.gateway.runners import SECRET, TOKEN_SECRET
from tests.gateway.table import JWT, PROMPT

MANY = 1_000_000
RATE: dict[str, Any] = {
    "default_tier": "pro",
    "tiers": [
        {"name": "pro", "hour": MANY, "day": MANY, "concurrent": 1000, "models": ["haiku"], "max_usd_per_run": 0.1},
        {"name": "none", "hour": 1},
    ],
}
SIGNED = {"attestation": {"secret": SECRET}}
ADDED = {key: value for key, value in PROMPT.items() if key not in ("deny_patterns", "locked")}


def fused(*, jwt_claims: Any = JWT, rate_tiers: Any = RATE, prompt_context: Any = PROMPT, **shared: Any) -> Any:
    sections = {"jwt_claims": jwt_claims, "rate_tiers": rate_tiers, "prompt_context": prompt_context}
    config = {**SIGNED, **shared, **{name: section for name, section in sections.items() if section}}
    return [("claude-gateway", config), ("claude-guard", {})]


GUARDS = [
    ("claude-guard", {"plugin": "claude-jwt-claims"}),
    ("claude-guard-tiers", {}),
    ("claude-guard-context", {}),
]
QUERY = {**PROMPT, "context": {"note": {"source": "query:note"}, "branch": {"source": "path:branch"}}}
ROUTES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "body": fused(),
    "added": fused(prompt_context={**ADDED, "apply": "body"}),
    "attested": fused(
        attestation={"secret": SECRET, "request": "POST /attested"}, prompt_context={**ADDED, "apply": "attested"}
    ),
    "unsigned": fused(attestation=None),
    "apart": [
        ("claude-jwt-claims", {**SIGNED, **JWT}),
        ("claude-rate-tiers", {**SIGNED, **RATE}),
        ("claude-prompt-context", {**SIGNED, **PROMPT}),
        *GUARDS,
    ],
    "unattested": [("claude-jwt-claims", JWT), ("claude-rate-tiers", RATE), *GUARDS[:2]],
    "report": fused(rate_tiers={**RATE, "report": True}, prompt_context=None),
    "consumer": [
        *fused(
            jwt_claims={**JWT, "consumer_claim": "sub"},
            prompt_context={"context": {"who": {"source": "consumer:username"}}},
        ),
        ("acl", {"allow": ["known"]}),
    ],
    "query": fused(jwt_claims={**JWT, "uri_param_names": ["token"]}, prompt_context=QUERY),
    "address": fused(jwt_claims=None, rate_tiers={**RATE, "limit_by": "ip"}, prompt_context=None),
    "down": fused(prompt_context=None),
    "ended": [*fused(), ("request-termination", {"status_code": 200, "message": "ended"})],
    "unguarded": [("claude-guard", {})],
}


def kong_yml() -> dict[str, Any]:
    def route(name: str, plugins: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        return {
            "name": name,
            "paths": [f"~/{name}(?:/(?<branch>[a-z]+))?$"],
            "strip_path": False,
            "plugins": [
                {"name": plugin, "config": {key: value for key, value in config.items() if value is not None}}
                for plugin, config in plugins
            ],
        }

    return {
        "_format_version": "3.0",
        "services": [
            {
                "name": "up",
                "url": "http://upstream",
                "retries": 0,
                "routes": [route(name, plugins) for name, plugins in ROUTES.items() if name != "down"],
            },
            {
                "name": "down",
                "url": "http://127.0.0.1:9",
                "retries": 0,
                "routes": [route("down", ROUTES["down"])],
            },
        ],
        "plugins": [{"name": "claude-metrics", "config": {"access_log": {"file": "@LOG@"}}}],
        "consumers": [{"username": "ada", "custom_id": "c-1", "acls": [{"group": "known"}]}, {"username": "eve"}],
    }


def token(**more: Any) -> str:
    claims = {
        "iss": JWT["issuers"][0]["issuer"],
        "sub": "ada",
        "aud": "claude-code",
        "exp": int(time.time()) + 86_400,
        "roles": ["claude:invoke"],
        "tier": "pro",
        "department": "research",
        **more,
    }
    return jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")


BODY = json.dumps({"prompt": "Explain this function, in some words.", "system": "Be brief.", "model": "haiku"}).encode()


def ask(
    *extra: bytes,
    bearer: str | None = "",
    body: bytes | None = BODY,
    method: bytes = b"POST",
    target: bytes = b"@PATH@",
    length: bool = True,
    media: bytes | None = b"application/json",
    version: bytes = b"1.1",
) -> bytes:
    """A request with a good token, unless told otherwise. `extra`: whole header lines."""
    lines = [b"%b %b HTTP/%b" % (method, target, version), b"Host: gateway.test", b"X-Case: @CASE@"]
    if bearer is not None:
        lines.append(b"Authorization: Bearer " + (bearer or token()).encode())
    if media and body is not None:
        lines.append(b"Content-Type: " + media)
    if body is not None and length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, *extra, b"", body or b""])


def chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


LARGE = json.dumps({"prompt": "x" * (8 << 20)}).encode()
SPILLED = json.dumps({"prompt": "é" * 30_000, "system": "Be brief."}, ensure_ascii=False).encode()
REQUESTS: dict[str, bytes] = {
    "good": ask(b"X-Repo: org/app"),
    "again": ask(b"X-Repo: org/app"),
    "no token": ask(bearer=None),
    "no token, problem": ask(b"Accept: application/problem+json", bearer=None),
    "garbage": ask(bearer="x.y.z"),
    "bad signature": ask(bearer=token()[:-6] + "AAAAAA"),
    "expired": ask(bearer=token(exp=int(time.time()) - 100)),
    "no role": ask(bearer=token(roles=["other"])),
    "unknown consumer": ask(bearer=token(sub="eve")),
    "two tokens": ask(b"Authorization: Bearer " + token(sub="bob").encode()),
    "limited": ask(bearer=token(sub="few", tier="none")),
    "limited again": ask(bearer=token(sub="few", tier="none")),
    "forbidden": ask(body=b'{"prompt": "forbidden"}'),
    "locked": ask(body=b'{"prompt": "hi", "tools": []}'),
    "not json": ask(body=b"hi"),
    "array": ask(body=b"[]"),
    "form": ask(media=b"text/plain"),
    "gzip": ask(b"Content-Encoding: gzip"),
    "empty": ask(body=b""),
    "no body": ask(body=None),
    "get": ask(method=b"GET", body=None),
    "head": ask(method=b"HEAD", body=None),
    "delete": ask(method=b"DELETE", body=None),
    "odd method": ask(method=b"PURGE"),
    "long method": ask(method=b"A" * 40, body=None),
    "chunked": ask(b"Transfer-Encoding: chunked", body=chunked(BODY), length=False),
    "chunked, long": ask(b"Transfer-Encoding: chunked", body=chunked(SPILLED), length=False),
    "longer than is read beforehand": ask(body=json.dumps({"prompt": "y" * 20_000}).encode()),
    "60 KB": ask(body=SPILLED),
    "8 MB": ask(body=LARGE),
    "8 MB, no token": ask(body=LARGE, bearer=None),
    "expects": ask(b"Expect: 100-continue"),
    "expects, no token": ask(b"Expect: 100-continue", bearer=None),
    "not UTF-8 in the token": ask(b"Authorization: Bearer \xff\xfe", bearer=None),
    "not UTF-8 in a header": ask(b"X-Repo: \xff\xfe"),
    "not UTF-8 in the body": ask(body=b'{"prompt": "\xff"}'),
    "repeated": ask(b"X-Repo: org/app", b"X-Repo: org/other"),
    "repeated, other names": ask(b"Accept: a/b", b"Accept: c/d", b"X-A: 1", b"X-A: 2", b"X-A: 3"),
    "empty values": ask(b"X-Repo:", b"X-Empty: "),
    "empty name": ask(b": x"),
    "underscores": ask(b"X_Claude_Subject: root", b"X_Claude_Context: v=1"),
    "forged": ask(b"X-Claude-Subject: root", b"X-Claude-Attestation: a.b.c", b"X-Consumer-ID: 1"),
    "forged, many": ask(*[b"X-Claude-Attestation: a.b.c"] * 5),
    "990 headers": ask(*[b"X-H%d: %d" % (n, n) for n in range(990)]),
    "1,100 headers": ask(*[b"X-H%d: %d" % (n, n) for n in range(1100)]),
    "control characters": ask(b"X-Repo: a\tb"),
    "long header": ask(b"X-Long: " + b"z" * 6000),
    "request id": ask(b"X-Request-Id: r-1"),
    "bad request id": ask(b"X-Request-Id: " + b"r" * 300),
    "query": ask(target=b"@PATH@?note=a&x=%20&note"),
    "token in the query": ask(target=b"@PATH@?note=a&token=" + token().encode(), bearer=None),
    "capture": ask(target=b"@PATH@/main?note=b"),
    "escaped": ask(target=b"@PATH@?note=%ff%00&n"),
    "another form of the path": ask(target=b"//.@PATH@"),
    "absolute": ask(target=b"http://gateway.test@PATH@"),
    "HTTP/1.0": ask(version=b"1.0"),
    "preflight": ask(b"Origin: http://a.test", method=b"OPTIONS", body=None),
    "explain": ask(b"X-Claude-Explain: 1"),
    "respond-async": ask(b"Prefer: respond-async"),
    "model outside": ask(body=b'{"prompt": "hi", "model": "opus"}'),
    "through proxies": ask(b"X-Forwarded-For: 192.0.2.1, 10.0.0.1", b"X-Forwarded-Proto: https"),
}
PIPELINED = ask(b"X-Repo: org/app") + ask(bearer=None) + ask()
BRIEF = ("good", "again", "no token", "forbidden", "forged", "get", "head", "query", "token in the query", "capture")
# Of a form that HTTP/2 has, too.
HTTP2 = (
    *BRIEF,
    *("no token, problem", "expired", "two tokens", "locked", "not json", "form", "gzip", "empty", "no body", "delete"),
    *("longer than is read beforehand", "60 KB", "repeated", "repeated, other names", "empty values", "underscores"),
    *("not UTF-8 in a header", "not UTF-8 in the body", "request id", "long header", "explain", "model outside"),
)
