"""examples/*.yml: each starts with `kong-claude up --config`, has no opening, and does what its first line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kong_claude import PLUGINS
from kong_claude.doctor import probe, rules, view
from tests.e2e.conftest import ROOT, standing

EXAMPLES = sorted((ROOT / "examples").glob("*.yml"))
PROMPT = {"prompt": "hi", "system": "Be brief."}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_no_opening(path: Path) -> None:
    seen = view.from_file(path, {})
    assert [*rules.examine(seen), *probe.configurations(seen, PLUGINS)] == []


def test_the_plugins_apart_give_the_same_answers(tmp_path: Path) -> None:
    with standing(tmp_path, config=ROOT / "examples" / "apart.yml") as gateway:
        with gateway.client("apart", "--tier", "pro") as client:
            answer = client.post("/claude/invoke", json=PROMPT, headers={"X-Repo": "org/app"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ratelimit-limit-minute"] == "60"
        assert any("You are a code review assistant. Be brief." in json.dumps(e) for e in gateway.record())
        with gateway.client() as nobody:
            assert nobody.post("/claude/invoke", json=PROMPT).status_code == 401
