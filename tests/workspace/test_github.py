"""A GitHub App's tokens, by a stand-in of its API and a real git server that lets in who has one."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.problem import Problem
from claude_invoker.workspace import github as the_github
from claude_invoker.workspace.git import Bounds
from claude_invoker.workspace.repository import GitHubApp, Push, Wanted, load
from tests.support import github_described
from tests.support.git_server import git
from tests.support.github import APP, GitHub, github_serving
from tests.workspace.conftest import USER, Place


@pytest.fixture
def github(place: Place) -> Iterator[GitHub]:
    the_github._standing.cache_clear()
    with github_serving() as served:
        (place.folder / "app.pem").write_text(served.pem)
        (place.folder / "app.pem").chmod(0o400)
        password, place.server.password = place.server.password, None
        place.server.lets_in = served.lets_in
        yield served
        place.server.password, place.server.lets_in = password, None


def created(place: Place, github: GitHub, name: str) -> str:
    place.server.create(name)
    github.installed.add(name)
    return place.server.commit(name, {"a.txt": "one\n"})


def wanted(place: Place, github: GitHub, name: str, **source: Any) -> Wanted:
    app = GitHubApp(id=APP, key_file=place.folder / "app.pem", api=github.url)
    found = place.wanted(name, token_file=None, github_app=app, **source)
    assert found.source.problem() is None
    return found


async def test_each_fetch_has_a_token_of_its_own_that_may_read_one_repository(place: Place, github: GitHub) -> None:
    commit = created(place, github, "org/minted")
    mirror = place.mirror("org/minted")
    for _ in range(2):
        assert await mirror.find(wanted(place, github, "org/minted")) == ("refs/heads/main", commit)
    assert len(github.tokens) == 2
    for token in github.tokens.values():
        assert token["repositories"] == ["minted"] and token["permissions"] == {"contents": "read"}


async def test_a_token_that_has_expired_is_not_used_again(place: Place, github: GitHub) -> None:
    created(place, github, "org/expires")
    mirror = place.mirror("org/expires")
    await mirror.find(wanted(place, github, "org/expires"))
    for token in github.tokens.values():
        token["until"] = 0
    newer = place.server.commit("org/expires", {"a.txt": "two\n"})
    assert (await mirror.find(wanted(place, github, "org/expires")))[1] == newer
    github.lasts_s = -1
    with pytest.raises(Problem) as refused:
        await mirror.find(wanted(place, github, "org/expires"))
    assert refused.value.status == 503, "the control: this server looks at the time"


@pytest.mark.parametrize("ahead_s", [-7200, -300, 600, 7200])
async def test_a_clock_that_is_wrong_is_set_by_theirs(place: Place, github: GitHub, ahead_s: float) -> None:
    name = f"org/clock{ahead_s}"
    created(place, github, name)
    github.ahead_s = ahead_s
    asked = wanted(place, github, name)
    await place.mirror(name).find(asked)
    assert github.requests[0] == github.requests[1], "the first was refused"
    before = len(github.requests)
    await place.mirror(name).find(asked)
    assert len(github.requests) == before + 2, "the next time it is known"
    github.ahead_s = 0
    await place.mirror(name).find(asked)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((401, {}, "A JSON web token could not be decoded"), 503, "401: A JSON web token could not be decoded"),
        ((403, {}, "This installation has been suspended"), 503, "403: This installation has been suspended"),
        ((404, {}, "Not Found"), 404, "not installed"),
        ((301, {"Location": "http://127.0.0.1:1/x"}, "Moved Permanently"), 503, "301: Moved Permanently"),
        ((500, {}, "x\ny"), 503, r"500: x\ny"),
        ((200, {}, "no installation"), 503, "not understood"),
    ],
)
async def test_what_github_says_no_to(
    place: Place,
    github: GitHub,
    caplog: pytest.LogCaptureFixture,
    answer: tuple[int, dict[str, str], str],
    status: int,
    said: str,
) -> None:
    name = f"org/no{answer[0]}"
    created(place, github, name)
    github.answer = answer
    with caplog.at_level(logging.WARNING), pytest.raises(Problem) as refused:
        await place.mirror(name).find(wanted(place, github, name))
    assert refused.value.status == status and said in caplog.text
    assert not place.mirror(name).path.exists()
    github.answer = None
    await place.mirror(name).find(wanted(place, github, name))  # the control


async def test_the_app_is_not_installed_there(place: Place, github: GitHub) -> None:
    created(place, github, "org/apart")
    github.installed.clear()
    with pytest.raises(Problem) as refused:
        await place.mirror("org/apart").find(wanted(place, github, "org/apart"))
    assert (refused.value.status, refused.value.kind) == (404, "no-repository")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "RESET"}),
        (403, {"retry-after": "60"}),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "RESET"}),
        (429, {}),
    ],
)
async def test_who_is_limited_asks_no_more(
    place: Place, github: GitHub, caplog: pytest.LogCaptureFixture, status: int, headers: dict[str, str]
) -> None:
    created(place, github, name := f"org/limited{status}-{len(headers)}-{'retry-after' in headers}")
    at = {field: value.replace("RESET", str(int(time.time()) + 60)) for field, value in headers.items()}
    github.answer = status, at, "API rate limit exceeded"
    for _ in range(3):
        with caplog.at_level(logging.WARNING), pytest.raises(Problem) as refused:
            await place.mirror(name).find(wanted(place, github, name))
        assert refused.value.status == 503
    assert len(github.requests) == 1 and "rate limit is used up" in caplog.text
    github.answer = None
    the_github._standing(wanted(place, github, name).source.github_app).limited_until = time.time() - 1
    await place.mirror(name).find(wanted(place, github, name))


async def test_a_push_has_a_token_that_may_write_and_none_is_given_that_is_not_granted(
    place: Place, github: GitHub
) -> None:
    created(place, github, "org/pushed")
    bare = place.server.root / "org/pushed.git"
    asked = wanted(place, github, "org/pushed", push=Push("claude/*", "C <c@example.com>"))
    commit = git(bare, "rev-parse", "main")
    mirror = place.mirror("org/pushed")
    await mirror.find(asked)

    async def push() -> None:
        async with the_github.access(asked, USER, "write") as access:
            await access.ask(
                mirror.path,
                USER,
                Bounds(),
                "push",
                "--quiet",
                asked.url,
                f"{commit}:refs/heads/claude/1",
            )

    await push()
    assert git(bare, "rev-parse", "claude/1") == commit
    assert [token["permissions"]["contents"] for token in github.tokens.values()] == ["read", "write"]
    github.granted["contents"] = "read"
    with pytest.raises(the_github.NoToken, match="not granted"):
        await push()


async def test_neither_key_nor_token_is_said_or_kept(
    place: Place, github: GitHub, caplog: pytest.LogCaptureFixture
) -> None:
    created(place, github, "org/quiet")
    with caplog.at_level(logging.DEBUG):
        await place.mirror("org/quiet").find(wanted(place, github, "org/quiet"))
        github.answer = 500, {}, "x"
        with pytest.raises(Problem):
            await place.mirror("org/quiet").find(wanted(place, github, "org/quiet"))
    (token,) = github.tokens
    secret = github.pem.splitlines()[5]
    for text in (caplog.text, *map(_text, place.folder.rglob("*"))):
        assert token not in text and (secret not in text or text == github.pem)
    assert any(secret in _text(path) for path in place.folder.rglob("*")), "the control: the key's own file"


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""


@pytest.mark.parametrize(
    "broken", ["", "no key", "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----"]
)
async def test_a_key_that_is_none_is_said(
    place: Place, github: GitHub, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    created(place, github, name := f"org/key{len(broken)}")
    (place.folder / "app.pem").write_text(broken)
    with caplog.at_level(logging.WARNING), pytest.raises(Problem) as refused:
        await place.mirror(name).find(wanted(place, github, name))
    assert refused.value.status == 503 and "app.pem" in caplog.text and not github.requests
    (place.folder / "app.pem").chmod(0o404)
    with caplog.at_level(logging.WARNING), pytest.raises(Problem):
        await place.mirror(name).find(wanted(place, github, name))
    assert "chmod 0400" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("github_app: {id: 1}", "key_file"),
        ("github_app: {id: 1, key_file: /k, api: 'http://api.example.com'}", "api must be https"),
        ("github_app: {id: 1, key_file: /k, api: 'https://a:b@api.example.com'}", "without credentials"),
        ("github_app: {id: 1, key_file: /k}\n  token_file: /t", "name one of them"),
        ("github_app: {id: 1, key_file: /k, scope: all}", "scope"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, fields: str, said: str) -> None:
    file = tmp_path / "repositories.yml"
    file.write_text(f'"org/*":\n  url: https://github.com/{{repository}}.git\n  {fields}\n')
    with pytest.raises(ValueError, match=said):
        load(file)
    file.write_text('"org/*":\n  url: https://github.com/{repository}.git\n  github_app: {id: 1, key_file: /k}\n')
    assert load(file)


PULL = {"title": "t", "head": "a", "base": "b", "body": "c"}
ASKED = {"repositories": ["a"], "permissions": {"contents": "read"}}
TOKEN = {"token": "ghs_1", "expires_at": "2026-01-01T00:00:00Z"}
TOKENS = "/app/installations/1/access_tokens"


@pytest.mark.parametrize(
    ("method", "path", "asked", "status", "answered", "said"),
    [
        ("POST", TOKENS, ASKED, 201, TOKEN, ""),
        ("POST", TOKENS, ASKED, 404, {"message": "Not Found"}, ""),
        ("POST", TOKENS, ASKED | {"permissions": {"contents": "admin"}}, 201, TOKEN, "admin"),
        ("POST", TOKENS, ASKED | {"repositories": ["org/a"]}, 201, TOKEN, "org/a"),
        ("POST", TOKENS, ASKED | {"repository": "a"}, 201, TOKEN, "repository"),
        ("POST", TOKENS, ASKED, 201, TOKEN | {"repositories": ["a"]}, "is not of type 'object'"),
        ("POST", TOKENS, ASKED, 201, {"token": "ghs_1"}, "expires_at"),
        ("POST", TOKENS, ASKED, 422, {"message": "x"}, "documentation_url"),
        ("POST", "/repos/o/r/pulls", PULL, 403, {"message": "no"}, ""),
        ("POST", "/repos/o/r/pulls", {"title": "t", "head": "a"}, 403, {}, "'base' is a required property"),
        ("POST", "/repos/o/r/pulls", {"head": "a", "base": "b"}, 403, {}, "not valid under any"),
        ("POST", "/repos/o/r/pulls", PULL, 201, {"number": 1, "head": "a"}, "html_url"),
        ("POST", "/repos/o/r/pull", PULL, 201, {}, "none of the operations"),
    ],
)
def test_what_github_does_not_describe_is_noticed(
    method: str, path: str, asked: Any, status: int, answered: Any, said: str
) -> None:
    """Of what our client asks, and of what the stand-in answers: the fixture fails with it."""
    found = github_described.problems(method, path, json.dumps(asked).encode(), status, answered)
    assert any(said in each for each in found) if said else found == []
