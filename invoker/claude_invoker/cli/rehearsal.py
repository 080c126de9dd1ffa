"""A run before the first: the real CLI calls Bash, which tries what no command may do.

That the CLI asks the API by a socket and takes our shell is documented nowhere, and it would go on without: so it is
tried at each start. The API is played here, for two requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from claude_invoker.cli.command import Shape
from claude_invoker.cli.launcher import Launcher
from claude_invoker.cli.messages import Result
from claude_invoker.cli.process import CliError, Disobeyed
from claude_invoker.isolation.again import say_once_more, too_late

_WITHIN_S = 120.0
"""A second or two on a quiet machine: so long only where something hangs."""
_SHAPE = Shape(("Bash",), 3, 1.0)
_BEGUN, _DONE = "rehearsal-begun", "rehearsal-done"


def _command(neighbour: Path, port: int) -> str:
    """Bash alone, no program that might be missing. Each line says what has succeeded."""
    return f"""
echo {_BEGUN}
(: < {neighbour}) && echo "reads a neighbour's file"
cli=${{CLAUDE_PID:-$PPID}}
(: < /proc/$cli/environ) && echo "reads the CLI's environment"
(: < /proc/$cli/mem) && echo "opens the CLI's memory"
(: > "$CLAUDE_CONFIG_DIR/planted") && echo "writes the CLI's configuration"
refused=$(kill -0 $cli 2>&1) && echo "signals the CLI"
[[ $refused == *"not permitted"* ]] || echo "signals nobody: $refused"
(: < /dev/tcp/127.0.0.1/{port}) && echo "reaches the network"
echo {_DONE}
"""


async def rehearse(launcher: Launcher, folder: Path) -> str | None:
    """What a command has reached that it should not, or why that could not be found out; None where all is well.

    `folder`: a directory of ours that runs can pass through. What comes too late is tried again once: a machine
    that has too much to do is not taken for one that keeps runs less well.
    """
    try:
        return await _once(launcher, folder)
    except TimeoutError:
        say_once_more("a command of the real CLI", _WITHIN_S)
    try:
        return await _once(launcher, folder)
    except TimeoutError:
        return too_late(_WITHIN_S)


async def _once(launcher: Launcher, folder: Path) -> str | None:
    """Raises TimeoutError."""
    neighbour = folder / "neighbour"
    neighbour.write_text("for anybody, as far as its mode goes\n")
    neighbour.chmod(0o644)
    api = folder / "rehearsal" / "sock"
    api.parent.mkdir(mode=0o711)
    api.parent.chmod(0o711)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = _command(neighbour, listener.getsockname()[1])
        said: list[str] = []
        server = await asyncio.start_unix_server(
            lambda reader, writer: _answer(reader, writer, command, said), api, limit=1 << 20
        )
        api.chmod(0o666)
        try:
            async with asyncio.timeout(_WITHIN_S):
                await _run(replace(launcher, proxy=_Rehearsed(api), ready_within_s=2 * _WITHIN_S))
        except (CliError, Disobeyed) as error:
            return f"the CLI has not called Bash: {error}"
        finally:
            server.close()
            for path in (neighbour, api):
                path.unlink(missing_ok=True)
            api.parent.rmdir()
    return judged("\n".join(said))


def judged(said: str) -> str | None:
    """From what the command has printed to what is wrong; None: nothing."""
    if _BEGUN not in said or _DONE not in said:
        return "the CLI's Bash does not run a command"
    between = said.split(_BEGUN, 1)[1].split(_DONE, 1)[0]
    reached = [
        line for line in between.splitlines() if line.startswith(("reads", "opens", "writes", "signals", "reaches"))
    ]
    return f"a command {', '.join(reached)}" if reached else None


class _Rehearsed:
    """In the key proxy's place: there is no key to be had."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def issue(self) -> str:
        return "rehearsal"

    def revoke(self, token: str) -> None:
        pass


async def _run(launcher: Launcher) -> None:
    ready = await launcher.launch(_SHAPE)
    try:
        await ready.process.begin("sonnet", None, None, ({"type": "text", "text": "rehearsal"},))
        async for message in ready.process.messages():
            if isinstance(message, Result):
                break
    finally:
        await launcher.dispose(ready)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str, said: list[str]) -> None:
    """One request for each connection: a call of Bash first, an end where there is a result of it."""
    with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        if head.startswith("POST /v1/messages?") or head.startswith("POST /v1/messages "):
            results = _results(body)
            said += results
            content = {"type": "text", "text": "done"} if results else _CALL | {"input": {"command": command}}
            kind, text = "text/event-stream", _stream(content)
        else:
            kind, text = "application/json", b"{}"
        status = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        writer.write(status.encode() + text)
        await writer.drain()
    writer.close()


_CALL = {"type": "tool_use", "id": "toolu_rehearsal", "name": "Bash"}


def _results(body: bytes) -> list[str]:
    """What tools have answered, of a request to the API."""
    contents = [message["content"] for message in orjson.loads(body)["messages"]]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    answers = [block.get("content") for block in blocks if block.get("type") == "tool_result"]
    return [orjson.dumps(answer).decode().replace("\\n", "\n") for answer in answers]


def _stream(content: dict[str, Any]) -> bytes:
    """A message with one block, as the API streams it."""
    if content["type"] == "text":
        start, delta, reason = content | {"text": ""}, {"type": "text_delta", "text": content["text"]}, "end_turn"
    else:
        start = content | {"input": {}}
        delta = {"type": "input_json_delta", "partial_json": orjson.dumps(content["input"]).decode()}
        reason = "tool_use"
    usage = {"input_tokens": 1, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_rehearsal", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": start},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)
