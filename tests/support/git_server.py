"""A real git server on loopback: git's own http-backend, with a password where one is wanted."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kong_claude_local.git_server import body_of, serve_one
from tests.support.waiting import HANG_S

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.com"))},
}  # fmt: skip


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *arguments],
        cwd=folder, env=ENVIRONMENT, input=stdin, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Gitlink:
    """A submodule, in the place of a file: at which commit."""

    commit: str


class GitServer:
    """Serves the bare repositories in `root`, which are made by `create` and filled by `commit`."""

    def __init__(self, root: Path, password: str | None) -> None:
        self.root = root
        self.password = password
        self.requests: list[tuple[str, str]] = []
        self.down = False
        self.redirect: str | None = None
        self.authorizations: list[str] = []
        self.lets_in: Callable[[str, str], bool] | None = None
        """Whether a password may do that (read, write), where there is not one that may do all."""
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served._serve(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetches(self) -> int:
        """How often objects or refs were asked for, each fetch once: its first request."""
        return sum(method == "POST" and path.endswith("/git-upload-pack") for method, path in self.requests)

    def create(self, name: str) -> Path:
        path = self.root / f"{name}.git"
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--bare", "--initial-branch=main")
        git(path, "config", "http.receivepack", "true")
        return path

    def commit(
        self, name: str, files: Mapping[str, str | bytes | Gitlink | None], branch: str = "main", message: str = "x"
    ) -> str:
        """A commit on a branch that adds, changes and (None) removes files; (content, mode) by plumbing, so that any path
        can be in it. Its id."""
        path = self.root / f"{name}.git"
        parent = subprocess.run(
            ["git", "rev-parse", "--verify", "-q", f"refs/heads/{branch}"], cwd=path, capture_output=True, text=True
        ).stdout.strip()
        lines = []
        for file, held in files.items():
            if held is None:
                lines.append(f"0 {'0' * 40}\t{file}")
                continue
            if isinstance(held, Gitlink):
                lines.append(f"160000 {held.commit}\t{file}")
                continue
            mode, _, text = held.partition(":link:") if isinstance(held, str) else ("", "", "")
            raw = text.encode() if text else held.encode() if isinstance(held, str) else held
            blob = git(path, "hash-object", "-w", "--stdin", stdin=raw)
            lines.append(f"{'120000' if text else '100644'} {blob}\t{file}")
            del mode
        index = {"GIT_INDEX_FILE": str(path / "index.tmp")}
        (path / "index.tmp").unlink(missing_ok=True)

        def with_index(*arguments: str, stdin: bytes = b"") -> str:
            return subprocess.run(
                ["git", "-c", "core.protectNTFS=false", "-c", "core.protectHFS=false", *arguments],
                cwd=path, env=ENVIRONMENT | index, input=stdin, capture_output=True, check=True,
            ).stdout.decode().strip()  # fmt: skip

        if parent:
            with_index("read-tree", parent)
        with_index("update-index", "--index-info", stdin="".join(f"{line}\n" for line in lines).encode())
        tree = with_index("write-tree")
        made = git(path, "commit-tree", tree, "-m", message, *(["-p", parent] if parent else []))
        git(path, "update-ref", f"refs/heads/{branch}", made)
        return made

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        self.requests.append((request.command, path))
        given = request.headers.get("Authorization")
        if given is not None:
            self.authorizations.append(given)
        body = body_of(request)
        if self.down:
            request.send_error(503)
            return
        if self.redirect is not None:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.password is not None or self.lets_in is not None:
            user, _, password = base64.b64decode((given or "").removeprefix("Basic ")).decode().partition(":")
            is_pushed = path.endswith("/git-receive-pack") or "git-receive-pack" in query
            is_let_in = password == self.password or (
                self.lets_in is not None and self.lets_in(password, "write" if is_pushed else "read")
            )
            if user != "x-access-token" or not is_let_in:
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="git"')
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        serve_one(self.root, request, body)


@contextmanager
def serving(root: Path, password: str | None = None) -> Iterator[GitServer]:
    server = GitServer(root, password)
    thread = threading.Thread(target=server._server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server._server.shutdown()
    server._server.server_close()
    thread.join(HANG_S)
