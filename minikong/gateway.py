"""The gateway: one request through Kong's phases, in Kong's order (kong/init.lua, kong/runloop/handler.lua).

The seam with the HTTP edge is `minikong.http.seam`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import ipaddress
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from minikong import balancer, bundled, declarative, precedence, uri
from minikong.bundled import BUNDLED
from minikong.conf import KongConf
from minikong.context import Context, Headers, Request, Response, Upstream
from minikong.entities import Config, PluginEntity
from minikong.external import ExternalPlugin, Instances, PluginInfo
from minikong.http.forwarded import forwarded
from minikong.http.seam import ClientGone, HttpError
from minikong.lua import Runtime
from minikong.luavalue import LuaError
from minikong.pdk import Exit
from minikong.pdk.response import error_exit, send
from minikong.pluginserver import Process, StartError, check_plugin, query
from minikong.router import Match, Router
from minikong.rpc import Pool

if TYPE_CHECKING:
    from minikong.http.forwarded import forwarded
    from minikong.http.listener import Edge
from minikong.http.seam import Exchange

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO + 5,
    "warn": logging.WARNING,
    "err": logging.ERROR,
    "crit": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emerg": logging.CRITICAL,
}
logging.addLevelName(LEVELS["notice"], "NOTICE")
_log = logging.getLogger("minikong")


class Handler(Protocol):
    """A plugin's code: external, bundled or Lua."""

    name: str
    priority: int
    version: str
    phases: frozenset[str]

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        """Runs one phase. Raises Exit and LuaError."""


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


class State:
    """What one declarative config makes of the plugins: router, precedence, who runs in which phase."""

    def __init__(self, config: Config, handlers: Mapping[str, Handler]) -> None:
        self.config = config
        self.router = Router(config)
        self.precedence = precedence.Precedence(config)
        names = {n: handlers[n].priority for n in self.precedence.names if n in handlers}
        order = precedence.by_priority(names)
        self.handlers = [handlers[name] for name in order]
        self.globals = [(handlers[entity.name], entity) for entity in self.precedence.global_entities(order)]
        self._plans: dict[tuple[str | None, str | None, str | None], list[tuple[int, Handler, PluginEntity]]] = {}

    def plan(
        self, route: str | None, service: str | None, consumer: str | None
    ) -> list[tuple[int, Handler, PluginEntity]]:
        """(position in the order, handler, configuration) of the plugins that apply."""
        key = (route, service, consumer)
        found = self._plans.get(key)
        if found is None:
            found = []
            for position, handler in enumerate(self.handlers):
                entity = self.precedence.lookup(handler.name, route, service, consumer)
                if entity is not None:
                    found.append((position, handler, entity))
            if len(self._plans) < 10_000:
                self._plans[key] = found
        return found


