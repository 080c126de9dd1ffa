"""`kong-claude limits`: what callers may use is looked at and changed for a while, while everything runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from claude_contract import secret_file
from claude_contract.duration import duration
from claude_contract.secret_file import SecretFileError
from kong_claude.no_redirects import NoRedirects
from kong_claude.problem import Problem

HELP = "look at limits and change them for a while, as an admin: get, set, reset, explain"
PATH = "/claude/admin/limits"
TIMEOUT_S = 30
STACKS = "kong_claude.stacks"
"""Entry points of this group know of a gateway by where we are. Each names a function of the roles that a token needs,
which returns its address and such a token, or None where there is none."""
_SET = """each limit as NAME=VALUE: second, minute, hour, day, month (requests), concurrent (runs),
usd_per_hour, usd_per_day, usd_per_week, usd_per_month, usd_per_rolling_… (US dollars), blocked=true.
Only limits that the configuration has can be changed; a new change of the same target replaces the old one."""


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="get|set|reset|explain")

    get = verbs.add_parser("get", help="list the changes that hold now")
    _target(get, needed=False)
    change = verbs.add_parser(
        "set",
        help="change limits for a while",
        epilog=_SET,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    change.add_argument("limits", nargs="+", type=limit, metavar="NAME=VALUE", help="such as usd_per_day=5 minute=10")
    _target(change, needed=True)
    change.add_argument("--why", required=True, help="the reason, for the audit log and for other admins")
    when = change.add_mutually_exclusive_group()
    when.add_argument(
        "--for", dest="for_s", type=duration, metavar="TIME", help="30m, 2h, 7d (default: 24h; at most 31d)"
    )
    when.add_argument("--until", metavar="TIME", help="with a time zone: 2026-12-31T18:00:00Z")
    reset = verbs.add_parser("reset", help="take a change back: what the configuration says holds again")
    _target(reset, needed=True)
    explain = verbs.add_parser("explain", help="which limit binds a caller, from where it comes, what is left")
    explain.add_argument("--sub", required=True, help="the caller (what limit_by counts; usually the token's sub)")
    explain.add_argument("--tier", help="his tier (default: the configuration's default_tier)")
    explain.add_argument("--organisation", help="his organisation, where organisation_claim is configured")
    explain.add_argument(
        "--claim", action="append", default=[], type=pair, metavar="NAME=VALUE", help="for pools by claim: team=red"
    )
    for each in (get, change, reset, explain):
        each.add_argument(
            "--url",
            help="the gateway (default: $CLAUDE_GATEWAY_URL, else the local stack of this directory, else "
            "http://127.0.0.1:8000)",
        )
        each.add_argument(
            "--token-file",
            type=Path,
            help="a file with the token of an admin that only you can read (default: $CLAUDE_TOKEN; the local "
            "stack of this directory needs none)",
        )
        each.add_argument("--json", action="store_true", help="print the answer as it is")


def _target(parser: argparse.ArgumentParser, *, needed: bool) -> None:
    which = parser.add_mutually_exclusive_group(required=needed)
    which.add_argument("--sub", help="one caller")
    which.add_argument("--tier", help="all callers in this tier, each by himself")
    which.add_argument("--pool", help="a pool; with --value one of them, without it each by itself")
    parser.add_argument("--value", help="whose pool: the value of the pool's claim")
    parser.add_argument("--organisation", help="where organisation_claim is configured: whose limits")


def limit(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    try:
        return name, json.loads(value if given else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a limit such as minute=10 or blocked=true") from None


def pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not (name and given and value):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, value


def run(options: argparse.Namespace) -> int:
    named = {
        name: value
        for name in ("sub", "tier", "pool", "value", "organisation")
        if (value := getattr(options, name, None)) is not None
    }
    match options.verb:
        case "set":
            more = {"until": options.until, "for_s": options.for_s}
            body = {**named, "limits": dict(options.limits), "why": options.why}
            body |= {name: value for name, value in more.items() if value is not None}
            answer = ask(options, "PUT", body=body)
            return show(options, answer, one_change)
        case "reset":
            answer = ask(options, "DELETE", named)
            return show(options, answer, lambda found: f"reset: {_names(found['reset'])}")
        case "get":
            answer = ask(options, "GET", named)
            return show(options, answer, lambda found: "\n".join(map(one_change, found["changes"])) or "no changes")
        case _:
            query = named | {"explain": "true"} | {f"claim.{name}": value for name, value in options.claim}
            return show(options, ask(options, "GET", query), explained)


def ask(
    options: argparse.Namespace, method: str, query: dict[str, str] | None = None, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The gateway's answer. Raises Problem."""
    base, bearer = _whom(options)
    if not base.startswith(("http://", "https://")):
        raise Problem(f"--url {base}: must begin with http:// or https://")
    address = f"{base.rstrip('/')}{PATH}{'?' + urlencode(query) if query else ''}"
    request = urllib.request.Request(
        address,
        json.dumps(body).encode() if body is not None else None,
        {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with _NO_REDIRECTS.open(request, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise Problem(f"{error.code}: {_message(error.read(10_000), error.reason)}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise Problem(
            f"{base} does not answer as a gateway: {why}; --url or CLAUDE_GATEWAY_URL names another"
        ) from None
    if not isinstance(found, dict):
        raise Problem(f"{base} does not answer as a gateway")
    return found


def _whom(options: argparse.Namespace) -> tuple[str, str]:
    """The gateway, and a token for it. One that a stack makes is for that stack alone. Raises Problem."""
    named = options.url or os.environ.get("CLAUDE_GATEWAY_URL")
    stack = None if named else _stack()
    if stack is None:
        return named or "http://127.0.0.1:8000", token(options.token_file)
    given = options.token_file or os.environ.get("CLAUDE_TOKEN")
    return stack[0], token(options.token_file) if given else stack[1]


def _stack() -> tuple[str, str] | None:
    """Raises Problem."""
    for entry in entry_points(group=STACKS):
        found: tuple[str, str] | None = entry.load()(["claude:invoke", "admin"])
        if found is not None:
            return found
    return None


_NO_REDIRECTS = urllib.request.build_opener(NoRedirects)


def token(path: Path | None) -> str:
    """Never an argument, which the list of processes would show. Raises Problem."""
    try:
        found = secret_file.read(path) if path else os.environ.get("CLAUDE_TOKEN", "").strip()
    except SecretFileError as error:
        raise Problem(str(error)) from None
    if not found:
        raise Problem("no token: set CLAUDE_TOKEN, or name a file with --token-file (role admin is needed)")
    if not re.fullmatch(r"[!-~]+", found):
        raise Problem("the token must be one line of printable characters")
    return found


def _message(raw: bytes, otherwise: str) -> str:
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def show(options: argparse.Namespace, answer: dict[str, Any], text: Any) -> int:
    try:
        print(json.dumps(answer, indent=2) if options.json else text(answer))
    except (KeyError, TypeError) as error:
        raise Problem(f"the gateway's answer is of another version ({error}): see it with --json") from None
    sys.stdout.flush()
    return 0


def _names(change: dict[str, Any]) -> str:
    names = ("sub", "tier", "pool", "value", "organisation")
    return ", ".join(f"{name} {change[name]}" for name in names if name in change)


def one_change(change: dict[str, Any]) -> str:
    limits = " ".join(f"{name}={json.dumps(value)}" for name, value in change["limits"].items())
    warnings = "".join(f"\n  but {warning}" for warning in change.get("warnings", ()))
    return f"{_names(change)}: {limits} until {change['until']}, by {change['by']}: {change['why']}{warnings}"


def explained(found: dict[str, Any]) -> str:
    lines = [f"{found['sub']} in tier {found['tier']}, at {found['at']}"]
    if found["blocked"]:
        lines.append(f"BLOCKED by {one_change(found['blocked'])}")
    rows = [("limit", "allowed", "used", "reserved", "left", "turns in", "from")]
    for row in found["limits"]:
        name = f"{row['pool']}: {row['limit']}" if "pool" in row else row["limit"]
        turns = f"{row['turns_in_s']} s" if row.get("turns_in_s") else ""
        origin = row["from"]
        if isinstance(origin, dict):
            origin = (
                f"{_names(origin)}, by {origin['by']} until {origin['until']} (configuration: {row['configured']}): "
                f"{origin['why']}"
            )
        rows.append(
            (name, *(str(row.get(part, "")) for part in ("allowed", "used", "reserved", "left")), turns, origin)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines += [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]) for row in rows
    ]
    binds = found["binds"]
    if binds:
        pool = f"{binds['pool']}: " if "pool" in binds else ""
        lines.append(f"binds first: {pool}{binds['limit']}")
    lines += [f"not shown: {pool}" for pool in found["unknown_pools"]]
    return "\n".join(line.rstrip() for line in lines)
