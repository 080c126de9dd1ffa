"""What a caller can send to make the invoker fail, each with its control: as it was before, the same request is a 500."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from claude_contract.nesting import MAX_DEPTH
from claude_contract.structure import MAX_PARTS
from claude_invoker.api import border, limit
from claude_invoker.api.border import stream_id
from tests.jobs.conftest import serving
from tests.rate_tiers.servers import RedisProcess

Patch = pytest.MonkeyPatch
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
JSON = {"Content-Type": "application/json"}
LOGIN = "/claude/dashboard/login"


def nested(levels: int) -> bytes:
    """A list of lists."""
    return b"[" * levels + b"]" * levels


def invocation(levels: int, member: bytes = b"output_schema") -> bytes:
    """A body that is nested so deeply in one of its members."""
    value = b'{"a":%s}' % nested(levels - 2)
    return b'{"prompt":"hi","%s":%s}' % (member, value)


def parsers_unguarded(patch: Patch) -> None:
    for module in ("border", "health"):
        patch.setattr(f"claude_invoker.api.{module}.understood", lambda what: nullcontext())


def depth_unbounded(patch: Patch) -> None:
    patch.setattr(border, "too_deep", lambda document: False)


def any_number(patch: Patch) -> None:
    patch.setattr(border, "_TIME", re.compile(r"\w+"))


def any_length(patch: Patch) -> None:
    patch.setattr(limit, "content_length", lambda header: int(header or 0))


class Attack(NamedTuple):
    method: str
    path: str
    status: int
    undefended: Callable[[Patch], None]
    headers: dict[str, Any] = {}  # noqa: RUF012
    content: bytes = b""


ATTACKS = {
    "many form fields": Attack("POST", LOGIN, 400, parsers_unguarded, FORM, b"&" * 11),
    "origin": Attack("POST", LOGIN, 400, parsers_unguarded, {"Origin": "http://["}, b"token=x"),
    "forwarded host": Attack(
        "POST", LOGIN, 400, parsers_unguarded, {"Origin": "http://a", "X-Forwarded-Host": "[x"}, b"token=x"
    ),
    "accept of metrics": Attack(
        "GET", "/metrics", 400, parsers_unguarded, {"Accept": "application/openmetrics-text;version=a"}
    ),
    "cursor of no number": Attack("GET", "/claude/jobs?cursor=nan", 422, any_number),
    "long length": Attack("POST", "/claude/jobs", 400, any_length, {"Content-Length": "1" * 5000}, b"{}"),
    "deep schema": Attack("POST", "/claude/jobs", 422, depth_unbounded, {}, invocation(900)),
    "deep schema, at once": Attack("POST", "/claude/invoke", 422, depth_unbounded, {}, invocation(900)),
}


@pytest.mark.parametrize("control", [False, True], ids=["defended", "control"])
async def test_what_cannot_be_read_is_the_callers_fault(
    redis_server: RedisProcess, state: Path, control: bool, monkeypatch: Patch
) -> None:
    async with serving(redis_server, state) as gateway:
        for name, (method, path, status, undefended, headers, content) in ATTACKS.items():
            with monkeypatch.context() as patch:
                if control:
                    undefended(patch)
                if path == "/claude/invoke" and control:
                    headers = headers | {"Prefer": "respond-async"}  # where the document is written again
                answer = await gateway.ask(method, path, headers=headers, content=content)
            assert answer.status_code == (500 if control else status), (name, answer.text)
            if 400 <= answer.status_code < 500:
                assert answer.headers["content-type"] == "application/problem+json", name


async def test_a_body_nested_deeper_than_the_bound_is_422(redis_server: RedisProcess, state: Path) -> None:
    paths = ("/claude/jobs", "/claude/invoke", "/claude/repos/o/n/invoke")
    members = (b"output_schema", b"context", b"messages", b"unknown")
    async with serving(redis_server, state) as gateway:
        for case in itertools.product(paths, members, (MAX_DEPTH + 1, 250, 1024, 1025, 100_000)):
            path, member, levels = case
            answer = await gateway.ask("POST", path, content=invocation(levels, member))
            said = answer.json()["detail"]
            assert (answer.status_code, said) == (422, "the body is nested more than 64 levels deep"), case


BROAD = b"[" + b"[]," * MAX_PARTS + b"1]"
"""Megabytes of these keep a parser busy for seconds, in which nobody else is served."""


async def test_a_body_with_more_values_than_the_bound_is_refused_before_it_is_parsed(
    redis_server: RedisProcess, state: Path, monkeypatch: Patch
) -> None:
    count = b'{"model":"claude-code","messages":[{"role":"user","content":"hi"}],"metadata":%b}' % BROAD
    async with serving(redis_server, state) as gateway:
        monkeypatch.setattr(border, "orjson", None)  # who parses fails
        for path, status, content in (
            ("/claude/jobs", 422, b'{"prompt":"hi","context":%b}' % BROAD),
            ("/claude/invoke", 422, b'{"prompt":"hi","context":%b}' % BROAD),
            ("/claude/graphql", 422, b'{"query":"{ me }","variables":%b}' % BROAD),
            ("/claude/v1/messages/count_tokens", 400, count),
            ("/claude/v1/messages", 400, count),
            ("/claude/v1/chat/completions", 400, count),
        ):
            answer = await gateway.ask("POST", path, content=content, headers=JSON)
            assert (answer.status_code, "has too many values" in answer.text) == (status, True), (path, answer.text)
            with monkeypatch.context() as patch:
                patch.setattr(border, "too_many_parts", lambda body: False)
                assert (await gateway.ask("POST", path, content=content, headers=JSON)).status_code == 500, (
                    "the control"
                )


async def test_of_very_many_mistakes_the_number_is_said(redis_server: RedisProcess, state: Path) -> None:
    unknown = {f"m{n}": 1 for n in range(5000)}
    async with serving(redis_server, state) as gateway:
        said = (await gateway.ask("POST", "/claude/jobs", json={"prompt": "hi"} | unknown)).json()
        assert (said["status"], said["errors"][0]["at"]) == (422, "")
        assert said["detail"] == "the body has 5000 mistakes"


async def test_requests_to_paths_that_differ_behind_an_escaped_question_mark_differ(
    redis_server: RedisProcess, state: Path
) -> None:
    """The path of `request.url` ends at `?`: two repositories had one fingerprint."""
    async with serving(redis_server, state) as gateway:

        async def queue(repository: str) -> httpx.Response:
            headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
            return await gateway.ask("POST", f"/claude/repos/{repository}/invoke", headers=headers, content=BODY)

        BODY = b'{"prompt":"hi"}'
        assert (await queue("a%3F/one")).status_code == 202
        assert (await queue("a%3F/one")).status_code == 202
        assert (await queue("a%3F/two")).status_code == 422


def test_digits_of_other_scripts_are_no_event_id() -> None:
    assert stream_id("١-١", None, "1-2") == "1-2"
    assert stream_id("1-x", "") == "0-0"
