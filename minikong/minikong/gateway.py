"""The gateway: one request through Kong's phases, in Kong's order (kong/init.lua, kong/runloop/handler.lua).

The seam with the HTTP edge is `minikong.http.seam`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from minikong import balancer, declarative, plugins, routing
from minikong.conf import KongConf
from minikong.context import Context, Headers, Request, Response
from minikong.entities import Config, PluginEntity
from minikong.external import ExternalPlugin, Instances
from minikong.http.seam import ClientGone, HttpError
from minikong.lua import Runtime
from minikong.luavalue import LuaError
from minikong.pdk import Exit
from minikong.pdk.response import error_exit, send
from minikong.plugins import Handler, State
from minikong.pluginserver import Process, query
from minikong.rpc import Pool
from minikong.schema.upstream_fields import makes_checks

if TYPE_CHECKING:
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
        self.resolver = balancer.Resolver(balancer.read_hosts(conf.dns_hostsfile))
        self.level = LEVELS.get(conf.log_level, logging.ERROR)
        self.lua = Runtime(self)
        with ThreadPoolExecutor() as threads:  # each query starts a process; they do not depend on each other
            found = list(zip(conf.pluginservers, threads.map(query, conf.pluginservers), strict=True))
        self.handlers = plugins.load_handlers(self, found)
        self.schema = plugins.load_schema(self, found)
        self.config = Config()
        self.state = State(self.config, self.handlers)

    # start and stop

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
        for upstream in config.upstreams.values():
            if makes_checks(upstream.healthchecks):
                self.log(
                    "warn", f"upstream {upstream.name}: minikong makes no health checks, all its targets are tried"
                )

    # logging

    def log(self, level: str, text: str) -> None:
        number = LEVELS[level]
        if number >= self.level:
            _log.log(number, "[kong] %s", text)

    def namespaced_log(self, name: str) -> Any:
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
        routing.find_route(self, ctx, state.router)
        delayed = await self._access(ctx, state)
        if delayed is not None:
            ctx.buffered = False
            self._answer(ctx, delayed)
            await exchange.respond(ctx)
            return
        if ctx.service is None:
            ctx.buffered = False
            raise routing.error(ctx, 503, b"no Service found with those values")
        await routing.balance(self, ctx)
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

    def body_filter(self, ctx: Context, chunk: bytes, *, is_last: bool) -> bytes | None:
        """Runs the plugins that have a body_filter on a piece (seam.Gateway)."""
        filters = [
            (entity, handler)
            for entity, handler in self._downstream(ctx, self.state)
            if "body_filter" in handler.phases and hasattr(handler, "body_filter")
        ]
        if not filters:
            return chunk
        phase, ctx.phase = ctx.phase, "body_filter"
        ctx.chunk, ctx.is_last = chunk, is_last
        try:
            for entity, handler in filters:
                ctx.plugin = entity
                handler.body_filter(entity, ctx)
            return ctx.chunk or b""
        except (LuaError, Exit) as error:  # nginx then ends the connection
            self.log("err", f"failed to run body_filter_by_lua*: {error}")
            return None
        finally:
            ctx.plugin, ctx.phase = None, phase

    def _downstream(self, ctx: Context, state: State) -> list[tuple[PluginEntity, Any]]:
        """The plugins of header_filter, body_filter and log: those the access phase collected, else the global ones."""
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
                self.log_later(handler, entity, ctx)
                continue
            try:
                await self._run(handler, "log", entity, ctx)
            except LuaError as error:
                self.log("err", f"failed to run log_by_lua*: {error.message}")
            except Exit:
                pass

    def log_later(self, handler: ExternalPlugin, entity: PluginEntity, ctx: Context) -> None:
        """What Kong gives an external plugin for its log phase: a timer."""
        saved = copy.copy(ctx)
        saved.in_timer = True
        saved.plugin = entity
        saved.nginx_ctx = dict(ctx.nginx_ctx)
        task = asyncio.get_running_loop().create_task(self._log_event(handler, entity, saved))
        self._log_tasks.add(task)
        task.add_done_callback(self._log_tasks.discard)

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
