"""A git server to try runs on repositories with: `python -m kong_claude_local.git_server FOLDER [--port N]`.

It serves the bare repositories below a folder by git's own http-backend, to whoever is on this machine: it asks for no
password, and takes pushes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CONFIGURATION = {"http.receivepack": "true", "safe.directory": "*"}
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": str(len(_CONFIGURATION)),
    **{f"GIT_CONFIG_KEY_{number}": name for number, name in enumerate(_CONFIGURATION)},
    **{f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(_CONFIGURATION.values())},
}


def serve_one(root: Path, request: BaseHTTPRequestHandler, body: bytes) -> None:
    """Answers a request, whose body was read, from the bare repositories below `root`."""
    path, _, query = request.path.partition("?")
    environment = ENVIRONMENT | {
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": request.command,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
    }
    said = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False).stdout
    head, _, content = said.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
    request.send_response(int(fields.pop("Status", "200").split()[0]))
    for name, value in fields.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def body_of(request: BaseHTTPRequestHandler) -> bytes:
    """Of any length, in chunks or not."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kong_claude_local.git_server", description=__doc__)
    parser.add_argument("folder", type=Path, help="below it lie the repositories: FOLDER/org/app.git")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    root: Path = arguments.folder.resolve()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            serve_one(root, self, body_of(self))

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler) as server:
        server.daemon_threads = True
        print(f"{root} is served at http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
