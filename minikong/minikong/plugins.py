"""The plugins of a gateway: their code, their Schemas, and who runs for which route, service and consumer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from minikong import bundled, declarative, precedence
from minikong.bundled import BUNDLED
from minikong.conf import PluginServer
from minikong.context import Context
from minikong.entities import Config, PluginEntity
from minikong.external import ExternalPlugin, PluginInfo
from minikong.lua.installed import Installed, is_installed
from minikong.luavalue import falsy
from minikong.pluginserver import StartError, check_plugin, not_installed
from minikong.router import Router
from minikong.rpc import Pool

if TYPE_CHECKING:
    from minikong.gateway import Gateway

Found = Sequence[tuple[PluginServer, PluginInfo]]


class Handler(Protocol):
    """A plugin's code: external, bundled or installed Lua."""

    name: str
    priority: int
    version: str
    phases: frozenset[str]

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        """Runs one phase. Raises Exit and LuaError."""


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


def load_handlers(gateway: Gateway, found: Found) -> dict[str, Handler]:
    """The code of every enabled plugin by name. Raises StartError for one that is enabled and not there."""
    handlers: dict[str, Handler] = {}
    served: dict[str, ExternalPlugin] = {}
    gateway.lua.served = served
    wanted = gateway.conf.plugins
    external = {info.name: (server, info) for server, info in found}
    for name in sorted(wanted - {"bundled", "off"}):
        if name in external or name in BUNDLED:
            continue
        if is_installed(name, gateway.conf.lua_package_path):
            handlers[name] = Installed(name, gateway)
        else:
            raise not_installed(name)
    if "bundled" in wanted:
        wanted = wanted | BUNDLED.keys()
    conf = gateway.conf
    for name, (server, info) in external.items():
        if name in wanted:
            if falsy(info.priority):
                raise not_installed(name)
            check_plugin(info)
            pool = gateway.pools.setdefault(
                server.socket, Pool(server.socket, connect_timeout=conf.lua_socket_connect_timeout)
            )
            log = gateway.namespaced_log(name)
            served[name] = ExternalPlugin(
                info, pool, gateway.instances, conf.lua_socket_read_timeout, log, gateway.lua.notify
            )
    for name, plugin in served.items():
        # Kong looks for a handler in Lua first; one may use the plugin server's.
        in_lua = is_installed(name, conf.lua_package_path)
        handlers[name] = Installed(name, gateway, plugin.info.schema) if in_lua else plugin
    for name, make in BUNDLED.items():
        if name in wanted and name not in handlers:
            handlers[name] = make(gateway)
    return handlers


def load_schema(gateway: Gateway, found: Found) -> declarative.Schema:
    """The schema of declarative configs for the loaded plugins. Raises StartError, metaschema.BadSchema."""
    schemas = schemas_in_lua(gateway)
    for _, info in found:
        if info.name in gateway.handlers and info.name not in schemas:
            if not isinstance(info.schema, dict):
                raise StartError("expected an input table")
            schemas[info.name] = info.schema
    return declarative.Schema(schemas)


def schemas_in_lua(gateway: Gateway) -> dict[str, Any]:
    """Those of the loaded plugins that Kong has or that an admin has installed, by name."""
    schemas = {name: schema for name, schema in bundled.schemas(gateway).items() if name in gateway.handlers}
    return schemas | {name: made.schema for name, made in gateway.handlers.items() if isinstance(made, Installed)}
