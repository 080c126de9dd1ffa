"""One request on its way through the gateway: what nginx and `ngx.ctx` hold in Kong.

The HTTP edge (`minikong.http`) makes a `Request`, the phases (`minikong.phases`) and the PDK
(`minikong.pdk`) read and change the `Context`, the proxy sends what `Context.upstream` says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minikong.entities import Consumer, PluginEntity, Route, Service


class Headers:
    """An ordered multi-map of header lines that keeps case and order as on the wire.

    Names and values are `bytes`; look-up ignores case (and, where asked, `_` for `-` as nginx does).
    """

    __slots__ = ("lines",)

    def __init__(self, lines: list[tuple[bytes, bytes]] | None = None) -> None:
        self.lines: list[tuple[bytes, bytes]] = lines or []

    def get(self, name: bytes) -> bytes | None:
        """The first value of `name`, or None."""
        low, size = name.lower(), len(name)
        for line in self.lines:
            if len(line[0]) == size and line[0].lower() == low:
                return line[1]
        return None

    def all(self, name: bytes) -> list[bytes]:
        low, size = name.lower(), len(name)
        return [v for n, v in self.lines if len(n) == size and n.lower() == low]

    def remove(self, name: bytes) -> None:
        low, size = name.lower(), len(name)
        self.lines = [line for line in self.lines if len(line[0]) != size or line[0].lower() != low]

    def set(self, name: bytes, *values: bytes) -> None:
        """Replaces every line of `name` by one line per value, at the place of the first (else at the end)."""
        low, size = name.lower(), len(name)
        same = (i for i, (n, _) in enumerate(self.lines) if len(n) == size and n.lower() == low)
        at = next(same, len(self.lines))
        self.remove(name)
        self.lines[at:at] = [(name, v) for v in values]

    def add(self, name: bytes, value: bytes) -> None:
        self.lines.append((name, value))


class Body(Protocol):
    """The request body, read from the client when somebody first needs it."""

    async def read(self) -> bytes:
        """The whole body (de-chunked). Raises `minikong.http` errors for 400/408/413."""

    @property
    def spilled(self) -> bool:
        """True where nginx would have written it to a temporary file (after `read`)."""


@dataclass(slots=True)
class Request:
    """The client's request as parsed from the wire; PDK setters in `service.request` change `headers` as nginx does."""

    method: str
    target: bytes  # raw request target, e.g. b"/p/a%20b?x=1"
    http_version: tuple[int, int]
    headers: Headers
    body: Body
    scheme: str  # "http" | "https"
    client_addr: tuple[str, int]  # the peer of the TCP connection (nginx $realip_remote_addr)
    server_addr: tuple[str, int]
    remote_addr: tuple[str, int] = ("", 0)  # after real_ip_header from a trusted peer ($remote_addr, $remote_port)
    host: str = ""  # nginx $host: of an absolute target, else of the Host header, else "kong"
    uri: bytes = b"/"  # nginx $uri: decoded, dot segments and double slashes gone
    length: int = 0  # bytes read so far, head and body (nginx $request_length)
    sni: str | None = None
    started: float = field(default_factory=time.time)  # seconds since the epoch
    id: str = ""  # 32 hex digits (nginx $request_id, Kong's request id)


@dataclass(slots=True)
class Upstream:
    """What will be sent to the service; made after routing, changed by `kong.service.*`."""

    scheme: str
    host: str  # address or name to connect to
    port: int
    method: str
    path: bytes  # upstream URI path (escaped), without the query
    query: bytes | None
    host_header: bytes
    body: bytes | None = None  # None: the client's own body is streamed
    connect_timeout: float = 60.0  # seconds
    send_timeout: float = 60.0
    read_timeout: float = 60.0
    retries: int = 5


@dataclass(slots=True)
class Response:
    """What goes to the client. `source` is what `kong.response.get_source` answers."""

    status: int
    headers: Headers
    source: str  # "service" | "exit" | "error"
    body: bytes | None = None  # None: streamed from the upstream
    nginx_page: bool = False  # an `exit` without a body: nginx puts its own page for this status
    close_silently: bool = False  # 444 and its like: no answer, the connection is closed
    content_length: int | None = None  # what nginx knows itself; a Content-Length line in `headers` goes before it


@dataclass(slots=True)
class Context:
    """`ngx.ctx` of one request."""

    request: Request
    route: Route | None = None
    service: Service | None = None
    consumer: Consumer | None = None
    credential: dict[str, Any] | None = None
    upstream: Upstream | None = None
    response: Response | None = None
    phase: str = "rewrite"
    plugin: PluginEntity | None = None  # the plugin whose handler runs now
    chunk: bytes | None = None  # ngx.arg of body_filter: a piece of the answer's body
    is_last: bool = False
    connected: bool = False  # to the service, whatever came of it
    uri_captures: dict[str | int, str] = field(default_factory=dict)
    matched_by: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)  # see `router.Match.by`
    shared: dict[Any, Any] = field(default_factory=dict)  # kong.ctx.shared (may hold lupa objects)
    nginx_ctx: dict[Any, Any] = field(default_factory=dict)  # kong.nginx.get_ctx/set_ctx
    added_response_headers: Headers = field(default_factory=Headers)  # set before the upstream answered
    timings: dict[str, float] = field(default_factory=dict)  # name -> seconds since the epoch
    proxied: bool = False  # KONG_PROXIED: the access phase ended by handing over to the service
    buffered: bool = False  # the service's response is read whole (response phase, enable_buffering)
    upstream_status: int | None = None  # as the service answered, whatever plugins made of it
    tries: list[dict[str, Any]] = field(default_factory=list)  # balancer tries, as kong.log.serialize shows them
    bytes_sent: int = 0  # to the client, head and body
    client_gone: bool = False  # 499: the client went away before the response was complete
    closing: bool = False  # no keep-alive after this response
    proxy_error: int = 0  # 502, 503, 504 when no upstream gave an answer (set by Exchange.proxy)
    args: bytes = b""  # nginx $args: the query string, changed by set_query & Co.
    upstream_host: bytes = b""  # nginx $upstream_host: set by preserve_host, set_target, set_header("host")
    body: bytes | None = None  # a body that replaces the client's (set_raw_body, set_body)
    collected: list[tuple[PluginEntity, Any]] | None = None  # (plugin, handler) for the phases after access
    delay_response: bool = False  # access: `exit` is kept in `response` until all plugins were visited
    exited: bool = False  # kong.response.exit or error was called
    unexpected: bool = False  # a plugin raised, or nginx made the error
    service_response: Response | None = None  # buffered: what the upstream answered
    serialize_values: list[tuple[bytes, Any, bytes]] = field(default_factory=list)
    client_body: bytes | None = None  # the client's body, once somebody has read it
    in_timer: bool = False  # the log phase of an external plugin: nginx's request is gone
    forwarded: list[tuple[bytes, bytes | None]] | None = None  # X-Forwarded-* for the service, set by routing
    forwarded_prefix: bytes | None = b""  # nginx $upstream_x_forwarded_prefix, set by routing
    args_changed: bool = False  # ngx.req.set_uri_args was called
    tls_verify: bool | None = None  # kong.service.set_tls_verify
    gateway: Any = None  # minikong.app.Gateway
    upstream_headers: Headers | None = None  # all header lines of the service's answer ($upstream_http_*)
    gzipped: bool = False  # the response leaves compressed by the edge
