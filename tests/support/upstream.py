"""An API of a test's own: what reaches it is kept byte for byte, and what it answers is the test's to say, piece by piece."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import HANG_S


@dataclass
class Asked:
    """`headers`: names in lower case, each with all its values."""

    target: str
    headers: dict[str, list[str]]
    body: bytes
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the client has gone before the answer was over."""


Pieces = Iterable[bytes]
Answer = Callable[[Asked], tuple[int, list[tuple[str, str]], Pieces]]


def message(model: str = "claude-haiku-4-5", *, output: int = 3) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "Well."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": output},
    }


def event(name: str, **members: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps({"type": name, **members}).encode())


def events(words: Iterable[str], model: str = "claude-haiku-4-5") -> Iterator[bytes]:
    """A stream, an event a piece. Each word counts as a token."""
    begun = message(model, output=1) | {"content": [], "stop_reason": None}
    yield event("message_start", message=begun)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    count = 0
    for word in words:
        count += 1
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": count})
    yield event("message_stop")


def as_json(document: Any, status: int = 200, *headers: tuple[str, str]) -> Answer:
    return lambda asked: (status, [("content-type", "application/json"), *headers], [json.dumps(document).encode()])


def as_stream(pieces: Callable[[], Pieces]) -> Answer:
    return lambda asked: (200, [("content-type", "text/event-stream")], pieces())


class Upstream:
    """`answer` is asked for each request; counting tokens is always 10."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Answer = as_json(message())
        self.url = ""

    @property
    def messages(self) -> list[Asked]:
        return [each for each in self.asked if each.target.partition("?")[0] == "/v1/messages"]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers: dict[str, list[str]] = {}
        for name, value in handler.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        asked = Asked(handler.path, headers, body)
        self.asked.append(asked)
        counting = handler.path.startswith("/v1/messages/count_tokens")
        status, answered, pieces = (as_json({"input_tokens": 10}) if counting else self.answer)(asked)
        try:
            handler.send_response_only(status)
            for name, value in (*answered, ("transfer-encoding", "chunked")):
                handler.send_header(name, value)
            handler.end_headers()
            for piece in pieces:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            asked.left.set()
            handler.close_connection = True


@contextmanager
def upstream(context: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """As long as the block runs, on loopback; with `context` over TLS."""
    found = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            found.serve(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    found.url = f"http{'' if context is None else 's'}://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join(HANG_S)
        server.server_close()
