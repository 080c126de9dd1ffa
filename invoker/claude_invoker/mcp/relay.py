"""What stands between one run and the MCP servers that it may call. The run speaks to it by its CLI's own output, so
that it needs neither a network nor a secret; and since a tool of the run's may be who writes there, what is said is
held against what the run may do, whatever the CLI would have let pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import orjson

from claude_invoker.catalog.server import PREFIX
from claude_invoker.cli.messages import ServerCall

_log = logging.getLogger(__name__)
MAX_ARGUMENTS = 1 << 20
"""Bytes of JSON of one call."""
MAX_CALLS = 1000
"""Of tools, of one run."""
MAX_AT_ONCE = 16
OPEN_S = 30.0
"""In which a server has said what it offers; the run waits for it, in its place among the runs at once."""
_NO_METHOD, _NO_PARAMETERS, _FAILED = -32601, -32602, -32000  # https://www.jsonrpc.org/specification, section 5.1
_VERSION = "2025-06-18"

Message = dict[str, Any]
Reply = Callable[[str, Message], None]
"""Given the id of a `ServerCall`, and the message of JSON-RPC that answers it."""


class Failed(Exception):
    """Why a server has not answered, in words for the model and the log: without a secret."""


class Server(Protocol):
    """One server, as one run has it."""

    async def tools(self) -> list[Message]:
        """Those that it offers, as MCP has them. Raises Failed."""
        ...

    async def call(self, tool: str, arguments: Message) -> Message:
        """The result, as MCP has it. Raises Failed."""
        ...

    async def close(self) -> None: ...


class Relay:
    """`servers`: by name; `tools`: what the run may call of them (`mcp__server__tool`). `is_let`: whether what somebody
    has to allow first was allowed, of one call with these arguments."""

    def __init__(
        self, servers: Mapping[str, Server], tools: Collection[str], is_let: Callable[[str, Message], bool]
    ) -> None:
        self._servers = servers
        self._tools = frozenset(tools)
        self._is_let = is_let
        self._offered: dict[str, list[Message]] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        """By server and outcome (`answered`, `failed`, `refused`)."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._servers)

    async def open(self) -> None:
        """Asks each server what it offers, before the run begins. Raises Failed, which names those that fail."""
        asked = await asyncio.gather(*(self._open(name) for name in self._servers))
        if failed := [name for name, has_answered in zip(self._servers, asked, strict=True) if not has_answered]:
            raise Failed(", ".join(failed))

    async def _open(self, name: str) -> bool:
        try:
            async with asyncio.timeout(OPEN_S):
                offered = await self._servers[name].tools()
        except (Failed, TimeoutError) as error:
            _log.warning("MCP server %s: %s", name, str(error) or f"it does not answer within {OPEN_S:g} s")
            return False
        self._offered[name] = [tool for tool in offered if f"{PREFIX}{name}__{tool.get('name')}" in self._tools]
        return True

    def take(self, call: ServerCall, reply: Reply) -> None:
        """Answers it as soon as its server has."""
        if len(self._under_way) >= MAX_AT_ONCE:
            reply(call.request_id, _error(call.message, _FAILED, f"{MAX_AT_ONCE} calls are under way"))
            return
        task = asyncio.create_task(self._answer(call, reply))
        self._under_way[call.request_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(call.request_id, None))

    def withdraw(self, request_id: str) -> None:
        """The CLI does not want to know any more."""
        if (task := self._under_way.get(request_id)) is not None:
            task.cancel()

    async def close(self) -> None:
        """The run is over. Raises nothing."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name, server in self._servers.items():
            try:
                await server.close()
            except Exception:
                _log.exception("MCP server %s", name)
        self._servers = {}  # a run is remembered for a while, and what it was let in with is not

    async def _answer(self, call: ServerCall, reply: Reply) -> None:
        message = call.message
        if "id" not in message:  # a notification: none of them is anything to a server that we are
            reply(call.request_id, {"jsonrpc": "2.0", "result": {}})
            return
        try:
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": await self._result(call.server, message)}
        except _Refused as refusal:
            answer = _error(message, refusal.code, str(refusal))
        except Failed as error:
            _log.warning("MCP server %s: %s", call.server, error)
            answer = _error(message, _FAILED, str(error))
        except Exception:
            _log.exception("MCP server %s", call.server)
            answer = _error(message, _FAILED, "it cannot be asked now")
        reply(call.request_id, answer)

    async def _result(self, name: str, message: Message) -> Message:
        """Raises Failed, _Refused."""
        server = self._servers.get(name)
        if server is None:
            raise _Refused(_NO_METHOD, "there is no such server")
        parameters = message.get("params") or {}
        match message.get("method"):
            case "initialize":
                # Not the server's own words, which the CLI would take among its instructions.
                return {
                    "protocolVersion": _VERSION,
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": name, "version": "1"},
                }
            case "ping":
                return {}
            case "tools/list":
                return {"tools": self._offered.get(name, [])}
            case "tools/call" if isinstance(parameters, dict):
                return await self._call(server, name, parameters.get("name"), parameters.get("arguments") or {})
        raise _Refused(_NO_METHOD, "runs call the tools of this server, and nothing else")

    async def _call(self, server: Server, name: str, tool: object, arguments: object) -> Message:
        """Raises Failed, _Refused."""
        outcome = "refused"
        try:
            full = f"{PREFIX}{name}__{tool}"
            if not isinstance(tool, str) or full not in self._tools:
                raise _Refused(_NO_PARAMETERS, "this run may not call such a tool")
            if not isinstance(arguments, dict) or len(orjson.dumps(arguments)) > MAX_ARGUMENTS:
                raise _Refused(_NO_PARAMETERS, f"arguments must be an object of at most {MAX_ARGUMENTS >> 20} MiB")
            if not self._is_let(full, arguments):
                raise _Refused(_NO_PARAMETERS, "nobody has allowed this very call")
            if self.calls.total() >= MAX_CALLS:
                raise _Refused(_FAILED, f"this run has made the {MAX_CALLS} calls that it may")
            outcome = "failed"
            result = await server.call(tool, arguments)
            outcome = "answered"
            return result
        finally:
            self.calls[name, outcome] += 1


class _Refused(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def _error(message: Message, code: int, why: str) -> Message:
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": code, "message": why}}
