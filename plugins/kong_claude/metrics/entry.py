"""One request as the log phase sees it: from Kong's `log.serialize` to what is counted and written. Pure."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kong_claude.in_flight import Attested

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ATTESTATION = "x-claude-attestation"
MAX_TEXT = 512  # characters of what a client chose
# Nothing of this kind belongs into a path or a header that is logged; people put it there all the same.
_SECRET = re.compile(
    r"eyJ[\w-]{8,}(?:\.[\w-]*){1,4}|\b(?:sk|pk|rk|ghp|gho|glpat|xox[a-z])[-_][\w-]{8,}|bearer\s+\S+", re.IGNORECASE
)
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
_REPOSITORY_PATH = re.compile(r"/repos/([A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100})/")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_REFUSAL = re.compile(r"([a-z-]{1,40})/([a-z_]{1,40})")
_RUN = re.compile(r"(?:run|job)_[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """`line`: the access log's fields. `refusal`: (plugin, reason) where the gateway itself answered with an error."""

    line: dict[str, Any]
    status: str
    method: str
    route: str
    seconds: float
    tier: str
    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: float
    refusal: tuple[str, str] | None


def attestation_of(serialized: Mapping[str, Any]) -> str:
    """The attestation header of a serialized request; it goes nowhere else."""
    value = _headers(serialized, "request").get(ATTESTATION, "")
    return value if isinstance(value, str) else ""


def entry(serialized: Mapping[str, Any], attested: Attested | None) -> Entry:
    """Reads what `kong.log.serialize` returns (Kong 3.9, kong/pdk/log.lua). Absent parts become empty values."""
    request, response = _map(serialized, "request"), _map(serialized, "response")
    asked, answered = _headers(serialized, "request"), _headers(serialized, "response")
    latencies = _map(serialized, "latencies")
    status = response.get("status")
    route = _map(serialized, "route")
    method = request.get("method") if request.get("method") in METHODS else "other"
    path = str(request.get("uri") or "").partition("?")[0]
    upstream = serialized.get("source") == "upstream"
    # Only the service's own headers count: what a plugin answers has no run behind it.
    model = clean(answered.get("x-claude-model"), 100) if upstream else ""
    tokens_in = int(_number(answered.get("x-claude-input-tokens"))) if upstream else 0
    tokens_out = int(_number(answered.get("x-claude-output-tokens"))) if upstream else 0
    cost = _number(answered.get("x-claude-cost-usd")) if upstream else 0.0
    run = _RUN.fullmatch(str(answered.get("x-claude-run") or "")) if upstream else None
    started = _number(serialized.get("started_at")) / 1000
    seconds = _number(latencies.get("request")) / 1000
    refusal = None if upstream else _refusal(answered.get("x-claude-refusal"), status)
    known = isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 599
    route_name = clean(route.get("name") or route.get("id"), 100)
    repository = _REPOSITORY_PATH.search(path)
    named = str(asked.get("x-repo") or "")
    trace = _TRACEPARENT.fullmatch(str(asked.get("traceparent") or ""))
    line = {
        "time_local": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(started + seconds)),
        "time": round(started + seconds, 3),
        "remote_addr": clean(serialized.get("client_ip"), 64),
        "request": f"{method} {clean(path)}",
        "status": status if known else 0,
        "body_bytes_sent": int(_number(response.get("size"))),
        "request_time": round(seconds, 3),
        "http_referer": clean(str(asked.get("referer") or "").partition("?")[0]),
        "http_user_agent": clean(asked.get("user-agent")),
        "request_id": clean(asked.get("x-request-id") or request.get("id"), 128),
        "subject": clean(attested.subject, 256) if attested else "",
        "tier": clean(attested.tier, 64) if attested else "",
        "team": clean(attested.team, 128) if attested else "",
        "route": route_name,
        "repository": repository[1] if repository else named if _REPOSITORY.fullmatch(named) else "",
        "model": model,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "cost_usd": cost,
        "run_id": run[0] if run else "",
        "refusal": "/".join(refusal) if refusal else "",
        "upstream_latency": max(0.0, _number(latencies.get("proxy")) / 1000) if upstream else 0.0,
        "trace_id": trace[1] if trace else "",
    }
    return Entry(
        line=line,
        status=str(status) if known else "other",
        method=str(method),
        route=route_name,
        seconds=seconds,
        tier=str(line["tier"]),
        model=model,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=cost,
        refusal=refusal,
    )


def clean(value: Any, limit: int = MAX_TEXT) -> str:
    """Text that a log may hold: no secrets, bounded, and (bytes that are no UTF-8 included) always encodable."""
    if isinstance(value, list):
        value = value[0] if value else ""
    text = "" if value is None else str(value)
    text = text[: 4 * limit]
    if not text.isascii():
        # Bytes that are no UTF-8 came as escaped surrogates; any other lone surrogate cannot be encoded at all.
        text = re.sub("[\ud800-\udbff\udc00-\udc7f\udd00-\udfff]", "?", text)
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _SECRET.sub("[redacted]", text)[:limit]


def render(line: Mapping[str, Any]) -> bytes:
    """One line of ASCII JSON: newlines, escapes of terminals and everything else beyond ASCII come out escaped."""
    return json.dumps(line, separators=(",", ":")).replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _refusal(header: Any, status: Any) -> tuple[str, str] | None:
    found = _REFUSAL.fullmatch(header) if isinstance(header, str) else None
    if found:
        return found[1], found[2]
    # Kong itself: the guard, no route, an upstream that is away. 499 is a client that left, no refusal.
    return ("kong", str(status)) if isinstance(status, int) and 400 <= status <= 599 and status != 499 else None


def _map(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name)
    return value if isinstance(value, Mapping) else {}  # Lua's empty table may come as []


def _headers(serialized: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return _map(_map(serialized, part), "headers")


def _number(value: Any) -> float:
    """A finite number of at least zero; 0 for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if 0 <= number < 1e15 else 0.0
