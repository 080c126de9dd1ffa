"""External plugins: their instances on the plugin server and the event loop of one phase.

Source: kong/runloop/plugin_servers/{plugin,rpc/mp_rpc}.lua 3.9.1, kept as it is, races included: an instance
id can be missing from HandleEvent, a lost instance may be started twice, the whole event is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minikong import cjson, pdk
from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.luavalue import BrokenFrame, LuaError, from_msgpack, lua_type, pack, pack_binary, pack_map
from minikong.rpc import Pool, Rpc

SLEEP_STEP = 0.1  # seconds between two looks at an instance that another request is starting
MAX_WAIT_STEPS = 100

STEP_BY_METHOD = {
    b"kong.client.get_credential": b"plugin.StepCredential",
    b"kong.client.load_consumer": b"plugin.StepConsumer",
    b"kong.client.get_consumer": b"plugin.StepConsumer",
    b"kong.client.authenticate": b"plugin.StepCredential",
    b"kong.node.get_memory_stats": b"plugin.StepMemoryStats",
    b"kong.router.get_route": b"plugin.StepRoute",
    b"kong.router.get_service": b"plugin.StepService",
    b"kong.request.get_query": b"plugin.StepMultiMap",
    b"kong.request.get_headers": b"plugin.StepMultiMap",
    b"kong.response.get_headers": b"plugin.StepMultiMap",
    b"kong.service.response.get_headers": b"plugin.StepMultiMap",
}
MULTI_MAPS = {method for method, step in STEP_BY_METHOD.items() if step == b"plugin.StepMultiMap"}
RAW_BODIES = {
    b"kong.request.get_raw_body",
    b"kong.response.get_raw_body",
    b"kong.service.response.get_raw_body",
}


@dataclass(eq=False, slots=True)
class Instance:
    """What Kong's `running_instances` holds for one configured plugin; `id` is None while it is started."""

    plugin_id: str  # of the config it was started with
    seq: int
    id: Any = None
    plugin_name: str | None = None
    rpc: Rpc | None = None


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin as its server's query command describes it."""

    name: str
    phases: tuple[str, ...]
    priority: int
    version: str
    schema: dict[str, Any]
    protocol: str = "MsgPack:1"


class Instances:
    """`running_instances`: shared by all external plugins of one worker, keyed by the plugin's id."""

    def __init__(self) -> None:
        self.running: dict[str, Instance] = {}

    def reset_plugin(self, plugin_name: str) -> None:
        for key in [k for k, i in self.running.items() if i.plugin_name == plugin_name]:
            del self.running[key]

    def reset_rpc(self, rpc: Rpc) -> None:
        for key in [k for k, i in self.running.items() if i.rpc is rpc]:
            del self.running[key]


