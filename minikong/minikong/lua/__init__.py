"""LuaJIT for pre-function and post-function: Kong's sandbox over the same PDK that plugin servers call.

Sources: kong/plugins/pre-function/_handler.lua, kong/tools/sandbox.lua, kong-lua-sandbox 1.1.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from lupa import luajit21

from minikong import cjson, uri
from minikong.context import Context, Response
from minikong.entities import PluginEntity
from minikong.luavalue import NULL, LuaError, Opaque, number, table_of
from minikong.pdk.ctx import get_ctx, set_ctx
from minikong.pdk.headers import normalize, set_response_header
from minikong.pdk.nginx import variable
from minikong.pdk.registry import FUNCTIONS, Exit
from minikong.pdk.request import lookup
from minikong.pdk.response import headers_out, response_header_table, send, status_out

if TYPE_CHECKING:
    from minikong.external import ExternalPlugin
    from minikong.gateway import Gateway

OK, FAIL, EXIT, READ_BODY = range(4)
PHASES = ("certificate", "rewrite", "access", "header_filter", "body_filter", "log")
_LEVELS = ("emerg", "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")


class LuaShared:
    """kong.ctx.shared once Lua has touched the request: a real Lua table, seen from Python as a dict."""

    def __init__(self, runtime: Runtime, table: Any) -> None:
        self.runtime = runtime
        self.table = table

    def get(self, key: Any, default: Any = None) -> Any:
        value = self.table[key]
        return default if value is None else self.runtime.from_lua(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.table[key] = self.runtime.to_lua(value)

    def pop(self, key: Any, default: Any = None) -> None:
        self.table[key] = None


class Runtime:
    """One Lua state; all of a gateway's Lua code runs in it, one piece at a time."""

    def __init__(self, gateway: Gateway) -> None:
        conf = gateway.conf
        self.gateway = gateway
        self.lua = luajit21.LuaRuntime(
            encoding=None,
            unpack_returned_tuples=True,
            register_eval=False,
            register_builtins=False,
            attribute_filter=_no_attributes,
        )
        self.ctx: Context | None = None
        self.exit: Exit | None = None
        self.printed: list[bytes] = []
        self.served: dict[str, ExternalPlugin] = {}
        self._event: tuple[ExternalPlugin, Any] | None = None  # that Lua code waits for
        host = {
            b"functions": " ".join(sorted(FUNCTIONS)).encode(),
            b"mode": b"on" if conf.untrusted_lua == "on" else conf.untrusted_lua.encode(),
            b"requires": " ".join(conf.untrusted_lua_sandbox_requires).encode(),
            b"environment": " ".join(conf.untrusted_lua_sandbox_environment).encode(),
            b"package_path": conf.lua_package_path.encode(),
            b"call": self._call,
            b"ctx_table": self._ctx_table,
            b"configuration": self._configuration,
            b"now": time.time,
            b"encode_base64": lambda text, *_: base64.b64encode(text),
            b"decode_base64": _decode_base64,
            b"escape_uri": lambda text, *_: uri.escape_component(text),
            b"unescape_uri": uri.unescape,
            b"md5": lambda text: hashlib.md5(text, usedforsecurity=False).hexdigest().encode(),
            b"get_phase": lambda: self._context.phase.encode(),
            b"pid": os.getpid,
            b"var": self._var,
            b"get_ctx": lambda key: self.to_lua(get_ctx(self._context, self.from_lua(key))),
            b"set_ctx": lambda key, value: set_ctx(self._context, self.from_lua(key), self.from_lua(value)),
            b"get_header": self._get_header,
            b"set_header": self._set_header,
            b"get_status": lambda: status_out(self._context),
            b"set_status": self._set_status,
            b"log": self._log,
            b"get_arg": lambda number: {1: self._context.chunk, 2: self._context.is_last}.get(number),
            b"set_arg": self._set_arg,
            b"print": self.printed.append,
            b"exit": self._exit,
            b"served": self._served,
            b"event": self._set_event,
            b"log_event": self._log_event,
            b"json_encode": self._json_encode,
            b"json_decode": self._json_decode,
        }
        prelude = resources.files("minikong.lua").joinpath("prelude.lua").read_bytes()
        made = self.lua.execute(prelude, self.lua.table_from(host))
        # Lua code must not find the host: lupa's own table would lead out of the sandbox.
        self.lua.execute(b"python = nil package.loaded.python = nil")
        self.chain, self.method, self.load_plugin = made[b"chain"], made[b"method"], made[b"load_plugin"]
        self.check_code, self._notification = made[b"check"], made[b"notification"]
        self._is_array, self._as_array, self.null = made[b"is_array"], made[b"as_array"], made[b"null"]

    @property
    def _context(self) -> Context:
        if self.ctx is None:
            raise LuaError("API disabled in the current context")
        return self.ctx

    # values

    def to_lua(self, value: Any) -> Any:
        """A Lua value; tables are copied."""
        kind = type(value)
        if kind is bytes or value is None or kind is bool or kind is int or kind is float:
            return value
        if kind is str:
            return value.encode("utf-8", "surrogateescape")
        if value is NULL:
            return self.null
        if isinstance(value, Opaque):
            return value.value
        if isinstance(value, list):
            if not value:
                return self._as_array(self.lua.table())
            return self.lua.table_from([self.to_lua(item) for item in value])
        if isinstance(value, dict):
            return self.lua.table_from({self.to_lua(k): self.to_lua(v) for k, v in value.items()})
        return value

    def from_lua(self, value: Any, depth: int = 0) -> Any:
        """A Python value; tables are copied. Raises LuaError for a table that contains itself."""
        kind = type(value)
        if kind is bytes or value is None or kind is bool:
            return value
        if kind is int or kind is float:
            return number(value)
        found = luajit21.lua_type(value)
        if found == "table":
            if depth > 200:
                raise LuaError("Cannot serialise, excessive depth (1001)")
            table = {
                self.from_lua(k, depth + 1): v for k, v in ((k, self.from_lua(v, depth + 1)) for k, v in value.items())
            }
            if not table and self._is_array(value):
                return []
            return table_of(table)
        if found == "userdata":
            return NULL
        return Opaque(found or "userdata", value)

    # what Lua calls

    def _call(self, name: bytes, count: int, *arguments: Any) -> tuple[int, Any]:
        ctx = self._context
        function = FUNCTIONS[name.decode()]
        if function.needs_body and ctx.client_body is None:
            return READ_BODY, None
        try:
            padded = [self.from_lua(a) for a in arguments[:count]]
            return OK, self.to_lua(function(ctx, *padded))
        except LuaError as error:
            return FAIL, error.message.encode("utf-8", "surrogateescape")
        except Exit as exit_:
            self.exit = exit_
            return EXIT, None

    def _ctx_table(self, name: Any) -> Any:
        ctx = self._context
        if name == b"shared":
            shared: Any = ctx.shared
            return shared.table
        if name not in (b"plugin", b"core"):
            return None
        key = (b"ctx", ctx.plugin.id if name == b"plugin" and ctx.plugin else name)
        table: Any = ctx.nginx_ctx.get(key)
        if table is None:
            table = ctx.nginx_ctx[key] = Opaque("table", self.lua.table())
        return table.value

    def _configuration(self, name: Any) -> Any:
        value = getattr(self.gateway.conf, name.decode("latin-1"), None) if isinstance(name, bytes) else None
        return self.to_lua(value) if isinstance(value, str | int | float | bool) else None

    def _var(self, name: Any) -> Any:
        return variable(self._context, name.decode("latin-1").lower()) if isinstance(name, bytes) else None

    def _get_header(self, name: Any) -> Any:
        if not isinstance(name, bytes):
            return None
        return self.to_lua(lookup(response_header_table(self._context), name))

    def _set_header(self, name: Any, value: Any) -> None:
        converted = self.from_lua(value)
        set_response_header(headers_out(self._context), name, None if converted is None else normalize(converted))

    def _set_status(self, status: Any) -> None:
        ctx = self._context
        if ctx.response is not None:
            ctx.response.status = int(status)

    def _set_arg(self, number: Any, value: Any) -> None:
        if number == 1:
            self._context.chunk = value if isinstance(value, bytes) else None
        elif number == 2:
            self._context.is_last = bool(value)

    def _log(self, level: Any, text: bytes) -> None:
        name = _LEVELS[level] if isinstance(level, int) and 0 <= level < len(_LEVELS) else "notice"
        self.gateway.log(name, text.decode("utf-8", "replace"))

    def _exit(self, status: Any) -> None:
        body = b"".join(self.printed) or None
        self.printed.clear()
        self.exit = Exit(int(status), body, None)

    def _json_encode(self, value: Any = None) -> tuple[bytes | None, bytes | None]:
        try:
            return cjson.encode(self.from_lua(value), 14), None
        except LuaError as error:
            return None, error.message.encode()

    def _json_decode(self, text: Any = None) -> tuple[bool, Any]:
        try:
            return True, self.to_lua(cjson.decode(text))
        except (ValueError, TypeError, AttributeError):
            return False, b"Expected value but found invalid token at character 1"

    # kong.runloop.plugin_servers

    def _served(self, name: bytes) -> Any:
        plugin = self.served.get(name.decode())
        if plugin is None:
            return None
        return self.to_lua({"PRIORITY": plugin.priority, "VERSION": plugin.version, "phases": list(plugin.info.phases)})

    def _set_event(self, name: bytes, event: Any) -> None:
        self._event = self.served[name.decode()], self.from_lua(event)

    def _log_event(self, name: bytes) -> None:
        ctx = self._context
        assert ctx.plugin is not None
        self.gateway.log_later(self.served[name.decode()], ctx.plugin, ctx)

    def notify(self, label: bytes, argument: Any, ctx: Context) -> None:
        """`rpc_notifications[label](rpc, argument)`, if there is such a function. Raises LuaError and Exit."""
        function = self._notification(label, self.to_lua(argument))
        if function is not None:
            self.run_now(function, ctx)

    # running

    async def run(self, function: Any, ctx: Context) -> None:
        """Runs a Lua function for a request. Raises LuaError and Exit."""
        coroutine = self._coroutine(function, ctx)
        problem = None
        while waits_for := self._resume(coroutine, ctx, problem):
            problem = None
            if waits_for == b"read_body":
                ctx.client_body = await ctx.request.body.read()
            elif waits_for == b"event" and self._event is not None and ctx.plugin is not None:
                (plugin, event), self._event = self._event, None
                try:
                    await plugin.handle_event(event, ctx.plugin, ctx)
                except LuaError as error:
                    problem = error.message.encode("utf-8", "surrogateescape")
            else:
                return

    def run_now(self, function: Any, ctx: Context) -> None:
        """The same where nothing can be awaited (header_filter, body_filter): the body cannot be read."""
        if self._resume(self._coroutine(function, ctx), ctx) == b"read_body":
            raise LuaError(f"API disabled in the context of {ctx.phase}_by_lua*")

    def filter_head(self, function: Any, ctx: Context) -> None:
        """Runs a header_filter, whose exit stands in the place of the answer. Raises LuaError."""
        try:
            self.run_now(function, ctx)
        except Exit as exit_:
            before = ctx.response
            send(ctx, exit_)
            made = ctx.response
            assert before is not None and made is not None
            _replace(before, made)
            ctx.response = before

    def _coroutine(self, function: Any, ctx: Context) -> Any:
        """What lupa makes during a callback belongs to the running coroutine's state and must not outlive it: so the
        shared table is made before, and the coroutine lives as long as the request."""
        if not isinstance(ctx.shared, LuaShared):
            shared: Any = LuaShared(self, self.to_lua(ctx.shared))
            ctx.shared = shared
        coroutine = function.coroutine()
        ctx.nginx_ctx.setdefault((b"ctx", b"coroutines"), []).append(coroutine)
        return coroutine

    def _resume(self, coroutine: Any, ctx: Context, value: Any = None) -> Any:
        before, self.ctx = self.ctx, ctx
        try:
            yielded = coroutine.send(value)
        except StopIteration:
            return None
        except luajit21.LuaError as error:
            text = error.args[0] if error.args else ""
            message = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            raise LuaError(message.split("\nstack traceback:")[0]) from None
        finally:
            self.ctx = before
        if yielded == b"exit" and self.exit is not None:
            exit_, self.exit = self.exit, None
            raise exit_
        return yielded


