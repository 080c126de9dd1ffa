"""Whatever the bytes: the plugin refuses with 4xx or passes with its additions. Never an internal error, never silence."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.prompt_context.conftest import post
from tests.prompt_context.test_strict_json import JSON, OBJECTS, TEXT
from tests.support.kong_driver import Driver, Event, Request

CONFIG: dict[str, Any] = {
    "mark": "m",
    "prepend": "Ours {{repo}}. ",
    "append": " End.",
    "profiles": {"a": {"prepend": "A. "}},
    "profile_header": "X-Profile",
    "context": {
        "repo": {"source": "header:X-Repo", "render": True},
        "ref": {"source": "query:ref", "pattern": "[a-z]+"},
    },
    "deny_patterns": ["forbidden"],
    "locked": ["tools"],
    "max_prompt_bytes": 10_000,
}
# Bytes that are no UTF-8 reach a plugin as surrogates.
VALUES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])) | st.binary().map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask(kong: Driver, request: Request, **more: Any) -> Event:
    instance = kong.start_instance("claude-prompt-context", {**CONFIG, **more})
    event = kong.handle(instance, "access", request)
    if event.exit is None:
        assert request.shared["claude_context"]["mark"] == "m"
    else:
        assert 400 <= event.exit.status < 500, event.exit
        assert "claude_context" not in request.shared
    return event


@MANY
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(kong: Driver, body: bytes) -> None:
    ask(kong, post(body))


@MANY
@given(
    st.dictionaries(st.sampled_from(["system", "context", "prompt", "messages", "tools", "model", "x"]), JSON),
    st.sampled_from(["invoke", "messages", "chat"]),
)
def test_any_json_in_the_places_that_matter(kong: Driver, document: dict[str, Any], shape: str) -> None:
    request = post(json.dumps(document))
    if ask(kong, request, shape=shape).exit is None:
        sent = json.loads(request.upstream_body)
        named = {"system", "context", "messages"}
        assert {n: v for n, v in sent.items() if n not in named} == {
            n: v for n, v in document.items() if n not in named
        }


@MANY
@given(OBJECTS, TEXT, VALUES)
def test_everything_not_named_survives(kong: Driver, document: dict[str, Any], system: str, repo: str) -> None:
    document = {n: v for n, v in document.items() if n not in ("tools", "context", "messages")} | {"system": system}
    request = post(json.dumps(document), {"x-repo": repo})
    if ask(kong, request, deny_patterns=[], max_prompt_bytes=None).exit is not None:
        return
    sent = json.loads(request.upstream_body)
    assert {n: v for n, v in sent.items() if n not in ("system", "context")} == {
        n: v for n, v in document.items() if n != "system"
    }
    assert sent["system"].startswith("Ours ") and " End." in sent["system"]


@MANY
@given(
    st.dictionaries(
        st.sampled_from(["x-repo", "x-profile", "content-type", "content-length", "x-claude-explain"]), VALUES
    )
)
def test_any_headers(kong: Driver, headers: dict[str, str]) -> None:
    ask(kong, post("{}", headers), explain=True)


@MANY
@given(VALUES)
def test_any_query(kong: Driver, query: str) -> None:
    line = f"POST /x?{query} HTTP/1.1"
    ask(kong, post("{}", answers={"kong.nginx.get_var": line}))
