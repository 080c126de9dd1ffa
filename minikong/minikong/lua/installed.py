"""Plugins in Lua that an admin has installed: `kong.plugins.<name>.handler` and `.schema` on `lua_package_path`.

Sources: kong/db/dao/plugins.lua, kong/tools/module.lua. As in Kong they are trusted: no sandbox.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lupa import luajit21

from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.external import PluginInfo
from minikong.pluginserver import StartError, check_plugin
from minikong.schema import typedefs

if TYPE_CHECKING:
    from minikong.gateway import Gateway

PHASES = ("rewrite", "access", "header_filter", "body_filter", "log")
"""What minikong runs of them; a handler with another phase is refused."""
_OTHERS = ("init_worker", "configure", "certificate", "response")


def is_installed(name: str, package_path: str) -> bool:
    """True where `require "kong.plugins.<name>.handler"` would find a file."""
    module = f"kong/plugins/{name}/handler"
    return any(Path(pattern.replace("?", module)).is_file() for pattern in package_path.split(";") if pattern)


class Installed:
    """The handler and the schema of one plugin. Raises StartError where Kong would not start with it.

    `schema`: the plugin server's, for a plugin that brings only a handler.
    """

    def __init__(self, name: str, gateway: Gateway, schema: Any = None) -> None:
        self.name = name
        self.gateway = gateway
        self._handler = self._load("handler")
        self.schema = schema or _schema(self._load("schema"))
        self._configs: dict[int, Any] = {}  # a configuration is one table for as long as it lasts
        version, self.priority = self._handler[b"VERSION"], self._handler[b"PRIORITY"]
        self.version = version.decode() if isinstance(version, bytes) else version
        check_plugin(PluginInfo(name, (), self.priority, self.version, {}))
        if unknown := [phase for phase in _OTHERS if self._handler[phase.encode()] is not None]:
            raise StartError(f"on plugin '{name}': minikong does not run the phase {unknown[0]} of installed plugins")
        self.phases = frozenset(phase for phase in PHASES if self._handler[phase.encode()] is not None)

    def _load(self, part: str) -> Any:
        try:
            return self.gateway.lua.load_plugin(self.name.encode(), part.encode())
        except luajit21.LuaError as error:
            text = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
            raise StartError(f"error loading plugin schemas: on plugin '{self.name}': {text}") from None

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        """Raises LuaError and Exit."""
        await self.gateway.lua.run(self._function(phase, entity), ctx)

    def header_filter(self, entity: PluginEntity, ctx: Context) -> None:
        """Raises LuaError: nginx then closes the connection without an answer."""
        self.gateway.lua.filter_head(self._function("header_filter", entity), ctx)

    def body_filter(self, entity: PluginEntity, ctx: Context) -> None:
        """Changes `ctx.chunk` and `ctx.is_last`. Raises LuaError: nginx then closes the connection."""
        self.gateway.lua.run_now(self._function("body_filter", entity), ctx)

    def _function(self, phase: str, entity: PluginEntity) -> Any:
        lua = self.gateway.lua
        config = self._configs.get(entity.seq)
        if config is None:
            if len(self._configs) > 1000:
                self._configs.clear()
            config = self._configs[entity.seq] = lua.to_lua(entity.config)
        return lua.method(self._handler, phase.encode(), config)


def _schema(value: Any) -> Any:
    """A schema's table as minikong's schema engine reads it. Raises StartError for what it does not know."""
    kind = luajit21.lua_type(value)
    if kind == "table":
        name = value[b"minikong_typedef"]
        if name is not None:
            return _typedef(name.decode())
        items = list(value.items())
        if [k for k, _ in items] == list(range(1, len(items) + 1)):
            return [_schema(v) for _, v in items]
        return {k.decode(): _schema(v) for k, v in items}
    if kind is not None:
        raise StartError(f"minikong does not run a {kind} in the schema of an installed plugin")
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


_RENAMED = {"protocols": "PLUGIN_PROTOCOLS", "protocols_http": "PLUGIN_PROTOCOLS_HTTP"}


def _typedef(name: str) -> typedefs.Definition:
    known = _RENAMED.get(name, name.upper())
    found = getattr(typedefs, known, None) if re.fullmatch("[A-Z_]+", known) else None
    if not isinstance(found, dict):
        raise StartError(f"minikong does not know the typedef {name}")
    return dict(found)
