"""An MCP server that says anything: what a run gets of it is a tool's result, or an error in our words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from claude_invoker.mcp import http
from claude_invoker.mcp.http import HttpServer
from claude_invoker.mcp.relay import Failed

SECRET = "s3cret-of-the-tests"
RESULT = {"content": [{"type": "text", "text": "done"}], "isError": False}


def reply(body: bytes | str, kind: str = "application/json", status: str = "200 OK", *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else body.encode()
    head = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(content)}", *headers]
    return "\r\n".join((*head, "", "")).encode() + content


def answer(number: int, **members: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number} | (members or {"result": RESULT}))


def stream(*data: str) -> bytes:
    return reply("".join(f"event: message\r\ndata: {each}\r\n\r\n" for each in data), "text/event-stream")


def in_pieces(pieces: list[bytes]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


class Hostile:
    """Begins as a server does, and answers calls with these bytes."""

    def __init__(self) -> None:
        self.says = b""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            line, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines if each)}
            body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
            self.asked.append((body.get("method", line.split()[0]), headers))
            match body.get("method"):
                case "initialize":
                    writer.write(
                        reply(
                            answer(body["id"], result={}),
                            "application/json",
                            "200 OK",
                            "mcp-session-id: s1",
                            "set-cookie: of=another",
                        )
                    )
                case "notifications/initialized":
                    writer.write(reply("", status="202 Accepted"))
                case _:
                    writer.write(self.says)
                    if b"content-length" not in self.says.partition(b"\r\n\r\n")[0]:
                        writer.close()
                        return


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return b""


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[Hostile, HttpServer]]:
    stand = Hostile()
    listening = await asyncio.start_server(stand.serve, "127.0.0.1", 0)
    stand.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/mcp"
    server = HttpServer(stand.url, "Authorization", lambda: f"Bearer {SECRET}")
    try:
        yield stand, server
    finally:
        stand.says = reply("")
        await server.close()
        listening.close()


ANSWERS = [
    reply(answer(3)),
    stream(answer(3)),
    stream('{"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}', answer(3)),
    stream('{"jsonrpc": "2.0", "id": 3, "method": "sampling/createMessage", "params": {}}', answer(3)),
    stream(answer(2, result={"content": []}), answer(3)),
    reply(answer(3), "application/json; charset=utf-8"),
    in_pieces([bytes((byte,)) for byte in stream(answer(2), answer(3)).partition(b"\r\n\r\n")[2]]),
    in_pieces([b"x" * 1000] * 4000 + [b"\n", stream(answer(3)).partition(b"\r\n\r\n")[2]]),
]


@pytest.mark.parametrize("says", ANSWERS)
async def test_an_answer_is_found_whatever_comes_before_it(says: bytes) -> None:
    async with hostile() as (stand, server):
        stand.says = says
        assert await server.call("search", {}) == RESULT
        assert [method for method, _ in stand.asked] == ["initialize", "notifications/initialized", "tools/call"]
        assert stand.asked[0][1]["authorization"] == f"Bearer {SECRET}" and "mcp-session-id" not in stand.asked[0][1]
        assert stand.asked[2][1]["mcp-session-id"] == "s1"
    assert stand.asked[-1][0] == "DELETE"


ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b": x\n" * (http.MAX_ANSWER // 4 + 9)
HOSTILE = {
    "somewhere else": (reply("", status="307 Temporary Redirect"), "it answers 307"),
    "an error that quotes": (reply(f"you sent {SECRET}", status="401 Unauthorized"), "it answers 401"),
    "its credential": (reply(answer(3, result={"content": [{"type": "text", "text": SECRET}]})), "sent back the credential"),
    "its credential in an error": (reply(answer(3, error={"code": 1, "message": SECRET})), "sent back the credential"),
    "its credential in the stream": (stream(answer(9, result={"text": SECRET}), answer(3)), "sent back the credential"),
    "an error": (reply(answer(3, error={"code": 1, "message": "no\n\x1b[2J!"})), "it refuses: no  [2J!"),
    "another's answer": (reply(answer(4)), "ended its answer without a result"),
    "nothing": (stream(), "ended its answer without a result"),
    "HTML": (reply("<html>", "text/html"), "neither JSON nor an event stream"),
    "no JSON": (reply("{"), "what is not understood"),
    "deep": (reply("[" * 100_000), "what is not understood"),
    "a result that is none": (reply(answer(3, result={"content": "text"})), "what is not understood"),
    "a null": (reply(answer(3, result=None)), "what is not understood"),
    "compressed": (reply(b"\x1f\x8b", "application/json", "200 OK", "content-encoding: gzip"), "what was not asked for"),
    "large": (reply(b" " * (http.MAX_ANSWER + 1)), "more than 4 MiB"),
    "a stream without end": (ENDLESS, "more than 4 MiB"),
    "crumbs without end": (in_pieces([b"x"] * (http.MAX_ANSWER // 64 + 9)), "more than 4 MiB"),
    "no HTTP": (b"SSH-2.0\r\n\r\n", "it cannot be reached: RemoteProtocolError"),
    "cut off": (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{", "what is not understood"),
}  # fmt: skip


@pytest.mark.parametrize(("says", "why"), HOSTILE.values(), ids=HOSTILE)
async def test_what_is_no_answer_is_an_error_in_our_words(says: bytes, why: str) -> None:
    async with hostile() as (stand, server):
        stand.says = says
        with pytest.raises(Failed) as failed:
            await server.call("search", {})
        assert why in str(failed.value) and SECRET not in str(failed.value) and str(failed.value).isprintable()
        stand.says = reply(answer(4))  # and it is asked again as if nothing had been
        assert await server.call("search", {}) == RESULT


async def test_no_run_has_anothers_session_or_cookies() -> None:
    async with hostile() as (stand, server):
        stand.says = reply(answer(3))
        await server.call("search", {})
        second = HttpServer(stand.url, "Authorization", None)
        await second.call("search", {})
        first_of_second = stand.asked[3][1]
        assert stand.asked[3][0] == "initialize"
        assert not {"cookie", "mcp-session-id", "authorization"} & first_of_second.keys()
        stand.says = reply("")
        await second.close()


async def test_pages_of_tools_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile() as (stand, server):
        tools = [{"name": "a", "inputSchema": {}, "title": "x", "_meta": {}}]
        stand.says = stream(*(answer(n, result={"tools": tools, "nextCursor": "again"}) for n in range(3, 40)))
        assert await server.tools() == [{"name": "a", "inputSchema": {}, "description": ""}] * 20
        assert len([method for method, _ in stand.asked if method == "tools/list"]) == 20


async def test_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CALL_S", 0.2)
    monkeypatch.setattr(http, "CLOSE_S", 0.2)
    async with hostile() as (stand, server):
        stand.says = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        with pytest.raises(Failed, match=r"does not answer within 0\.2 s"):
            await server.call("search", {})


async def test_a_secret_that_is_gone_meanwhile_is_said() -> None:
    def gone() -> str:
        raise Failed("its secret cannot be used: tickets cannot be read")

    async with hostile() as (stand, _):
        server = HttpServer(stand.url, "Authorization", gone)
        with pytest.raises(Failed, match="its secret cannot be used"):
            await server.tools()
        assert stand.asked == []
        await server.close()
