"""kong.node, cluster, plugin, router, table, tracing, telemetry and what else of `kong` a call can name."""

from __future__ import annotations

import socket
from typing import Any

from minikong.context import Context
from minikong.luavalue import LuaError, Opaque, falsy, tostring
from minikong.pdk.client import entity_table
from minikong.pdk.registry import PHASE_BITS, TABLES, VALUES, function

ALL = tuple(PHASE_BITS)
ROUTER_PHASES = ("access", "header_filter", "response", "body_filter", "log")
SHARED_DICTS = {  # name -> (capacity, allocated) in bytes, of a Kong that has just started
    "kong": (5242880, 40960),
    "kong_locks": (8388608, 61440),
    "kong_healthchecks": (5242880, 40960),
    "kong_cluster_events": (5242880, 40960),
    "kong_rate_limiting_counters": (12582912, 86016),
    "kong_core_db_cache": (134217728, 802816),
    "kong_core_db_cache_miss": (12582912, 86016),
    "kong_db_cache": (134217728, 798720),
    "kong_db_cache_miss": (12582912, 86016),
    "kong_secrets": (5242880, 40960),
    "prometheus_metrics": (5242880, 40960),
}

TABLES.update(
    f"kong.{name}"
    for name in """
    cache configuration core_cache db dns ip node plugin request response router service service.request
    service.response table telemetry tracing vault version_table worker_events
    """.split()  # noqa: SIM905 -- a word list reads better than twenty quoted lines
)
VALUES.update({"kong.version": "string", "kong.version_num": "number"})
_CONFIGURATION = {
    "string": """prefix database role log_level declarative_config untrusted_lua lua_package_path nginx_conf kong_env
        real_ip_header ssl_cipher_suite router_flavor error_default_type""",
    "number": """mem_cache_size client_body_buffer_size worker_state_update_frequency upstream_keepalive_pool_size
        lua_max_req_headers lua_max_resp_headers lua_max_uri_args lua_max_post_args db_update_frequency""",
    "boolean": "anonymous_reports ssl_prefer_server_ciphers",
    "table": """plugins proxy_listen admin_listen trusted_ips headers headers_upstream loaded_plugins pluginservers
        enabled_headers proxy_listeners admin_listeners loaded_vaults""",
}
VALUES.update({f"kong.configuration.{name}": kind for kind, names in _CONFIGURATION.items() for name in names.split()})


@function("kong.node.get_id", ALL)
def get_id(ctx: Context) -> str:
    return str(ctx.gateway.node_id)


@function("kong.node.get_hostname", ALL)
def get_hostname(ctx: Context) -> str:
    return socket.gethostname()


_UNITS = {"k": (1 << 10, "KiB"), "m": (1 << 20, "MiB"), "g": (1 << 30, "GiB")}


def _bytes_to_str(count: int, unit: str, scale: int) -> Any:
    if unit.lower() == "b":
        return count
    size, name = _UNITS[unit.lower()]
    return f"{count / size:.{scale}f} {name}"


@function("kong.node.get_memory_stats", ALL)
def get_memory_stats(ctx: Context, unit: Any = None, scale: Any = None) -> dict[str, Any]:
    unit = b"b" if falsy(unit) else unit
    scale = 2 if falsy(scale) else scale
    if not isinstance(unit, bytes) or unit.lower() not in (b"b", b"k", b"m", b"g"):
        shown = tostring(unit).decode("utf-8", "replace")
        raise LuaError(f"invalid unit '{shown}' (expected 'k/K', 'm/M', or 'g/G')")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale < 0:
        raise LuaError("scale must be equal or greater than 0")
    name = unit.decode()
    pid = ctx.gateway.pid
    return {
        "workers_lua_vms": [{"pid": pid, "http_allocated_gc": _bytes_to_str(48000000, name, int(scale))}],
        "lua_shared_dicts": {
            zone: {
                "capacity": _bytes_to_str(capacity, name, int(scale)),
                "allocated_slabs": _bytes_to_str(allocated, name, int(scale)),
            }
            for zone, (capacity, allocated) in SHARED_DICTS.items()
        },
    }


@function("kong.cluster.get_id", ALL)
def cluster_get_id(ctx: Context) -> None:
    return None  # DB-less: there is no `parameters` row


@function("kong.plugin.get_id", ALL)
def plugin_get_id(ctx: Context) -> str | None:
    return ctx.plugin.id if ctx.plugin is not None else None


@function("kong.router.get_route", ROUTER_PHASES)
def get_route(ctx: Context) -> Any:
    return entity_table(ctx.route)


@function("kong.router.get_service", ROUTER_PHASES)
def get_service(ctx: Context) -> Any:
    return entity_table(ctx.service)


@function("kong.table.new", ALL)
def table_new(ctx: Context, narr: Any = None, nrec: Any = None) -> dict[Any, Any]:
    for position, value in ((1, narr), (2, nrec)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LuaError(f"bad argument #{position} to 'method' (number expected, got no value)")
    return {}


@function("kong.table.clear", ALL)
def table_clear(ctx: Context, table: Any = None) -> None:
    if not isinstance(table, list | dict):
        raise LuaError("bad argument #1 to 'method' (table expected)")


@function("kong.tracing.active_span", ALL)
def active_span(ctx: Context) -> None:
    return None


@function("kong.tracing.start_span", ALL)
def start_span(ctx: Context, name: Any = None) -> Opaque:
    return Opaque("function")  # a span that does nothing: a table of functions, which cannot be packed


@function("kong.tracing.set_active_span", ALL)
def set_active_span(ctx: Context, span: Any = None) -> None:
    return None


@function("kong.telemetry.log", ALL)
def telemetry_log(ctx: Context) -> None:
    return None  # always nil and an error text: the OpenTelemetry plugin is not there


@function("kong.cache.get", ALL)
def cache_get(ctx: Context, key: Any = None) -> None:
    raise LuaError("key must be a string")


@function("kong.worker_events.post", ALL)
def worker_events_post(ctx: Context, source: Any = None) -> None:
    raise LuaError("source is required")


@function("get_saved_req_data", ALL, exposed=True)
def get_saved_req_data(ctx: Context) -> Any:
    return {b"plugin_name": ctx.plugin.name if ctx.plugin else None} if ctx.in_timer else None
