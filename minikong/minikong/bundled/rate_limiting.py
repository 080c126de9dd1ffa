"""rate-limiting with its `local` policy (kong/plugins/rate-limiting/{handler,policies}.lua)."""

from __future__ import annotations

import calendar
import time
from typing import Any

from minikong.bundled.authentication import Denied, refusal
from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.luavalue import tostring
from minikong.pdk.headers import set_response_header
from minikong.pdk.request import get_header_value, get_path
from minikong.pdk.response import headers_out

EXPIRATION = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "month": 2592000, "year": 31536000}


class RateLimiting:
    name = "rate-limiting"
    priority = 910
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self._counters: dict[tuple[str, bytes, str, int], int] = {}

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        now = int(time.time())
        who = _identifier(ctx, conf)
        usage: dict[str, tuple[float, float]] = {}
        stop: str | None = None
        for period in EXPIRATION:
            limit = conf.get(period)
            if limit is None:
                continue
            remaining = limit - self._counters.get((entity.id, who, period, _start(period, now)), 0)
            usage[period] = (limit, remaining)
            if remaining <= 0:
                stop = period
        headers: dict[bytes, bytes] = {}
        reset = 1
        if not conf.get("hide_client_headers"):
            reset = _headers(headers, usage, stop, now)
        if stop:
            if not conf.get("hide_client_headers"):
                headers[b"Retry-After"] = b"%d" % reset
            _apply(ctx, headers)
            raise refusal(ctx, Denied(int(conf["error_code"]), conf["error_message"]))
        _apply(ctx, headers)
        if len(self._counters) > 100_000:
            self._counters = {k: v for k, v in self._counters.items() if k[3] + EXPIRATION[k[2]] > now}
        for period in usage:
            key = (entity.id, who, period, _start(period, now))
            self._counters[key] = self._counters.get(key, 0) + 1


def _identifier(ctx: Context, conf: dict[str, Any]) -> bytes:
    found: Any = None
    match conf["limit_by"]:
        case "service":
            found = ctx.service.id if ctx.service else None
        case "consumer":
            found = getattr(ctx.consumer, "id", None) or getattr(ctx.credential, "id", None)
        case "credential":
            found = getattr(ctx.credential, "id", None)
        case "header":
            found = get_header_value(ctx, conf["header_name"].encode())
        case "path":
            path = get_path(ctx)
            found = path if path.decode("utf-8", "surrogateescape") == conf.get("path") else None
    return tostring(found) if found else ctx.request.remote_addr[0].encode()


def _start(period: str, now: int) -> int:
    """When the calendar window of `period` that holds `now` began, in UTC."""
    if period in ("month", "year"):
        moment = time.gmtime(now)
        month = moment.tm_mon if period == "month" else 1
        return calendar.timegm((moment.tm_year, month, 1, 0, 0, 0))
    return now - now % EXPIRATION[period]


def _headers(headers: dict[bytes, bytes], usage: dict[str, tuple[float, float]], stop: str | None, now: int) -> int:
    """Fills in the X-RateLimit-* and RateLimit-* headers; returns seconds until the tightest window ends."""
    tightest: tuple[float, int, float, int] | None = None  # remaining, -window, limit, reset
    for period, (limit, remaining) in usage.items():
        if stop is None or stop == period:
            remaining -= 1
        remaining = max(0, remaining)
        window = EXPIRATION[period]
        reset = max(1, window - (now - _start(period, now)))
        entry = (remaining, -window, limit, reset)
        if tightest is None or entry < tightest:
            tightest = entry
        headers[f"X-RateLimit-Limit-{period.title()}".encode()] = tostring(limit)
        headers[f"X-RateLimit-Remaining-{period.title()}".encode()] = tostring(remaining)
    if tightest is None:
        return 1
    headers[b"RateLimit-Limit"] = tostring(tightest[2])
    headers[b"RateLimit-Remaining"] = tostring(tightest[0])
    headers[b"RateLimit-Reset"] = b"%d" % tightest[3]
    return tightest[3]


def _apply(ctx: Context, headers: dict[bytes, bytes]) -> None:
    for name, value in headers.items():
        set_response_header(headers_out(ctx), name, value)
