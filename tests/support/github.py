"""A stand-in of three requests of GitHub's REST API, `apps/get-repo-installation`,
`apps/create-installation-access-token` and `pulls/create`. What it is asked and what it answers is held against its
OpenAPI description (`github_described`), and where one is otherwise the test fails."""

from __future__ import annotations

import datetime
import email.utils
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import github_described
from tests.support.waiting import HANG_S

APP = "Iv23liAppOfTheTests"
INSTALLATION = 4711
DOCUMENTED = {"documentation_url": "https://docs.github.com/rest"}


@dataclass
class GitHub:
    """`installed`: repositories; `granted`: what the installation may at most. `ahead_s`: how much later it is there.
    `answer`: what all requests get instead, (status, headers, message)."""

    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    installed: set[str] = field(default_factory=set)
    granted: dict[str, str] = field(default_factory=lambda: {"contents": "write", "metadata": "read"})
    ahead_s: float = 0.0
    lasts_s: float = 3600.0
    answer: tuple[int, dict[str, str], str] | None = None
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    """What was asked or answered otherwise than the description says."""
    url: str = ""

    @property
    def pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode()

    def now(self) -> float:
        return time.time() + self.ahead_s

    def lets_in(self, password: str, purpose: str) -> bool:
        """At the git server, as `GitServer.lets_in`."""
        token = self.tokens.get(password)
        if token is None or token["until"] < self.now():
            return False
        return purpose == "read" or token["permissions"].get("contents") == "write"

    def answered(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        self.requests.append((method, path))
        if self.answer is not None:
            status, headers, message = self.answer
            return status, headers, {"message": message}
        status, headers, document = self.truly_answered(method, path, authorization, body)
        self.unlike += github_described.problems(method, path, body, status, document)
        return status, headers, document

    def truly_answered(
        self, method: str, path: str, authorization: str, body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        if method == "POST" and (found := re.fullmatch(r"/repos/([^/]+/[^/]+)/pulls", path)):
            return self.opened(found[1], self.tokens.get(authorization.removeprefix("Bearer ")), json.loads(body))
        if problem := self.problem_of(authorization.removeprefix("Bearer ")):
            return 401, {}, {"message": problem}
        if method == "GET" and (found := re.fullmatch(r"/repos/([^/]+/[^/]+)/installation", path)):
            if found[1] not in self.installed:
                return 404, {}, {"message": "Not Found"}
            return 200, {}, self.installation(found[1].split("/")[0])
        if method == "POST" and path == f"/app/installations/{INSTALLATION}/access_tokens":
            return self.created(json.loads(body))
        return 404, {}, {"message": "Not Found"}

    def created(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        order = ("", "read", "write")
        for name, level in asked["permissions"].items():
            if order.index(level) > order.index(self.granted.get(name, "")):
                message = "The permissions requested are not granted to this installation."
                return 422, {}, {"message": message, **DOCUMENTED}
        token = f"ghs_{len(self.tokens):036}"
        until = self.now() + self.lasts_s
        self.tokens[token] = asked | {"until": until}
        repositories = [
            {"id": number, "node_id": f"R_{number}", "name": name, "full_name": f"org/{name}", "private": True}
            for number, name in enumerate(asked["repositories"])
        ]
        return (
            201,
            {},
            asked
            | {
                "token": token,
                "expires_at": written(until),
                "repository_selection": "selected",
                "repositories": repositories,
            },
        )

    def installation(self, owner: str) -> dict[str, Any]:
        at = written(self.now())
        return {
            "id": INSTALLATION,
            "account": {"login": owner, "id": 1, "type": "Organization"},
            "repository_selection": "selected",
            "access_tokens_url": f"https://api.github.com/app/installations/{INSTALLATION}/access_tokens",
            "repositories_url": "https://api.github.com/installation/repositories",
            "html_url": f"https://github.com/organizations/{owner}/settings/installations/{INSTALLATION}",
            "app_id": 1,
            "client_id": APP,
            "target_id": 1,
            "target_type": "Organization",
            "permissions": self.granted,
            "events": [],
            "created_at": at,
            "updated_at": at,
            "single_file_name": None,
            "app_slug": "tests",
            "suspended_by": None,
            "suspended_at": None,
        }

    def opened(
        self, repository: str, token: dict[str, Any] | None, asked: dict[str, Any]
    ) -> tuple[int, dict[str, str], Any]:
        if token is None or token["until"] < self.now():
            return 401, {}, {"message": "Bad credentials"}
        if (
            token["permissions"].get("pull_requests") != "write"
            or repository.split("/")[1] not in token["repositories"]
        ):
            return 403, {}, {"message": "Resource not accessible by integration"}
        if any(asked["head"] == known["head"] for known in self.pulls):
            said = [{"resource": "PullRequest", "code": "custom", "message": "A pull request already exists"}]
            return 422, {}, {"message": "Validation Failed", "errors": said, **DOCUMENTED}
        self.pulls.append(asked)
        number = len(self.pulls)
        owner = repository.split("/")[0]
        sides = {
            side: {"label": f"{owner}:{asked[side]}", "ref": asked[side], "sha": "0" * 40, "user": None, "repo": None}
            for side in ("head", "base")
        }
        return (
            201,
            {},
            asked
            | sides
            | {
                "id": number,
                "node_id": f"PR_{number}",
                "number": number,
                "url": f"https://api.github.com/repos/{repository}/pulls/{number}",
                "html_url": f"https://github.com/{repository}/pull/{number}",
                "state": "open",
                "user": {"login": "tests[bot]", "id": 2, "type": "Bot"},
                "merged": False,
                "draft": False,
                "created_at": written(self.now()),
            },
        )

    def problem_of(self, token: str) -> str | None:
        try:
            claims = jwt.decode(
                token, self.key.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.PyJWTError:
            return "A JSON web token could not be decoded"
        if claims.get("iss") != APP:
            return "Integration not found"
        if not isinstance(claims.get("iat"), int) or claims["iat"] > self.now():
            return "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
        if claims["exp"] <= self.now():
            return "'Expiration time' claim ('exp') must be a numeric value representing the future time"
        if claims["exp"] > self.now() + 600:
            return "'Expiration time' claim ('exp') is too far in the future"
        return None


def written(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def github_serving() -> Iterator[GitHub]:
    served = GitHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, document = served.answered(
                self.command, self.path, self.headers.get("Authorization", ""), body
            )
            said = json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET

        def date_time_string(self, timestamp: float | None = None) -> str:
            return email.utils.formatdate(served.now(), usegmt=True)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join(HANG_S)
    assert served.unlike == [], served.unlike
