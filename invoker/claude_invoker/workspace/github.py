"""A GitHub App's tokens, each for one repository and one purpose, minted when a server is asked and kept nowhere; and
pull requests.

As GitHub documents it ("Generating an installation access token for a GitHub App", "Create a pull request", REST API
2022-11-28); tried with a stand-in of that, never with GitHub itself.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx
import jwt
import msgspec

from claude_contract import secret_file
from claude_invoker.workspace import git
from claude_invoker.workspace.git import Access, GitFailed
from claude_invoker.workspace.repository import GitHubApp, Wanted

Purpose = Literal["read", "write"]
_TIMEOUT_S = 15.0
_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_BACK_S, _AHEAD_S = 60, 540
"""A JWT begins a minute ago, for clocks that differ, and may last ten minutes."""
_SKEW_S = 30.0
_LIMITED_S = 60.0
_LONGEST_LIMIT_S = 3600.0
_Answer = TypeVar("_Answer")


class NoToken(GitFailed):
    """GitHub gives none; the text says why, for the log."""


class NotInstalled(NoToken):
    """The app is not installed at such a repository, or there is none."""


class _Installation(msgspec.Struct):
    id: int


class _Token(msgspec.Struct):
    token: str


class _PullRequest(msgspec.Struct):
    html_url: str


@contextlib.asynccontextmanager
async def access(wanted: Wanted, uid: int | None, contents: Purpose) -> AsyncIterator[Access]:
    """How git, as user `uid`, may ask a repository's server, to read or to push. Raises NoToken, SecretFileError,
    OSError."""
    app = wanted.source.github_app
    password = None if app is None else await _standing(app).minted(wanted.name, {"contents": contents})
    with git.access(wanted.source, uid, password) as found:
        yield found


async def open_pull_request(wanted: Wanted, head: str, base: str, title: str, body: str) -> str:
    """From one branch of a repository to another. Where it is. Raises NoToken, SecretFileError."""
    assert wanted.source.github_app is not None
    standing = _standing(wanted.source.github_app)
    token = await standing.minted(wanted.name, {"pull_requests": "write"})
    asked = {"head": head, "base": base, "title": title, "body": body}
    async with standing.client() as client:
        opened = await standing.ask(client, "POST", f"/repos/{wanted.name}/pulls", _PullRequest, asked, token)
    return ascii(opened.html_url[:500])[1:-1]


@functools.cache
def _standing(app: GitHubApp) -> _Standing:
    return _Standing(app)


@dataclass
class _Standing:
    """What is known of how GitHub takes an app."""

    app: GitHubApp
    ahead_s: float = 0.0
    """How much later it is there."""
    limited_until: float = 0.0

    async def minted(self, name: str, permissions: Mapping[str, str]) -> str:
        """A token for this repository alone. Raises NoToken, SecretFileError."""
        owner, _, repository = name.partition("/")
        if not repository or "/" in repository:
            raise NotInstalled(f"{name} is no name of a repository at GitHub, such as owner/name")
        async with self.client() as client:
            found = await self.ask(client, "GET", f"/repos/{owner}/{repository}/installation", _Installation)
            asked = {"repositories": [repository], "permissions": permissions}
            path = f"/app/installations/{found.id}/access_tokens"
            token = (await self.ask(client, "POST", path, _Token, asked)).token
        if not token.isascii() or not token.isprintable():  # git reads lines
            raise NoToken("GitHub's API has sent what is no token")
        return token

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.app.api, headers=_HEADERS, timeout=_TIMEOUT_S, follow_redirects=False)

    async def ask(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        kind: type[_Answer],
        body: Any = None,
        token: str | None = None,
    ) -> _Answer:
        """As the app, or with a token of an installation's. Raises NoToken, SecretFileError."""
        if time.time() < self.limited_until:
            raise NoToken(f"GitHub's rate limit is used up for {self.limited_until - time.time():.0f} s more")
        try:
            answer = await client.request(method, path, json=body, headers=self._authorization(token))
            if answer.status_code == 401 and token is None and self._is_set_right(answer):
                answer = await client.request(method, path, json=body, headers=self._authorization(None))
        except httpx.HTTPError as error:
            raise NoToken(f"GitHub's API does not answer: {type(error).__name__}") from error
        if answer.is_success:
            try:
                return msgspec.json.decode(answer.content, type=kind)
            except msgspec.MsgspecError as error:
                raise NoToken("GitHub's API has sent what is not understood") from error
        if answer.status_code == 404:
            raise NotInstalled("the GitHub App is not installed there, or there is no such repository")
        self._note_limit(answer)
        raise NoToken(f"GitHub's API answers {answer.status_code}: {_said(answer)}")

    def _authorization(self, token: str | None) -> dict[str, str]:
        if token is not None:
            return {"Authorization": f"Bearer {token}"}
        now = int(time.time() + self.ahead_s)
        claims = {"iat": now - _BACK_S, "exp": now + _AHEAD_S, "iss": str(self.app.id)}
        try:
            signed = jwt.encode(claims, secret_file.read(self.app.key_file) + "\n", algorithm="RS256")
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            if isinstance(error, secret_file.SecretFileError):
                raise
            raise NoToken(f"{self.app.key_file} holds no RSA private key in PEM") from None
        return {"Authorization": f"Bearer {signed}"}

    def _is_set_right(self, answer: httpx.Response) -> bool:
        """Whether our clock was wrong by theirs, and is not any more."""
        try:
            theirs = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return False
        ahead = theirs - time.time()
        if abs(ahead - self.ahead_s) < _SKEW_S:
            return False
        self.ahead_s = ahead
        return True

    def _note_limit(self, answer: httpx.Response) -> None:
        """Who asks on while he is limited is shut out for longer."""
        after, reset = answer.headers.get("retry-after", ""), answer.headers.get("x-ratelimit-reset", "")
        now, until = time.time(), 0.0
        if answer.status_code in (403, 429) and after.isdecimal():
            until = now + int(after)
        elif answer.status_code in (403, 429) and answer.headers.get("x-ratelimit-remaining") == "0":
            until = int(reset) - self.ahead_s if reset.isdecimal() else now + _LIMITED_S
        elif answer.status_code == 429:
            until = now + _LIMITED_S
        self.limited_until = min(until, now + _LONGEST_LIMIT_S)


def _said(answer: httpx.Response) -> str:
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return "without a reason"
    return ascii(message[:200])[1:-1]
