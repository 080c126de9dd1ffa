"""minikong as a whole: the gateway, its listeners and its Admin API in the running event loop."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Mapping

from minikong.admin import Admin
from minikong.conf import KongConf
from minikong.context import Context, Headers, Response
from minikong.gateway import Gateway
from minikong.http.exchange import ClientExchange
from minikong.http.listener import Edge
from minikong.http.seam import Exchange

GRACE = 10.0  # seconds that the workers before a reload go on serving, with their own plugin servers


class Generations:
    """The gateway as the edge sees it (seam.Gateway). After a reload old and new serve side by side, as in Kong."""

    def __init__(self, current: Gateway) -> None:
        self.current = current
        self.leaving: Gateway | None = None

    async def handle(self, ctx: Context, exchange: Exchange) -> None:
        gateway = self.current
        if self.leaving is not None and random.random() < 0.5:  # noqa: S311 -- which worker accepts is chance
            gateway = self.leaving
        gateway.active += 1
        try:
            await gateway.handle(ctx, exchange)
        finally:
            gateway.active -= 1

    async def refused(self, ctx: Context) -> None:
        await self.current.refused(ctx)

    def header_filter(self, ctx: Context) -> None:
        gateway: Gateway = ctx.gateway or self.current
        gateway.header_filter(ctx)

    def body_filter(self, ctx: Context, chunk: bytes, *, is_last: bool) -> bytes | None:
        gateway: Gateway = ctx.gateway or self.current
        return gateway.body_filter(ctx, chunk, is_last=is_last)

    async def certificate(self, sni: str | None, client: tuple[str, int], server: tuple[str, int]) -> bool:
        return await self.current.certificate(sni, client, server)


class App:
    """A running minikong; made by `start`."""

    def __init__(self, conf: KongConf, gateway: Gateway) -> None:
        self.conf = conf
        self._generations = Generations(gateway)
        self._farewells: set[asyncio.Task[None]] = set()
        self.edge = Edge(conf, self._generations)
        gateway.edge = self.edge
        self.admin = Admin(gateway.schema, gateway.config, gateway.set_config, gateway.environ, conf.settings)
        self.proxy_addresses: list[tuple[str, int]] = []  # as bound, in the order of `proxy_listen`
        self.admin_addresses: list[tuple[str, int]] = []

    @property
    def gateway(self) -> Gateway:
        return self._generations.current

    async def reload(self, conf: KongConf | None = None) -> None:
        """`kong reload`: new gateway and plugin servers; the old ones serve with them for GRACE seconds, then stop.

        Listeners stay as they are. A config that came by `POST /config` is kept.

        Raises:
            What `start` raises for plugins and config; the old gateway then stays.
        """
        old = self.gateway
        fresh = await asyncio.to_thread(Gateway, conf or self.conf, old.environ)
        fresh.set_config(copy.deepcopy(old.config))
        fresh.load()
        fresh.edge = self.edge
        fresh.start_servers()
        self.admin = Admin(fresh.schema, fresh.config, fresh.set_config, fresh.environ, fresh.conf.settings)
        before, self._generations.leaving = self._generations.leaving, old
        self._generations.current = fresh
        if before is not None:
            self._bid_farewell(before, 0)
        self._bid_farewell(old, GRACE)

    def _bid_farewell(self, gateway: Gateway, after: float) -> None:
        async def leave() -> None:
            try:
                await asyncio.sleep(after)
            finally:
                if self._generations.leaving is gateway:
                    self._generations.leaving = None
                for _ in range(100):  # what it has begun it finishes
                    if not gateway.busy:
                        break
                    await asyncio.sleep(0.05)
                await gateway.stop()

        task = asyncio.get_running_loop().create_task(leave())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _listen(self) -> None:
        for listen in self.conf.proxy_listen:
            self.proxy_addresses.append(await self.edge.listen(listen, self._generations.handle))
        for listen in self.conf.admin_listen:
            self.admin_addresses.append(await self.edge.listen(listen, self._admin))

    async def _admin(self, ctx: Context, exchange: ClientExchange) -> None:
        request = ctx.request
        ctx.collected = []  # no plugin sees the Admin API
        ctx.gateway = self.gateway
        body = await request.body.read()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers.lines}
        target = request.target.decode("utf-8", "surrogateescape")
        status, lines, content = self.admin.handle(request.method, target, body, headers)
        encoded = Headers([(name.encode(), value.encode()) for name, value in lines])
        ctx.response = Response(status, encoded, "exit", content)
        await exchange.respond(ctx)

    async def stop(self) -> None:
        """Closes listeners and connections, stops the plugin servers."""
        await self.edge.close()
        for task in list(self._farewells):
            task.cancel()
        await asyncio.gather(self.gateway.stop(), *self._farewells, return_exceptions=True)


async def start(conf: KongConf, environ: Mapping[str, str] | None = None) -> App:
    """Queries the plugin servers, loads the declarative config, listens, starts the plugin servers.

    Raises:
        pluginserver.StartError, schema.metaschema.BadSchema: Kong would not start with these plugins.
        declarative.DeclarativeError: nor with this config.
        OSError: a port is taken, a file cannot be read.
    """
    gateway = Gateway(conf, environ)
    gateway.load()
    app = App(conf, gateway)
    try:
        await app._listen()
        gateway.start_servers()
    except BaseException:
        await app.stop()
        raise
    return app
