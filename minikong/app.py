"""minikong as a whole: the gateway, its listeners and its Admin API in the running event loop."""

from __future__ import annotations

from collections.abc import Mapping

from minikong.admin import Admin
from minikong.conf import KongConf
from minikong.context import Context, Headers, Response
from minikong.gateway import Gateway
from minikong.http.exchange import ClientExchange
from minikong.http.listener import Edge


class App:
    """A running minikong; made by `start`."""

    def __init__(self, conf: KongConf, gateway: Gateway) -> None:
        self.conf = conf
        self.gateway = gateway
        self.edge = Edge(conf, gateway)
        gateway.edge = self.edge
        self.admin = Admin(gateway.schema, gateway.config, gateway.set_config, gateway.environ)
        self.proxy_addresses: list[tuple[str, int]] = []  # as bound, in the order of `proxy_listen`
        self.admin_addresses: list[tuple[str, int]] = []

    async def _listen(self) -> None:
        for listen in self.conf.proxy_listen:
            self.proxy_addresses.append(await self.edge.listen(listen, self.gateway.handle))
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
        await self.gateway.stop()


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
