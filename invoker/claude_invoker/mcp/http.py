"""A server that is reached by HTTP (modelcontextprotocol.io/specification/2025-06-18/basic/transports), as one run has
it: one URL, one credential, and bounds on what comes back.

The SDK's own client follows redirects, waits for as much as is sent, and has a connection open for what a server says
by itself: none of that is wanted of a server that a run can talk into anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec

from claude_invoker.mcp.relay import Failed, Message

MAX_ANSWER = 4 << 20
"""Bytes of one answer, and of all that comes in its stream before it."""
_LEAST_PIECE = 64
"""Bytes as which a smaller piece counts: each costs time on the loop that all requests share."""
MAX_TOOLS = 500
CALL_S, CONNECT_S, CLOSE_S = 300.0, 10.0, 2.0
_PAGES = 20
_VERSION = "2025-06-18"
_CLIENT = {"name": "claude-invoker", "version": "1"}


class _Tool(msgspec.Struct):
    """What is handed on of a tool; what else is said of it is not."""

    name: str
    inputSchema: dict[str, Any]
    description: str = ""
    annotations: dict[str, Any] | None = None


class _Tools(msgspec.Struct):
    tools: list[_Tool]
    nextCursor: str | None = None


class _Result(msgspec.Struct):
    """Of a call."""

    content: list[dict[str, Any]]
    structuredContent: dict[str, Any] | None = None
    isError: bool = False


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    """Of JSON-RPC; what a server asks or tells by itself has a `method`."""

    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None
    method: str = ""


class HttpServer:
    """`credential`: the value of `header`, asked for with each request; raises Failed. None: it wants none."""

    def __init__(self, url: str, header: str, credential: Callable[[], str] | None) -> None:
        self._url = url
        self._header = header
        self._credential = credential
        self._ids = itertools.count(1)
        self._client: httpx.AsyncClient | None = None
        self._session: dict[str, str] = {}
        self._beginning = asyncio.Lock()
        self._begun = False

    async def tools(self) -> list[Message]:
        found: list[Message] = []
        cursor: dict[str, Any] = {}
        for _ in range(_PAGES):
            page = _read(await self._ask("tools/list", cursor), _Tools)
            found += map(_without_nothing, page.tools)
            if page.nextCursor is None or len(found) > MAX_TOOLS:
                break
            cursor = {"cursor": page.nextCursor}
        return found[:MAX_TOOLS]

    async def call(self, tool: str, arguments: Message) -> Message:
        result = _read(await self._ask("tools/call", {"name": tool, "arguments": arguments}), _Result)
        return _without_nothing(result)

    async def close(self) -> None:
        if self._client is None:
            return
        with contextlib.suppress(Failed, httpx.HTTPError, TimeoutError):
            if "mcp-session-id" in self._session:
                async with asyncio.timeout(CLOSE_S):
                    await self._client.delete(self._url, headers=self._headers()[0])
        await self._client.aclose()

    async def _ask(self, method: str, parameters: Message) -> msgspec.Raw:
        """Raises Failed."""
        async with self._beginning:
            if not self._begun:
                await self._begin()
                self._begun = True
        return await self._exchange(method, parameters)

    async def _begin(self) -> None:
        """Raises Failed."""
        asked = {"protocolVersion": _VERSION, "capabilities": {}, "clientInfo": _CLIENT}
        _read(await self._exchange("initialize", asked), dict)
        self._session["mcp-protocol-version"] = _VERSION
        await self._exchange("notifications/initialized", None)

    async def _exchange(self, method: str, parameters: Message | None) -> msgspec.Raw:
        """The result of a request, or nothing of a notification (`parameters` None). Raises Failed."""
        number = next(self._ids)
        message: Message = {"jsonrpc": "2.0", "method": method}
        if parameters is not None:
            message |= {"id": number, "params": parameters}
        headers, secret = self._headers()
        try:
            async with (
                asyncio.timeout(CALL_S),
                self._open().stream("POST", self._url, content=msgspec.json.encode(message), headers=headers) as answer,
            ):
                self._take_session(answer, method)
                if parameters is None:
                    return msgspec.Raw()
                async for text in _messages(answer):
                    if secret and secret in text:
                        raise Failed("it has sent back the credential that it was called with")
                    found = _read(msgspec.Raw(text), _Answer)
                    if found.method or found.id != number:
                        continue
                    if found.error is not None:
                        raise Failed(f"it refuses: {_line(found.error.message)}")
                    result: msgspec.Raw = found.result.copy()
                    return result
        except TimeoutError as error:
            raise Failed(f"it does not answer within {CALL_S:g} s") from error
        except httpx.HTTPError as error:
            raise Failed(f"it cannot be reached: {type(error).__name__}") from error
        raise Failed("it has ended its answer without a result")

    def _take_session(self, answer: httpx.Response, method: str) -> None:
        """Raises Failed for what is no success: the body is not looked at, since it may have anything in it."""
        if not answer.is_success:
            raise Failed(f"it answers {answer.status_code}")
        if method == "initialize" and (name := answer.headers.get("mcp-session-id")):
            if len(name) > 1024 or not name.isascii() or not name.isprintable():
                raise Failed("it has given its session a name that is none")
            self._session["mcp-session-id"] = name

    def _headers(self) -> tuple[dict[str, str], bytes]:
        """And what must not come back. Raises Failed."""
        headers = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "claude-invoker",
            **self._session,
        }
        if self._credential is None:
            return headers, b""
        value = self._credential()
        secret = value.removeprefix("Bearer ")
        return headers | {self._header: value}, secret.encode()

    def _open(self) -> httpx.AsyncClient:
        """Of this run: what a server has it remember (cookies) no other run has."""
        if self._client is None:
            timeout = httpx.Timeout(None, connect=CONNECT_S)
            self._client = httpx.AsyncClient(verify=_certificates(), timeout=timeout, follow_redirects=False)
        return self._client


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def _messages(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Each message of an answer in JSON, or of its event stream. Raises Failed, httpx.HTTPError."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise Failed("it has sent what was not asked for (content-encoding)")
    if kind == "application/json":
        yield b"".join([chunk async for chunk in _bounded(answer)])
    elif kind == "text/event-stream":
        begun, data = bytearray(), []
        async for chunk in _bounded(answer):
            *ends, rest = chunk.split(b"\n")  # the chunk alone: a long line in many pieces is looked through once
            for end in ends:
                line = bytes(begun + end).strip()
                begun.clear()
                if line.startswith(b"data:"):
                    data.append(line[5:].lstrip())
                elif not line and data:
                    yield b"\n".join(data)
                    data = []
            begun += rest
        if data:
            yield b"\n".join(data)
    else:
        raise Failed("it has answered with neither JSON nor an event stream")


async def _bounded(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Raises Failed, httpx.HTTPError."""
    left = MAX_ANSWER
    async for chunk in answer.aiter_raw():
        left -= max(len(chunk), _LEAST_PIECE)
        if left < 0:
            raise Failed(f"it has answered with more than {MAX_ANSWER >> 20} MiB")
        yield chunk


def _read(text: msgspec.Raw, kind: Any) -> Any:
    """Raises Failed."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Failed("it has sent what is not understood") from error


def _without_nothing(value: _Tool | _Result) -> Message:
    found: Message = msgspec.to_builtins(value)
    return {name: each for name, each in found.items() if each is not None}


def _line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:500]
