"""The table of PDK functions, their phases, and how a plugin server's call finds one.

Sources: kong/pdk/private/phases.lua; `call_pdk_method` and `index_table` in
kong/runloop/plugin_servers/rpc/{mp_rpc,util}.lua; `exposed_api` in plugin_servers/plugin.lua.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from minikong.context import Context
from minikong.luavalue import Holey, LuaError, tostring

PHASE_BITS = {
    "init_worker": 0x1,
    "certificate": 0x2,
    "client_hello": 0x8,
    "rewrite": 0x10,
    "access": 0x20,
    "balancer": 0x40,
    "response": 0x80,
    "cluster_listener": 0x100,
    "header_filter": 0x200,
    "body_filter": 0x400,
    "log": 0x2000,
    "preread": 0x4000,
    "error": 0x1000000,
    "admin_api": 0x10000000,
}
REQUEST = tuple(p for p in PHASE_BITS if p not in ("init_worker", "certificate", "client_hello", "preread"))
ANY = tuple(p for p in PHASE_BITS if p != "init_worker")
TIMER_ERROR = "API disabled in the current context"


class Exit(Exception):
    """kong.response.exit or error: ends the handler; nobody answers the call."""

    def __init__(self, status: int, body: Any, headers: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


class Function:
    """One PDK function; called as `function(ctx, *arguments)`."""

    __slots__ = ("accepted", "arity", "body", "check", "name", "needs_body", "needs_request")

    def __init__(
        self, name: str, body: Callable[..., Any], phases: Iterable[str], needs_request: bool, needs_body: bool
    ) -> None:
        self.name = name
        self.body = body
        self.accepted = frozenset(phases)
        self.needs_request = needs_request
        self.needs_body = needs_body
        parameters = list(inspect.signature(body).parameters.values())[1:]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.arity = 255 if variadic else len(parameters)

    def __call__(self, ctx: Context, *arguments: Any) -> Any:
        if ctx.phase not in self.accepted:
            names = ", ".join(p for p in PHASE_BITS if p in self.accepted)
            raise LuaError(f"function cannot be called in {ctx.phase} phase (only in: {names})")
        if self.needs_request and ctx.in_timer:
            raise LuaError(TIMER_ERROR)
        try:
            return self.body(ctx, *arguments[: self.arity])
        except RecursionError:
            raise LuaError("stack overflow") from None


FUNCTIONS: dict[str, Function] = {}  # the PDK as Lua sees it
EXPOSED: dict[str, Function] = {}  # wrappers that only plugin servers get, found by their exact name
TABLES: set[str] = set()  # names in the PDK that are tables
VALUES: dict[str, str] = {}  # names in the PDK that are neither: their Lua type
F = TypeVar("F", bound=Callable[..., Any])


def function(
    name: str,
    phases: Iterable[str] = ANY,
    *,
    needs_request: bool = False,
    needs_body: bool = False,
    exposed: bool = False,
) -> Callable[[F], F]:
    """Registers a PDK function.

    Args:
        phases: where Kong's `check_phase` lets it run.
        needs_request: touches nginx's request, so it fails in the timer of an external plugin's log phase.
        needs_body: the request body must have been read before it runs.
        exposed: a wrapper that only plugin servers get.
    """

    def register(body: F) -> F:
        table = EXPOSED if exposed else FUNCTIONS
        table[name] = Function(name, body, phases, needs_request, needs_body)
        parts = name.split(".")
        TABLES.update(".".join(parts[:i]) for i in range(1, len(parts)))
        return body

    return register


_WORDS = re.compile(r"\w+", re.ASCII)


@functools.lru_cache(4096)
def _find(name: str) -> Function | str | None:
    """The function, the Lua type of what else has this name, or None."""
    if name in EXPOSED:
        return EXPOSED[name]
    words = _WORDS.findall(name)
    path = ".".join(words)
    for count in range(1, len(words)):
        prefix = ".".join(words[:count])
        if prefix not in TABLES and (prefix in FUNCTIONS or VALUES.get(prefix) in ("number", "boolean")):
            kind = VALUES.get(prefix, "function")
            raise LuaError(f"attempt to index local 'res' (a {kind} value)")
    if not path:
        return "table"  # no segment: index_table returns the table it started from
    if path in FUNCTIONS:
        return FUNCTIONS[path]
    if path in TABLES:
        return "table"
    return VALUES.get(path)


async def call(ctx: Context, method: Any, arguments: Any, log: Callable[[str, str], None]) -> Any:
    """One PDK call of a plugin server: the function's first return value (None for an unknown method).

    Raises LuaError (never answered) and Exit.
    """
    if method is None:
        raise LuaError("table index is nil")
    if isinstance(method, float) and method != method:
        raise LuaError("table index is NaN")
    # Anything else is taken as its text, in which there is no method's name.
    found = _find(method.decode("latin-1")) if isinstance(method, bytes) else None
    if found is None:
        log("err", f"could not find pdk method: {tostring(method).decode('utf-8', 'replace')}")
        return None
    if isinstance(found, str):
        raise LuaError(f"attempt to call local 'method' (a {found} value)")
    if found.needs_body and ctx.client_body is None and not ctx.in_timer:
        ctx.client_body = await ctx.request.body.read()
    return found(ctx, *unpack(arguments))


def unpack(arguments: Any) -> tuple[Any, ...]:
    """Lua's `unpack(args)`, or the value itself if it is no table."""
    if isinstance(arguments, list):
        return tuple(arguments)
    if isinstance(arguments, dict):
        return tuple(arguments.get(i) for i in range(1, border(arguments) + 1))
    return (arguments,)


def border(table: dict[Any, Any]) -> int:
    """`#table` as LuaJIT has it: with holes it depends on how the table came to be."""
    if isinstance(table, Holey):
        return _length_after_stores(tuple(i in table for i in range(1, table.stores + 1)))
    length = 0
    while length + 1 in table:
        length += 1
    return length


@functools.lru_cache(256)
def _length_after_stores(stored: tuple[bool, ...]) -> int:
    from lupa import luajit21

    lua = luajit21.LuaRuntime()
    measure = lua.eval(
        "function(n, stored) local t = {} for i = 1, n do t[i] = stored[i - 1] and i or nil end return #t end"
    )
    return int(measure(len(stored), stored))
