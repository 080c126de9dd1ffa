"""Which requests are runs and which are messages of a model itself: by the model's name alone, for every reader alike."""

from __future__ import annotations

import json

import orjson
import pytest

from claude_contract.kinds import kind_of, model_of


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("claude-code", "run"),
        ("claude-code-sonnet", "run"),
        ("claude-code-", "run"),
        ("claude-codex-1", "message"),
        ("claude-haiku-4-5", "message"),
        ("Claude-Code", "message"),
        (" claude-code", "message"),
        ("", "message"),
    ],
)
def test_the_name_decides(model: str, kind: str) -> None:
    body = json.dumps({"messages": [{"model": "claude-code"}], "model": model, "stream": True}).encode()
    assert (kind_of(body), model_of(body)) == (kind, model)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"{}",
        b'{"model": null}',
        b'{"model": 1}',
        b'{"model": ["claude-haiku-4-5"]}',
        b"\xff",
    ],
)
def test_what_names_no_model_is_counted_as_a_run(body: bytes) -> None:
    assert (kind_of(body), model_of(body)) == ("run", None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "claude-code", "model": "claude-haiku-4-5"}',
        b'{"model": "claude-haiku-4-5", "model": "claude-code"}',
        b'{"mod\\u0065l": "claude-haiku-4-5", "model": "claude-code"}',
        b'{"model": "claude-code", "mod\\u0065l": "claude-haiku-4-5"}',
        b'{"Model": "claude-code", "model": "claude-haiku-4-5"}',
    ],
)
def test_of_several_members_the_last_counts_as_it_does_for_who_reads_a_run(body: bytes) -> None:
    assert model_of(body) == orjson.loads(body)["model"]
