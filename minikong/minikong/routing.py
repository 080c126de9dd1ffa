"""From the request to its route and to an address of its service (kong/runloop/handler.lua, balancer)."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from minikong import uri
from minikong.context import Context, Headers, Upstream
from minikong.http.forwarded import forwarded
from minikong.http.seam import HttpError
from minikong.pdk import Exit
from minikong.pdk.ip import is_trusted
from minikong.pdk.request import get_forwarded_host, get_forwarded_scheme, get_header_value, request_uri
from minikong.pdk.response import error_exit
from minikong.router import Match, Router

if TYPE_CHECKING:
    from minikong.gateway import Gateway


class _LazyHeaders(Mapping[str, list[str]]):
    """Header values by lower-case name, for the few routes that match on headers."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> list[str]:
        found = self._headers.all(name.encode("latin-1"))
        if not found:
            raise KeyError(name)
        return [value.decode("utf-8", "surrogateescape") for value in found]

    def __iter__(self) -> Iterator[str]:
        return iter({name.decode("latin-1").lower() for name, _ in self._headers.lines})

    def __len__(self) -> int:
        return len(self._headers.lines)


def error(ctx: Context, status: int, message: bytes, headers: dict[bytes, bytes] | None = None) -> Exit:
    """kong.response.error of Kong's own."""
    ctx.exited = True
    return error_exit(ctx, status, message, dict(headers or {}))


def find_route(gateway: Gateway, ctx: Context, router: Router) -> None:
    """Routes the request and prepares what goes to the service. Raises Exit (404, 426, 30x)."""
    request = ctx.request
    host = request.headers.get(b"host")
    match = router.match(
        request.method,
        request.target,
        None if host is None else host.decode("utf-8", "surrogateescape"),
        request.scheme,
        request.sni,
        _LazyHeaders(request.headers),
    )
    if match is None:
        raise error(ctx, 404, b"no Route matched with those values")
    _take_route(gateway, ctx, match)


def _take_route(gateway: Gateway, ctx: Context, match: Match) -> None:
    route, service = match.route, match.service
    forwarded_prefix = None
    if gateway.conf.trusted_ips and is_trusted(ctx, ctx.request.client_addr[0]):
        forwarded_prefix = get_header_value(ctx, b"X-Forwarded-Prefix")
    if forwarded_prefix is None and match.prefix is not None and match.prefix != "/":
        forwarded_prefix = match.prefix.encode("utf-8", "surrogateescape")
    protocols = route.protocols
    if "https" in protocols and "http" not in protocols and get_forwarded_scheme(ctx) != b"https":
        _redirect_to_https(ctx, route.https_redirect_status_code, get_forwarded_host(ctx), request_uri(ctx))
    ctx.route, ctx.service = route, service
    ctx.uri_captures, ctx.matched_by = match.captures, match.by
    ctx.forwarded_prefix = forwarded_prefix
    ctx.forwarded = forwarded(ctx, gateway.conf)  # before plugins change what they are made of
    if match.upstream_host:
        ctx.upstream_host = match.upstream_host.encode("utf-8", "surrogateescape")
    path = (match.upstream_path or "/").encode("utf-8", "surrogateescape")
    ctx.upstream = Upstream(
        scheme=service.protocol if service else ctx.request.scheme,
        host=service.host if service else "",
        port=service.port if service else 0,
        method=ctx.request.method,
        path=uri.escape(path),
        query=None,
        host_header=b"",
    )
    if service is not None:
        ctx.upstream.connect_timeout = (service.connect_timeout or 60000) / 1000
        ctx.upstream.send_timeout = (service.write_timeout or 60000) / 1000
        ctx.upstream.read_timeout = (service.read_timeout or 60000) / 1000
        ctx.upstream.retries = 5 if service.retries is None else service.retries


def _redirect_to_https(ctx: Context, status: int, host: bytes, target: bytes) -> None:
    if status == 426:
        headers = {b"Connection": b"Upgrade", b"Upgrade": b"TLS/1.2, HTTP/1.1"}
        raise error(ctx, 426, b"Please use HTTPS protocol", headers)
    ctx.added_response_headers.set(b"Location", b"https://" + host + target)
    ctx.exited = True
    raise Exit(status, None, None)


async def balance(gateway: Gateway, ctx: Context) -> None:
    """balancer.execute and set_host_header: from the name in `ctx.upstream` to an address and a Host.

    Raises Exit (503), HttpError.
    """
    upstream, service = ctx.upstream, ctx.service
    assert upstream is not None and service is not None
    if ctx.args or ctx.request.target.endswith(b"?"):
        upstream.query = ctx.args
    upstream.method = ctx.request.method
    name = upstream.host
    host_header: str | None = None
    if not _is_ip(service.host):
        entity = gateway.config.upstreams.get(name)
        if entity is not None:
            target = gateway.resolver.pick(entity)
            if target is None:
                raise error(ctx, 503, b"failure to get a peer from the ring-balancer")
            host_header = entity.host_header
            name, upstream.port = target
        address = name if _is_ip(name) else await gateway.resolver.resolve(name, upstream.port)
        if address is None:
            raise error(ctx, 503, b"name resolution failed")
        upstream.host = address
    elif not _is_ip(name):
        gateway.log("err", f"failed to set the current peer (address: {name} port: {upstream.port})")
        ctx.proxied = True
        raise HttpError(500)
    upstream.host = upstream.host.strip("[]")
    if ctx.upstream_host:
        upstream.host_header = ctx.upstream_host
        return
    default = 443 if upstream.scheme == "https" else 80
    shown = host_header or name
    if upstream.port != default:
        shown = f"{shown}:{upstream.port}"
    upstream.host_header = shown.encode("utf-8", "surrogateescape")


@functools.lru_cache(1024)
def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
