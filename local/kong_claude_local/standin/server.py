"""The stand-in's socket: one asyncio HTTP/1.1 server, so that a hang, a stall or a reset is a real one."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11

from kong_claude_local.standin.script import Reply, reply_to

_MAX_BODY = 64 * 1024 * 1024
_COUNTER = itertools.count(1)
_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class StandIn:
    """A Messages API of canned answers on loopback.

    `record`: file that gets one JSON line per request. `charges`: the same for each answer that the API would charge
    for, also one that was broken off: `{model, prompt, session, usage, streamed, complete}` (`session`: as the client
    names it; `streamed`: letters).
    `chunk_delay_ms`: pause between text chunks, so that a stream visibly arrives one by one. `accept_keys`: when given,
    other API keys get 401.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        record: Path | None = None,
        chunk_delay_ms: float = 0.0,
        accept_keys: frozenset[str] | None = None,
        any_interface: bool = False,
        charges: Path | None = None,
    ) -> None:
        self.host = host
        self.any_interface = any_interface
        self.record = record
        self.charges = charges
        self.chunk_delay_ms = chunk_delay_ms
        self.accept_keys = accept_keys
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listens (`port` 0: any free one). Raises OSError where the port is taken, ValueError for a host
        that is not loopback (unless `any_interface`: inside a container, whose network is its own)."""
        if not self.any_interface and not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(f"the stand-in binds to loopback only, not to {self.host}")
        self._server = await asyncio.start_server(self._serve, self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[StandIn]:
        await self.start(port)
        try:
            yield self
        finally:
            await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            connection = h11.Connection(h11.SERVER)
            while await self._exchange(connection, reader, writer):
                connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer. False where the connection cannot carry another."""
        request: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data and request is None:
                    return False
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _MAX_BODY:
                    return False
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        send = _Sender(connection, writer, reader)
        await self._answer(request, bytes(body), send)
        return connection.our_state is h11.DONE

    async def _answer(self, request: h11.Request, body: bytes, send: _Sender) -> None:
        path = request.target.decode("latin-1").partition("?")[0]
        if request.method == b"HEAD":
            await send.head(200, ())
            return
        if request.method != b"POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
            await send.json(404, _error("not_found_error", "stand-in: no such endpoint"))
            return
        key = _api_key(request)
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            await send.json(400, _error("invalid_request_error", "stand-in: the body is not a JSON object"))
            return
        self._write_record(path, document, key)
        if self.accept_keys is not None and key not in self.accept_keys:
            await send.json(401, _error("authentication_error", "invalid x-api-key"))
            return
        if path.endswith("/count_tokens"):
            await send.json(200, {"input_tokens": _input_tokens(document, len(body))})
            return
        reply = _shortened(reply_to(document), document.get("max_tokens"))
        if reply.hang:
            await send.until_left()
        if reply.reset_after == 0:
            send.reset()
        if reply.status != 200:
            await send.json(reply.status, _error(reply.error_type, reply.text), reply.headers)
        elif document.get("stream"):
            await self._stream(document, reply, send)
        else:
            message = _message(document, reply)
            self._charge(document, message["usage"], 0, complete=True)
            await asyncio.sleep((reply.delay_ms or 0) / 1000)
            await send.json(200, message)

    async def _stream(self, document: dict[str, Any], reply: Reply, send: _Sender) -> None:
        delay = (self.chunk_delay_ms if reply.delay_ms is None else reply.delay_ms) / 1000
        await send.head(200, (("content-type", "text/event-stream"), ("cache-control", "no-cache")))
        chunks = streamed = 0
        usage: dict[str, Any] = {}
        is_complete = False
        try:
            for event in _events(document, reply):
                if event["type"] == "content_block_delta":
                    if reply.stall_after is not None and chunks >= reply.stall_after:
                        await send.until_left()
                    if reply.reset_after is not None and chunks >= reply.reset_after:
                        send.reset()
                    if delay and chunks:
                        await asyncio.sleep(delay)
                    chunks += 1
                await send.data(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()))
                if event["type"] == "message_start":
                    usage = event["message"]["usage"]
                elif event["type"] == "content_block_delta":
                    streamed += sum(map(len, event["delta"].values())) - len(event["delta"]["type"])
                elif event["type"] == "message_delta":
                    usage, is_complete = usage | event["usage"], True
            await send.end()
        finally:
            if usage and not is_complete:
                usage = usage | {"output_tokens": min(_output_tokens(reply), 1 + streamed // 4)}
            self._charge(document, usage, streamed, complete=is_complete)

    def _charge(self, document: dict[str, Any], usage: dict[str, Any], streamed: int, *, complete: bool) -> None:
        if self.charges is None or not usage:
            return
        line = {
            "model": document.get("model"),
            "prompt": json.dumps(document.get("messages")),
            "session": (document.get("metadata") or {}).get("user_id"),
            "usage": usage,
            "streamed": streamed,
            "complete": complete,
        }
        with self.charges.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _write_record(self, path: str, document: dict[str, Any], key: str) -> None:
        if self.record is None:
            return
        line = {
            "path": path,
            "model": document.get("model"),
            "stream": bool(document.get("stream")),
            "system": document.get("system"),
            "messages": document.get("messages"),
            "tools": [tool.get("name") for tool in document.get("tools") or [] if isinstance(tool, dict)],
            "key_sha256": hashlib.sha256(key.encode()).hexdigest(),
        }
        with self.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _Sender:
    """Writes h11 events to the socket; small enough to also break the rules when a script asks for it."""

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        self._connection = connection
        self._writer = writer
        self._reader = reader

    async def until_left(self) -> None:
        """Says nothing until the client has gone. Raises ConnectionResetError."""
        while not self._reader.at_eof():
            await asyncio.sleep(0.02)
        raise ConnectionResetError("the client has left")

    async def head(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        fields = [*headers, ("request-id", f"req_standin_{next(_COUNTER)}")]
        if not any(name == "content-length" for name, _ in headers) and not any(
            value == "text/event-stream" for _, value in headers
        ):
            fields.append(("content-length", "0"))
        await self._send(h11.Response(status_code=status, headers=fields))
        if fields[-1] == ("content-length", "0"):
            await self.end()

    async def json(self, status: int, document: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> None:
        data = json.dumps(document).encode()
        await self.head(status, (*headers, ("content-type", "application/json"), ("content-length", str(len(data)))))
        await self.data(data)
        await self.end()

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    def reset(self) -> None:
        self._writer.transport.abort()
        raise ConnectionResetError("as scripted")

    async def _send(self, event: h11.Event) -> None:
        if self._reader.at_eof():
            raise ConnectionResetError("the client has left")
        self._writer.write(self._connection.send(event) or b"")
        await self._writer.drain()


def _api_key(request: h11.Request) -> str:
    for name, value in request.headers:
        if name == b"x-api-key":
            return value.decode("latin-1")
        if name == b"authorization":
            return value.decode("latin-1").removeprefix("Bearer ")
    return ""


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _message(document: dict[str, Any], reply: Reply, *, empty: bool = False) -> dict[str, Any]:
    identity = next(_COUNTER)
    content: list[dict[str, Any]] = []
    if not empty and reply.tools:
        content = [
            {"type": "tool_use", "id": f"toolu_{next(_COUNTER)}", "name": name, "input": arguments}
            for name, arguments in reply.tools
        ]
    elif not empty:
        content = [{"type": "text", "text": reply.text}]
    return {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": document.get("model") or "stand-in",
        "content": content,
        "stop_reason": None if empty else reply.stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 12} | reply.usage | {"output_tokens": 1 if empty else _output_tokens(reply)},
    }


def _shortened(reply: Reply, max_tokens: Any) -> Reply:
    """No answer is longer than it may be."""
    if not isinstance(max_tokens, int) or _output_tokens(reply) <= max_tokens:
        return reply
    usage = reply.usage | {"output_tokens": max_tokens}
    return replace(reply, text=reply.text[: 4 * max_tokens], tools=(), usage=usage, stop_reason="max_tokens")


def _output_tokens(reply: Reply) -> int:
    return int(reply.usage.get("output_tokens", 1 + len(reply.text) // 4))


def _input_tokens(document: dict[str, Any], size: int) -> int:
    """What the API would count: as many as the answer will say, where a script says it."""
    usage = reply_to(document).usage
    said = [usage[name] for name in _INPUT if isinstance(usage.get(name), int)]
    return max(1, sum(said) if said else size // 4)


def _chunks(text: str) -> Iterator[str]:
    """Words, at most 64 chunks of them: long answers come in longer chunks."""
    words = text.split(" ")
    step = max(1, len(words) // 64)
    for at in range(0, len(words), step):
        yield " ".join(words[at : at + step]) + (" " if at + step < len(words) else "")


def _blocks(reply: Reply) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """How each begins, and what it becomes."""
    for name, arguments in reply.tools:
        block = {"type": "tool_use", "id": f"toolu_{next(_COUNTER)}", "name": name, "input": {}}
        yield block, [{"type": "input_json_delta", "partial_json": json.dumps(arguments)}]
    if not reply.tools:
        deltas = [{"type": "text_delta", "text": chunk} for chunk in _chunks(reply.text)]
        yield {"type": "text", "text": ""}, deltas


def _events(document: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    """The events of a streamed message, as documented under "Streaming Messages" in Anthropic's API."""
    yield {"type": "message_start", "message": _message(document, reply, empty=True)}
    for index, (block, deltas) in enumerate(_blocks(reply)):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    usage = {"output_tokens": _output_tokens(reply)}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reply.stop_reason, "stop_sequence": None},
        "usage": usage,
    }
    yield {"type": "message_stop"}
