"""kong.yml: short, each setting once, and what to change on the first screen."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "kong.yml").read_text()
LINES = TEXT.splitlines()


def test_it_is_short() -> None:
    assert len(LINES) <= 200


def test_each_setting_stands_once() -> None:
    for setting in ("issuer: ", "audience: ", "{name: pro", "claude-attestation-key}", "claude-redis-url}"):
        assert sum(setting in line for line in LINES if not line.startswith("#")) == 1, setting


def test_what_to_change_is_on_the_first_screen() -> None:
    screen = "\n".join(LINES[:48])
    for setting in ("jwt_claims: &caller", "issuers:", "audience:", "rules:", "tiers:"):
        assert setting in screen


def test_one_guard_for_each_service() -> None:
    for service in yaml.safe_load(TEXT)["services"]:
        assert sum(plugin["name"].startswith("claude-guard") for plugin in service["plugins"]) == 1, service["name"]
        for route in service["routes"]:
            assert [p["name"] for p in route["plugins"] if "guard" in p["name"] or "function" in p["name"]] == []