class Gateway:
    """One Kong worker: configuration, plugins, plugin servers and the way of a request."""

    def __init__(self, conf: KongConf, environ: Mapping[str, str] | None = None) -> None:
        self.conf = conf
        self.environ = os.environ if environ is None else environ
        self.node_id = uuid.uuid4()
        self.pid = os.getpid()
        self.edge: Edge | None = None
        self.instances = Instances()
        self.pools: dict[str, Pool] = {}
        self.processes: list[Process] = []
        self.requests = 0
        self.active = 0  # requests under way
        self._log_tasks: set[asyncio.Task[None]] = set()
        self._resolver = balancer.Resolver(balancer.read_hosts(conf.dns_hostsfile))
        self.level = LEVELS.get(conf.log_level, logging.ERROR)
        self.lua = Runtime(self)
        with ThreadPoolExecutor() as threads:  # each query starts a process; they do not depend on each other
            infos = {info.name: info for info in threads.map(query, conf.pluginservers)}
        self.handlers = self._load_handlers(infos)
        self.schema = self._load_schema(infos)
        self.config = Config()
        self.state = State(self.config, self.handlers)

    # start and stop

    def _load_handlers(self, infos: Mapping[str, PluginInfo]) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {}
        wanted = self.conf.plugins
        for name in sorted(wanted - {"bundled", "off"}):
            if name not in infos and name not in BUNDLED:
                raise StartError(
                    f"error loading plugin schemas: on plugin '{name}': {name} plugin is enabled but not installed;"
                    "\nno plugin found"
                )
        if "bundled" in wanted:
            wanted = wanted | BUNDLED.keys()
        servers = dict(zip(infos, self.conf.pluginservers, strict=False))
        for name, info in infos.items():
            if name not in wanted:
                continue
            check_plugin(info)
            path = servers[name].socket
            pool = self.pools.setdefault(path, Pool(path, connect_timeout=self.conf.lua_socket_connect_timeout))
            handlers[name] = ExternalPlugin(
                info, pool, self.instances, self.conf.lua_socket_read_timeout, self._namespaced(name)
            )
        for name, make in BUNDLED.items():
            if name in wanted and name not in handlers:
                handlers[name] = make(self)
        return handlers

    def _load_schema(self, infos: Mapping[str, PluginInfo]) -> declarative.Schema:
        schemas = {name: schema for name, schema in bundled.schemas(self).items() if name in self.handlers}
        for name, info in infos.items():
            if name in self.handlers:
                if not isinstance(info.schema, dict):
                    raise StartError("expected an input table")
                schemas[name] = info.schema
        return declarative.Schema(schemas)

    def load(self) -> None:
        """Loads the declarative config that kong.conf names, if it names one.

        Raises:
            declarative.DeclarativeError, OSError: from the config file.
        """
        conf = self.conf
        if conf.declarative_config_string:
            self.set_config(declarative.load(conf.declarative_config_string, self.schema, None, self.environ))
        elif conf.declarative_config:
            with open(conf.declarative_config, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
            self.set_config(declarative.load(text, self.schema, conf.declarative_config, self.environ))

    def start_servers(self) -> None:
        """Starts the plugin servers that have a start command."""
        for server in self.conf.pluginservers:
            if server.start_command:
                process = Process(server, self.log)
                process.start()
                self.processes.append(process)

    async def stop(self) -> None:
        for task in list(self._log_tasks):
            task.cancel()
        await asyncio.gather(*self._log_tasks, *(p.stop() for p in self.processes), return_exceptions=True)
        for pool in self.pools.values():
            pool.close()

    @property
    def busy(self) -> bool:
        """Requests or log events are under way."""
        return self.active > 0 or bool(self._log_tasks)

    def set_config(self, config: Config) -> None:
        """Takes a new declarative config; requests under way keep the old one's plugins."""
        self.config = config
        self.state = State(config, self.handlers)

    # logging

    def log(self, level: str, text: str) -> None:
        number = LEVELS[level]
        if number >= self.level:
            _log.log(number, "[kong] %s", text)

    def _namespaced(self, name: str) -> Any:
        def log(level: str, text: str) -> None:
            self.log(level, f"[{name}] {text}")

        return log

    def plugin_log(self, ctx: Context, level: str, text: str) -> None:
        """A line of kong.log.* in the plugin's name."""
        self.log(level, f"[{ctx.plugin.name if ctx.plugin else 'core'}] {text}")

    def statistics(self) -> dict[bytes, int]:
        active = self.edge.open_connections if self.edge is not None else 0
        return {
            b"connections_active": active,
            b"connections_reading": 0,
            b"connections_writing": active,
            b"connections_waiting": 0,
            b"connections_accepted": self.requests,
            b"connections_handled": self.requests,
            b"total_requests": self.requests,
        }

    # the way of a request

    async def handle(self, ctx: Context, exchange: Exchange) -> None:
        """Rewrite, access, service or answer, log (seam.Gateway)."""
        self.requests += 1
        ctx.gateway = self
        state = self.state
        try:
            await self._until_answer(ctx, state, exchange)
        except Exit as exit_:  # outside access an exit answers at once
            self._answer(ctx, exit_)
            await exchange.respond(ctx)
        except LuaError as error:
            self.log("err", f"lua entry thread aborted: runtime error: {error.message}")
            self._nginx_error(ctx, 500)
            await exchange.respond(ctx)
        except HttpError as error:  # the client's body, read for a plugin
            self._nginx_error(ctx, error.status)
            await exchange.respond(ctx)
        except ClientGone as gone:
            ctx.client_gone = True
            ctx.response = Response(gone.status, Headers(list(ctx.added_response_headers.lines)), "service")
            await exchange.respond(ctx)
        await self._log_phase(ctx, state)

    async def _until_answer(self, ctx: Context, state: State, exchange: Exchange) -> None:
        ctx.phase = "rewrite"
        for handler, entity in state.globals:
            if "rewrite" in handler.phases:
                await self._run(handler, "rewrite", entity, ctx)
        ctx.phase = "access"
        self._route(ctx, state)
        delayed = await self._access(ctx, state)
        if delayed is not None:
            ctx.buffered = False
            self._answer(ctx, delayed)
            await exchange.respond(ctx)
            return
        if ctx.service is None:
            ctx.buffered = False
            raise self._error(ctx, 503, b"no Service found with those values")
        await self._balance(ctx)
        if not ctx.buffered or _upgrades(ctx.request):
            ctx.buffered = False
            await exchange.proxy(ctx)
            return
        if await exchange.fetch(ctx):
            ctx.phase = "response"
            await self._response_phase(ctx)
            await exchange.respond(ctx)

    async def _run(self, handler: Handler, phase: str, entity: PluginEntity, ctx: Context) -> None:
        ctx.plugin = entity
        try:
            await handler.run(phase, entity, ctx)
        finally:
            ctx.plugin = None

    async def _access(self, ctx: Context, state: State) -> Exit | None:
        """The access phase; the answer that a plugin gave, if one did. All applying plugins are collected."""
        ctx.collected = collected = []
        ctx.delay_response = True
        delayed: Exit | None = None
        route_id = ctx.route.id if ctx.route else None
        service_id = ctx.service.id if ctx.service else None
        consumer_id = None
        plan = state.plan(route_id, service_id, None)
        index = 0
        while index < len(plan):
            position, handler, entity = plan[index]
            index += 1
            phases = handler.phases
            collected.append((entity, handler))
            if "response" in phases:
                ctx.buffered = True
            if delayed is not None or "access" not in phases:
                continue
            ctx.plugin = entity
            try:
                await handler.run("access", entity, ctx)
            except Exit as exit_:
                delayed = exit_
            except LuaError as error:
                self.plugin_log(ctx, "err", error.message)
                delayed = error_exit(ctx, 500, b"An unexpected error occurred", {})
                ctx.unexpected = ctx.exited = True
            ctx.plugin = None
            if ctx.consumer is not None and _consumer_id(ctx) != consumer_id:
                consumer_id = _consumer_id(ctx)
                plan = state.plan(route_id, service_id, consumer_id)
                index = next((i for i, (p, _, _) in enumerate(plan) if p > position), len(plan))
        ctx.delay_response = False
        return delayed

    def _answer(self, ctx: Context, exit_: Exit) -> None:
        """Makes `ctx.response` from an exit; an answer that cannot be encoded is nginx's 500."""
        try:
            send(ctx, exit_)
        except LuaError as error:
            self.log("err", f"lua entry thread aborted: runtime error: {error.message}")
            self._nginx_error(ctx, 500)
            return
        assert ctx.response is not None
        ctx.response.nginx_page = exit_.body is None and ctx.response.status >= 300

    def _nginx_error(self, ctx: Context, status: int) -> None:
        ctx.unexpected = True
        kept = ctx.response.headers if ctx.response is not None else ctx.added_response_headers
        ctx.response = Response(status, Headers(list(kept.lines)), "error", nginx_page=True)

    def _error(self, ctx: Context, status: int, message: bytes, headers: dict[bytes, bytes] | None = None) -> Exit:
        ctx.exited = True
        return error_exit(ctx, status, message, dict(headers or {}))

    # routing and balancing

    def _route(self, ctx: Context, state: State) -> None:
        request = ctx.request
        host = request.headers.get(b"host")
        match = state.router.match(
            request.method,
            request.target,
            None if host is None else host.decode("utf-8", "surrogateescape"),
            request.scheme,
            request.sni,
            _LazyHeaders(request.headers),
        )
        if match is None:
            raise self._error(ctx, 404, b"no Route matched with those values")
        self._take_route(ctx, match)

    def _take_route(self, ctx: Context, match: Match) -> None:
        from minikong.pdk.request import get_forwarded_host, get_forwarded_scheme, request_uri

        route, service = match.route, match.service
        forwarded_prefix = None
        if self.conf.trusted_ips:
            from minikong.pdk.ip import is_trusted
            from minikong.pdk.request import get_header_value

            if is_trusted(ctx, ctx.request.client_addr[0]):
                forwarded_prefix = get_header_value(ctx, b"X-Forwarded-Prefix")
        if forwarded_prefix is None and match.prefix is not None and match.prefix != "/":
            forwarded_prefix = match.prefix.encode("utf-8", "surrogateescape")
        protocols = route.protocols
        if "https" in protocols and "http" not in protocols and get_forwarded_scheme(ctx) != b"https":
            self._redirect_to_https(ctx, route.https_redirect_status_code, get_forwarded_host(ctx), request_uri(ctx))
        ctx.route, ctx.service = route, service
        ctx.uri_captures = match.captures
        ctx.forwarded_prefix = forwarded_prefix
        ctx.forwarded = forwarded(ctx, self.conf)  # before plugins change what they are made of
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

    def _redirect_to_https(self, ctx: Context, status: int, host: bytes, target: bytes) -> None:
        if status == 426:
            headers = {b"Connection": b"Upgrade", b"Upgrade": b"TLS/1.2, HTTP/1.1"}
            raise self._error(ctx, 426, b"Please use HTTPS protocol", headers)
        ctx.added_response_headers.set(b"Location", b"https://" + host + target)
        ctx.exited = True
        raise Exit(status, None, None)

    async def _balance(self, ctx: Context) -> None:
        """balancer.execute and set_host_header: from the name in `ctx.upstream` to an address and a Host."""
        upstream, service = ctx.upstream, ctx.service
        assert upstream is not None and service is not None
        if ctx.args or ctx.request.target.endswith(b"?"):
            upstream.query = ctx.args
        upstream.method = ctx.request.method
        name = upstream.host
        host_header: str | None = None
        if not _is_ip(service.host):
            entity = self.config.upstreams.get(name)
            if entity is not None:
                target = self._resolver.pick(entity)
                if target is None:
                    raise self._error(ctx, 503, b"failure to get a peer from the ring-balancer")
                host_header = entity.host_header
                name, upstream.port = target
            address = name if _is_ip(name) else await self._resolver.resolve(name, upstream.port)
            if address is None:
                raise self._error(ctx, 503, b"name resolution failed")
            upstream.host = address
        elif not _is_ip(name):
            self.log("err", f"failed to set the current peer (address: {name} port: {upstream.port})")
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

    # after the service

    async def _response_phase(self, ctx: Context) -> None:
        response = ctx.response
        assert response is not None
        added = len(ctx.added_response_headers.lines)
        passed = response.headers.lines[added:]
        ctx.service_response = Response(response.status, Headers(list(passed)), "service", response.body)
        merged = Headers(list(response.headers.lines[:added]))
        names = []
        for name, _ in passed:
            if name.lower() not in names:
                names.append(name.lower())
                merged.set(name, *(v for n, v in passed if n.lower() == name.lower()))
        response.headers = merged
        for entity, handler in ctx.collected or ():
            if "response" in handler.phases:
                await self._run(handler, "response", entity, ctx)

    async def refused(self, ctx: Context) -> None:
        """The log phase of a request that nginx refused itself (seam.Gateway)."""
        self.requests += 1
        ctx.gateway = self
        await self._log_phase(ctx, self.state)

    def header_filter(self, ctx: Context) -> None:
        """Runs the plugins that have a header_filter (seam.Gateway). External plugins have none."""
        phase, ctx.phase = ctx.phase, "header_filter"
        if ctx.gateway is None:
            ctx.gateway = self
        for entity, handler in self._downstream(ctx, self.state):
            if "header_filter" in handler.phases and hasattr(handler, "header_filter"):
                ctx.plugin = entity
                try:
                    handler.header_filter(entity, ctx)
                except LuaError as error:  # nginx then ends the connection without an answer
                    self.log("err", f"failed to run header_filter_by_lua*: {error.message}")
                    assert ctx.response is not None
                    ctx.response.close_silently = True
                ctx.plugin = None
        ctx.phase = phase

    def _downstream(self, ctx: Context, state: State) -> list[tuple[PluginEntity, Any]]:
        """The plugins of header_filter and log: those the access phase collected, else the global ones."""
        if ctx.collected is not None:
            return ctx.collected
        return [(entity, handler) for handler, entity in state.globals]

    async def _log_phase(self, ctx: Context, state: State) -> None:
        """Lua plugins run now; an external plugin's event is sent from a timer, with a copy of the context."""
        ctx.phase = "log"
        for entity, handler in self._downstream(ctx, state):
            if "log" not in handler.phases:
                continue
            if isinstance(handler, ExternalPlugin):
                saved = copy.copy(ctx)
                saved.in_timer = True
                saved.plugin = entity
                saved.nginx_ctx = dict(ctx.nginx_ctx)
                task = asyncio.get_running_loop().create_task(self._log_event(handler, entity, saved))
                self._log_tasks.add(task)
                task.add_done_callback(self._log_tasks.discard)
                continue
            try:
                await self._run(handler, "log", entity, ctx)
            except LuaError as error:
                self.log("err", f"failed to run log_by_lua*: {error.message}")
            except Exit:
                pass

    async def _log_event(self, handler: ExternalPlugin, entity: PluginEntity, ctx: Context) -> None:
        try:
            await handler.run("log", entity, ctx)
        except LuaError as error:
            self.log("err", f"[{handler.name}] lua entry thread aborted: runtime error: {error.message}")

    async def certificate(self, sni: str | None, client: tuple[str, int], server: tuple[str, int]) -> bool:
        """The certificate phase of the global plugins; False: the handshake fails (seam.Gateway)."""
        state = self.state
        ctx: Context | None = None
        for handler, entity in state.globals:
            if "certificate" not in handler.phases:
                continue
            if ctx is None:
                body: Any = None
                request = Request("GET", b"/", (1, 1), Headers(), body, "https", client, server, sni=sni)
                ctx = Context(request=request, phase="certificate", gateway=self, in_timer=True)
            try:
                await self._run(handler, "certificate", entity, ctx)
            except (LuaError, Exit) as error:
                self.log("err", f"[{handler.name}] certificate phase: {error}")
                return False
        return True


def _consumer_id(ctx: Context) -> str | None:
    consumer: Any = ctx.consumer
    if consumer is None:
        return None
    if isinstance(consumer, dict):
        identifier = consumer.get(b"id", consumer.get("id"))
        return identifier.decode("utf-8", "replace") if isinstance(identifier, bytes) else identifier
    return getattr(consumer, "id", None)


def _upgrades(request: Request) -> bool:
    value = request.headers.get(b"upgrade")
    return value is not None and value.lower() == b"websocket"


@functools.lru_cache(1024)
def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
