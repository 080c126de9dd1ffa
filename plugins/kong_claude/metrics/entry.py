"""One request as the log phase sees it: from Kong's `log.serialize` to what is counted and written. Pure."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct

from kong_claude.in_flight import Attested

_DECODE = msgspec.json.Decoder().decode
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


class Entry(Struct, frozen=True, dict=True):
    """One request. `refusal`: (plugin, reason) where the gateway itself answered with an error.

    Only the service's own headers count for model, tokens, cost and run: what a plugin answers has no run behind it.
    """

    serialized: Mapping[str, Any]  # see `entry`
    attested: Attested | None
    upstream: bool  # the service answered
    status: int  # 0 where it is none
    method: str
    route: str
    seconds: float
    tier: str
    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: float
    refusal: tuple[str, str] | None

    @cached_property
    def line(self) -> dict[str, Any]:
        """The access log's fields."""
        serialized, attested, upstream = self.serialized, self.attested, self.upstream
        request, response = _map(serialized, "request"), _map(serialized, "response")
        asked, answered = _headers(serialized, "request"), _headers(serialized, "response")
        path = str(request.get("uri") or "").partition("?")[0]
        ended = _number(serialized.get("started_at")) / 1000 + self.seconds
        run = _RUN.fullmatch(str(answered.get("x-claude-run") or "")) if upstream else None
        repository = _REPOSITORY_PATH.search(path)
        named = str(asked.get("x-repo") or "")
        trace = _TRACEPARENT.fullmatch(str(asked.get("traceparent") or ""))
        return {
            "time_local": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(ended)),
            "time": round(ended, 3),
            "remote_addr": clean(serialized.get("client_ip"), 64),
            "request": f"{self.method} {clean(path)}",
            "status": self.status,
            "body_bytes_sent": int(_number(response.get("size"))),
            "request_time": round(self.seconds, 3),
            "http_referer": clean(str(asked.get("referer") or "").partition("?")[0]),
            "http_user_agent": clean(asked.get("user-agent")),
            "request_id": clean(asked.get("x-request-id") or request.get("id"), 128),
            "subject": clean(attested.subject, 256) if attested else "",
            "tier": self.tier,
            "team": clean(attested.team, 128) if attested else "",
            "route": self.route,
            "repository": repository[1] if repository else named if _REPOSITORY.fullmatch(named) else "",
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "run_id": run[0] if run else "",
            "refusal": "/".join(self.refusal) if self.refusal else "",
            "upstream_latency": (
                max(0.0, _number(_map(serialized, "latencies").get("proxy")) / 1000) if upstream else 0.0
            ),
            "trace_id": trace[1] if trace else "",
        }


def attestation_of(serialized: Mapping[str, Any]) -> str:
    """The attestation header of a serialized request; it goes nowhere else."""
    value = _headers(serialized, "request").get(ATTESTATION, "")
    return value if isinstance(value, str) else ""


def entry(serialized: Mapping[str, Any], attested: Attested | None) -> Entry:
    """Reads what `kong.log.serialize` returns (Kong 3.9, kong/pdk/log.lua). Absent parts become empty values."""
    request, route = _map(serialized, "request"), _map(serialized, "route")
    status = _map(serialized, "response").get("status")
    known = status if type(status) is int and 100 <= status <= 599 else 0
    answered = _headers(serialized, "response")
    upstream = serialized.get("source") == "upstream"
    return Entry(
        serialized=serialized,
        attested=attested,
        upstream=upstream,
        status=known,
        method=str(request["method"]) if request.get("method") in METHODS else "other",
        route=clean(route.get("name") or route.get("id"), 100),
        seconds=_number(_map(serialized, "latencies").get("request")) / 1000,
        tier=clean(attested.tier, 64) if attested else "",
        model=clean(answered.get("x-claude-model"), 100) if upstream else "",
        input_tokens=int(_number(answered.get("x-claude-input-tokens"))) if upstream else 0,
        output_tokens=int(_number(answered.get("x-claude-output-tokens"))) if upstream else 0,
        cost_usd=_number(answered.get("x-claude-cost-usd")) if upstream else 0.0,
        refusal=None if upstream else _refusal(answered.get("x-claude-refusal"), status),
    )


def parse(text: str) -> Any:
    """The JSON value of what Kong has serialized. Raises ValueError."""
    try:
        return _DECODE(text)
    except (
        msgspec.DecodeError,
        UnicodeError,
        RecursionError,
    ):  # bytes that are no UTF-8, which are passed on as lone surrogates
        return json.loads(text)


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
    return value if isinstance(value, dict) else {}  # Lua's empty table may come as []


def _headers(serialized: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return _map(_map(serialized, part), "headers")


def _number(value: Any) -> float:
    """A finite number of at least zero; 0 for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if 0 <= number < 1e15 else 0.0