def _no_attributes(_object: Any, _name: Any, _is_setting: bool) -> Any:
    raise AttributeError("access denied")


def _decode_base64(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (ValueError, TypeError):
        return None


class Functions:
    """pre-function and post-function."""

    version = "3.9.1"
    phases = frozenset(PHASES)

    def __init__(self, name: str, priority: int, gateway: Gateway) -> None:
        self.name = name
        self.priority = priority
        self.gateway = gateway
        self._compiled: dict[int, dict[str, Any]] = {}

    def _function(self, phase: str, entity: PluginEntity) -> Any:
        """The chain of one phase; None if there is nothing to run. Raises LuaError if it does not compile."""
        compiled = self._compiled.get(entity.seq)
        if compiled is None:
            runtime = self.gateway.lua
            compiled = {}
            for name in PHASES:
                codes = entity.config.get(name) or []
                if codes:
                    try:
                        compiled[name] = runtime.chain(runtime.to_lua(list(codes)))
                    except luajit21.LuaError as error:
                        text = error.args[0]
                        raise LuaError(text.decode() if isinstance(text, bytes) else str(text)) from None
            if len(self._compiled) > 1000:
                self._compiled.clear()
            self._compiled[entity.seq] = compiled
        return compiled.get(phase)

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        function = self._function(phase, entity)
        if function is not None:
            await self.gateway.lua.run(function, ctx)

    def header_filter(self, entity: PluginEntity, ctx: Context) -> None:
        """Raises LuaError: nginx then closes the connection without an answer."""
        function = self._function("header_filter", entity)
        if function is not None:
            self.gateway.lua.filter_head(function, ctx)


def _replace(response: Response, made: Response) -> None:
    response.status, response.headers, response.body = made.status, made.headers, made.body or b""
    response.content_length = None