class ExternalPlugin:
    """The handler of one plugin that lives in a plugin server."""

    def __init__(
        self,
        info: PluginInfo,
        pool: Pool,
        instances: Instances,
        read_timeout: float,
        log: Callable[[str, str], None],
        notify: Callable[[bytes, Any, Context], None] | None = None,
    ) -> None:
        """`notify`: what to do with a notification that Kong itself does not know (`rpc_notifications`)."""
        self.info = info
        self.notify = notify
        self.name = info.name
        self.priority = info.priority
        self.version = info.version
        self.phases = frozenset(info.phases)
        self.instances = instances
        self.log = log
        self.rpc = Rpc(pool, read_timeout, self._notified, log) if info.protocol == "MsgPack:1" else None

    def _notified(self, rpc: Rpc, label: Any, argument: Any) -> None:
        if label != b"serverPid":
            return
        pid = _tonumber(argument)
        if rpc.server_pid is not None and pid != rpc.server_pid:
            self.instances.reset_rpc(rpc)
        rpc.server_pid = pid

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        """Runs one phase. Raises LuaError and `pdk.Exit` (the event is abandoned, nobody answers it)."""
        await self.handle_event(phase, entity, ctx)

    async def handle_event(self, event: Any, entity: PluginEntity, ctx: Context) -> None:
        """`rpc:handle_event`: what Kong passes is the phase's name, what a plugin in Lua passes any value."""
        if self.rpc is None:  # unknown protocol: the plugin has no rpc
            raise LuaError("attempt to index field 'rpc' (a nil value)")
        while True:
            instance_id, error = await self._instance_id(self.rpc, entity)
            if error is None:
                error = await self._bridge(self.rpc, instance_id, event, ctx)
            if error is None or error is False:
                return
            if not isinstance(error, bytes):
                shape = "call method 'lower'" if isinstance(error, list | dict) else "index local 'err'"
                raise LuaError(f"attempt to {shape} (a {lua_type(error)} value)")
            text = error.decode("utf-8", "replace")
            if b"no plugin instance" not in error.lower():
                self.log("err", text)
                return
            self.instances.reset_plugin(self.name)
            self.log("warn", text)

    async def _instance_id(self, rpc: Rpc, entity: PluginEntity) -> tuple[Any, bytes | None]:
        running = self.instances.running
        key = entity.id
        instance = running.get(key)
        waited = 0
        while instance is not None and instance.id is None:
            await asyncio.sleep(SLEEP_STEP)
            waited += 1
            if waited > MAX_WAIT_STEPS:
                running.pop(key, None)
                return None, f"Could not claim instance_id for {self.name} (key: {key})".encode()
            instance = running.get(key)
        if (
            instance is not None
            and instance.id is not None
            and instance.seq == entity.seq
            and instance.plugin_id == key
        ):
            return instance.id, None
        old_id = None
        if instance is None:
            instance = Instance(plugin_id=key, seq=entity.seq)
            running[key] = instance
        else:
            old_id, instance.id = instance.id, None
        argument = {"Name": self.name, "Config": cjson.encode(entity.instance_config(), 16)}
        started, error = await self._start(rpc, argument)
        if started is None:
            self.log("err", f"starting instance: {error!r}")
            running.pop(key, None)
            raise LuaError(error.decode("utf-8", "replace") if isinstance(error, bytes) else str(error))
        if not isinstance(started, list | dict | bytes):
            raise LuaError(f"attempt to index local 'status' (a {lua_type(started)} value)")
        instance.id = started.get(b"Id") if isinstance(started, dict) else None
        instance.plugin_name = self.name
        instance.plugin_id = key
        instance.seq = entity.seq
        instance.rpc = rpc
        if old_id is not None:
            await rpc.call(b"plugin.CloseInstance", pack(old_id))
        return instance.id, None

    async def _start(self, rpc: Rpc, argument: dict[str, Any]) -> tuple[Any, Any]:
        return await rpc.call(b"plugin.StartInstance", pack(argument))

    async def _bridge(self, rpc: Rpc, instance_id: Any, name: Any, ctx: Context) -> Any:
        """One event, PDK call by PDK call; None or the error that ended it."""

        def notified(rpc: Rpc, label: Any, argument: Any) -> None:
            if label == b"serverPid" or self.notify is None:
                self._notified(rpc, label, argument)
            else:
                self.notify(label, from_msgpack(argument), ctx)

        event = {"EventName": name}
        if instance_id is not None:
            event["InstanceId"] = instance_id
        step, error = await rpc.call(b"plugin.HandleEvent", pack(event), notified)
        if step is None or step is False:
            return error
        event_id = _field(step, b"EventId", "step_in")
        head = b"" if event_id is None else pack(b"EventId") + pack(event_id)
        entries = 0 if event_id is None else 1
        while True:
            data = _field(step, b"Data", "step_in")
            if data == b"ret":
                return None
            if data is None:
                raise LuaError("attempt to index field 'Data' (a nil value)")
            method = _field(data, b"Method", "Data")
            arguments = _field(data, b"Args", "Data")
            result = await pdk.call(ctx, method, arguments, self.log)
            if not isinstance(method, bytes):  # answered with nil, as an unknown one
                method = b""
            step_method = STEP_BY_METHOD.get(method, b"plugin.Step")
            if isinstance(result, dict) and b"_method" in result:
                step_method = result[b"_method"]
            try:
                packed = _pack_result(method, result)
            except BrokenFrame:
                # The map announces two entries and holds one: the server waits, Kong waits for the server.
                argument = b"\x82" + head + pack(b"Data")
                step, error = await rpc.call(step_method, argument, notified)
            else:
                if packed is None:
                    argument = bytes([0x80 + entries]) + head if entries else b"\x90"
                else:
                    argument = bytes([0x81 + entries]) + head + b"\xa4Data" + packed
                step, error = await rpc.call(step_method, argument, notified)
            if step is None or step is False:
                return error


def _pack_result(method: bytes, result: Any) -> bytes | None:
    """The packed Data of a Step (None: the frame has no Data)."""
    if method in RAW_BODIES:
        if not isinstance(result, bytes):
            raise LuaError(f"attempt to get length of local 'data' (a {lua_type(result)} value)")
        return pack_binary(result)
    if method in MULTI_MAPS:
        if not isinstance(result, dict):
            raise LuaError(f"bad argument #1 to 'for iterator' (table expected, got {lua_type(result)})")
        fixed = {k: [] if v is True else [v] if isinstance(v, bytes | str) else v for k, v in result.items()}
        return pack_map(fixed)
    return None if result is None else pack(result)


def _field(value: Any, name: bytes, what: str) -> Any:
    """`value[name]` of a table or a string (whose fields are nil); LuaError for anything else."""
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list | bytes):
        return None
    kind = "field" if what == "Data" else "local"
    raise LuaError(f"attempt to index {kind} '{what}' (a {lua_type(value)} value)")


def _tonumber(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, bytes):
        try:
            return float(value)
        except ValueError:
            return None
    return None
