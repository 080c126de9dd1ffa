"""Tokens, key sets and headers of real issuers and clients: what they send passes, and what must not is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.interop.tokens import CASES, Case
from tests.jwt_claims.conftest import Send


@pytest.fixture(scope="module")
def published() -> Iterator[str]:
    """Where the key set of each case is, by its number."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = CASES[int(self.path[1:])].document()
            body = (document if isinstance(document, str) else json.dumps(document)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_real_issuers_and_clients_send(send: Send, published: str, case: Case) -> None:
    event, _ = send(case.config(f"{published}/{CASES.index(case)}"), {"x-request-id": "r-1", **case.sent(case.token())})
    if not case.refused:
        assert event.exit is None, event.exit
    else:
        assert event.exit is not None
        assert case.refused in f"{event.exit.status} {event.exit.body}"


def test_each_case_is_told_apart() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 80
