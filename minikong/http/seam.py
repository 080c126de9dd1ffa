"""What the edge (listener, proxy) and the gateway (phases, plugins) ask of each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from minikong.context import Context

ALL_HEADERS = frozenset(
    {
        "server",
        "via",
        "x-kong-proxy-latency",
        "x-kong-response-latency",
        "x-kong-upstream-latency",
        "x-kong-request-id",
    }
)


@dataclass(slots=True)
class HttpSettings:
    """The keys of kong.conf that the edge obeys. Sizes in bytes, times in seconds; defaults are Kong's."""

    headers: frozenset[str] = ALL_HEADERS  # names (lower case) added to responses
    headers_upstream: frozenset[str] = frozenset({"x-kong-request-id"})
    trusted_ips: tuple[IPv4Network | IPv6Network, ...] = ()
    real_ip_header: str = "X-Real-IP"
    real_ip_recursive: bool = False
    error_default_type: str = "text/plain"
    client_max_body_size: int = 0  # 0: no limit
    client_body_buffer_size: int = 8192
    large_client_header_buffers: tuple[int, int] = (4, 8192)
    client_header_buffer_size: int = 1024
    client_header_timeout: float = 60.0
    client_body_timeout: float = 60.0
    send_timeout: float = 60.0
    keepalive_timeout: float = 75.0
    keepalive_requests: int = 1000
    proxy_buffer_size: int = 4096
    upstream_keepalive_pool_size: int = 512
    upstream_keepalive_max_requests: int = 10000
    upstream_keepalive_idle_timeout: float = 60.0
    gzip: bool = False
    gzip_types: frozenset[str] = frozenset({"text/html"})
    gzip_min_length: int = 20
    gzip_proxied: frozenset[str] = frozenset()  # empty: off
    gzip_vary: bool = False
    gzip_comp_level: int = 1
    extra: dict[str, str] = field(default_factory=dict)


class Exchange(Protocol):
    """One request on a client connection; made by the edge, driven by the gateway.

    Exactly one of `respond`, `proxy` ends the exchange. Each calls `Gateway.header_filter` once, right
    before the response head leaves. None of them raises for what client or service do wrong: they answer
    (400/413/502/503/504 with Kong's bodies), or note `ctx.client_gone`.
    """

    async def respond(self, ctx: Context) -> None:
        """Sends `ctx.response`. With `body` None and status >= 300 it is nginx's or Kong's error page
        for that status (ngx.exit); 408, 444, 499 close without an answer. An unread request body is discarded."""

    async def proxy(self, ctx: Context) -> None:
        """Sends the request to `ctx.upstream`, streams the answer to the client. Sets `ctx.proxied`,
        `ctx.response` (source "service", or "error" for 502/504)."""

    async def fetch(self, ctx: Context) -> bool:
        """Buffered proxying: reads the service's whole answer into `ctx.response` (body set) without
        sending it; `respond` sends it after the response phase. False: it failed and the error page is sent."""


class Gateway(Protocol):
    """What the phases and plugins do; made by `minikong.app`."""

    async def handle(self, ctx: Context, exchange: Exchange) -> None:
        """Rewrite, access, then the exchange, then log. `ctx.phase` is kept up to date."""

    def header_filter(self, ctx: Context) -> None:
        """Runs the plugins' header_filter handlers on `ctx.response.headers`; must not raise."""

    async def certificate(self, sni: str | None, client: tuple[str, int], server: tuple[str, int]) -> bool:
        """The certificate phase; False aborts the TLS handshake (internal_error alert)."""
