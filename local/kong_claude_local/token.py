"""`kong-claude token --sub NAME`: a development JWT that the stack's own kong.yml accepts."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from typing import Any

import jwt

from claude_contract.duration import duration
from kong_claude.problem import Problem
from kong_claude_local.state import place, recall, secret

ISSUER = "kong-claude-dev"
AUDIENCE = "claude-code"


def arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--sub", type=_subject, help="subject: who the token is for")
    parser.add_argument("--tier", default="free", help="rate tier (default: %(default)s)")
    parser.add_argument(
        "--role",
        action="append",
        default=None,
        help="a role, may be repeated (default: claude:invoke; 'admin' opens metrics and the whole dashboard)",
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further claim, may be repeated; VALUE is read as JSON where it is JSON, else as text",
    )
    parser.add_argument(
        "--ttl", default="1h", type=duration, metavar="TIME", help="life time: 90s, 15m, 1h, 2d (default: %(default)s)"
    )
    parser.add_argument("--no-role", action="store_true", help="a token without any role")


def _subject(given: str) -> str:
    if not given:
        raise argparse.ArgumentTypeError("a subject is somebody: the gateway refuses an empty one")
    return given


def run(options: argparse.Namespace) -> int:
    roles = [] if options.no_role else options.role or ["claude:invoke"]
    made_now = not (os.environ.get("CLAUDE_JWT_SECRET") or (place() / "jwt-secret").exists())
    token = make(options.sub, options.tier, roles, options.ttl, claims(options.claim))
    if made_now:
        print(
            f"signed with a new secret, {place() / 'jwt-secret'}: a stack of another directory refuses it",
            file=sys.stderr,
        )
    print(token)
    return 0


def make(subject: str, tier: str, roles: list[str], ttl: int, more: dict[str, Any] | None = None) -> str:
    """An HS256 JWT signed with the stack's `jwt-secret`; `ttl` in seconds."""
    now = int(time.time())
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": subject,
        "tier": tier,
        "roles": roles,
        "iat": now,
        "exp": now + ttl,
        "jti": secrets.token_hex(8),
        **(more or {}),
    }
    return jwt.encode(payload, secret("jwt-secret"), algorithm="HS256")


def of_this_directory(roles: list[str]) -> tuple[str, str] | None:
    """The gateway of the stack that runs here, and a token of ten minutes for it; None where none runs."""
    running = recall()
    return None if running is None else (running.proxy, make("local", "pro", roles, 600))


def claims(pairs: list[str]) -> dict[str, Any]:
    """`["team=core", "groups=[1]"]` → `{"team": "core", "groups": [1]}`. Raises Problem."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise Problem(f"--claim {pair!r} is not KEY=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
