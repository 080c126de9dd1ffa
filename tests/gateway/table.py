"""Requests and what becomes of them, whatever the plugins' arrangement. Expected: a status, or None for a pass."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import jwt

from tests.gateway.runners import TOKEN_SECRET
from tests.support.kong_driver import Request

ISSUER = "https://idp.example"
JWT: dict[str, Any] = {
    "issuers": [{"issuer": ISSUER, "algorithms": ["HS256"], "secret": TOKEN_SECRET}],
    "audience": ["claude-code"],
    "forward_claims": ["department"],
    "rules": [{"claim": "roles", "any_of": ["claude:invoke"]}],
}
RATE: dict[str, Any] = {
    "default_tier": "free",
    "tiers": [
        {"name": "free", "minute": 2, "models": ["haiku"], "max_turns": 5},
        {"name": "pro", "minute": 100, "concurrent": 2, "models": ["haiku", "sonnet"], "max_usd_per_run": 2.0},
    ],
}
PROMPT: dict[str, Any] = {
    "prepend": "You are a code review assistant. ",
    "context": {
        "repository": {"source": "header:X-Repo", "pattern": "[a-z/]+", "render": True},
        "department": {"source": "claim:department"},
        "caller": {"source": "header:X-Claude-Subject"},
    },
    "deny_patterns": ["forbidden"],
    "locked": ["tools"],
}
ALL = {"jwt_claims": JWT, "rate_tiers": RATE, "prompt_context": PROMPT}


@dataclass(frozen=True)
class Row:
    name: str
    sections: dict[str, Any]
    requests: list[Request]
    statuses: list[int | None]


def token(**more: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": "ada",
        "aud": "claude-code",
        "exp": now + 86_400,  # made when tests are collected: the last of them may run much later
        "iat": now,
        "roles": ["claude:invoke"],
        "tier": "pro",
        "department": "research",
        "jti": "t-1",
        **more,
    }
    return jwt.encode({n: v for n, v in claims.items() if v is not None}, TOKEN_SECRET, algorithm="HS256")


def ask(
    body: Any = None, bearer: str | None = "", headers: dict[str, Any] | None = None, method: str = "POST"
) -> Request:
    """A request with a good token, unless told otherwise; a header given as None is left out."""
    raw = body if isinstance(body, bytes) else json.dumps(body or {"prompt": "hi", "system": "Be brief."}).encode()
    raw = raw if method == "POST" else b""
    sent = {
        "host": "gateway",
        "x-request-id": "r-1",
        "authorization": None if bearer is None else f"Bearer {bearer or token()}",
        "content-type": "application/json" if raw else None,
        "content-length": str(len(raw)) if raw else None,
        **(headers or {}),
    }
    return Request(
        method=method,
        headers={n: v for n, v in sent.items() if v is not None},
        body=raw,
        answers={"kong.nginx.get_var": f"{method} /claude/invoke HTTP/1.1"},
    )


def with_consumer(request: Request) -> Request:
    ada = {"id": "5d0c7a8e-95a4-4b4e-8b6e-0d8f5a1c7f42", "username": "ada", "custom_id": "c-1"}
    request.answers = {**request.answers, "kong.client.load_consumer": ada, "kong.client.get_consumer": ada}
    return request


def without(*names: str) -> dict[str, Any]:
    return {section: config for section, config in ALL.items() if section not in names}


def prompt(**more: Any) -> dict[str, Any]:
    return {**ALL, "prompt_context": {**PROMPT, **more}}


def rows() -> list[Row]:
    free, pro = token(tier="free"), token()
    return [
        Row("ok", ALL, [ask(headers={"x-repo": "org/app"})], [None]),
        Row("ok without headers", ALL, [ask()], [None]),
        Row("no token", ALL, [ask(bearer=None)], [401]),
        Row("bad signature", ALL, [ask(bearer=pro[:-6] + "AAAAAA")], [401]),
        Row("no jwt", ALL, [ask(bearer="x.y.z")], [401]),
        Row("expired", ALL, [ask(bearer=token(exp=int(time.time()) - 100))], [401]),
        Row("other audience", ALL, [ask(bearer=token(aud="other"))], [401]),
        Row("no role", ALL, [ask(bearer=token(roles=["other"]))], [403]),
        Row("two tokens", ALL, [ask(headers={"authorization": [f"Bearer {pro}", f"Bearer {free}"]})], [401]),
        Row("problem+json", ALL, [ask(bearer=None, headers={"accept": "application/problem+json"})], [401]),
        Row("over the limit", ALL, [ask(bearer=free)] * 3, [None, None, 429]),
        Row("unknown tier", ALL, [ask(bearer=token(tier="gold"))] * 3, [None, None, 429]),
        Row("no tier", ALL, [ask(bearer=token(tier=None))] * 3, [None, None, 429]),
        Row("leases are given back", ALL, [ask()] * 4, [None] * 4),
        Row("refused prompts keep no lease", ALL, [ask({"prompt": "forbidden"})] * 4 + [ask()], [400] * 4 + [None]),
        Row("pattern", ALL, [ask(headers={"x-repo": "ORG"})], [400]),
        Row("locked", ALL, [ask({"prompt": "hi", "tools": []})], [400]),
        Row("form", ALL, [ask(headers={"content-type": "text/plain"})], [415]),
        Row("gzip", ALL, [ask(headers={"content-encoding": "gzip"})], [415]),
        Row("not json", ALL, [ask(b"hi")], [400]),
        Row("duplicate", ALL, [ask(b'{"prompt":"a","prompt":"b"}')], [400]),
        Row("too large", prompt(max_body_bytes=100), [ask({"prompt": "x" * 100})], [413]),
        Row("forged subject", ALL, [ask(headers={"x-claude-subject": "root"})], [None]),
        Row("forged subject, other spelling", ALL, [ask(headers={"x_claude_subject": "root"})], [None]),
        Row("forged attestation", ALL, [ask(headers={"x-claude-attestation": "a.b.c"})], [None]),
        Row("forged context", ALL, [ask(headers={"x-claude-context": "v=1"})], [None]),
        Row("spoofed body context", ALL, [ask({"context": {"department": "board", "own": 1}})], [None]),
        Row("GET", ALL, [ask(method="GET", headers={"content-length": "0"})], [None]),
        Row("replace", prompt(on_locked="replace"), [ask({"prompt": "hi", "tools": ["Bash"]})], [None]),
        Row(
            "messages",
            prompt(shape="messages"),
            [ask({"messages": [], "system": [{"type": "text", "text": "S"}]})],
            [None],
        ),
        Row("chat", prompt(shape="chat"), [ask({"messages": [{"role": "user", "content": "hi"}]})], [None]),
        Row(
            "consumer",
            {
                "jwt_claims": {**JWT, "consumer_claim": "sub"},
                "prompt_context": {"context": {"c": {"source": "consumer:custom_id", "required": True}}},
            },
            [with_consumer(ask())],
            [None],
        ),
        Row("explain denied", prompt(explain=True), [ask(headers={"x-claude-explain": "1"})], [403]),
        Row(
            "explain",
            prompt(explain=True),
            [ask(bearer=token(permissions=["claude:explain"]), headers={"x-claude-explain": "1"})] * 4,
            [200] * 4,
        ),
        Row("only the token", without("rate_tiers", "prompt_context"), [ask(), ask(bearer=None)], [None, 401]),
        Row("only the prompt", without("jwt_claims", "rate_tiers"), [ask(), ask({"tools": []})], [None, 400]),
        Row("only limits, nobody known", without("jwt_claims", "prompt_context"), [ask()], [401]),
        Row("token and limits", without("prompt_context"), [ask(bearer=free)] * 3, [None, None, 429]),
        Row(
            "token and prompt",
            without("rate_tiers"),
            [ask(headers={"x-repo": "org/app"}), ask(bearer=None)],
            [None, 401],
        ),
    ]
