"""A pool's claim must be one that is handed on: else nobody could pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from claude_contract.errors import ConfigError
from kong_claude.gateway.plugin import Plugin
from tests.gateway.test_size import largest


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["jwt_claims"]["forward_claims"] = [name]

    return change


def other_organisation(config: dict[str, Any]) -> None:
    config["rate_tiers"]["organisation_claim"] = "org"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("email"), r"rate_tiers\.pools\[1\]\.claim: must be one of jwt_claims\.forward_claims: add 'team'"),
        (other_organisation, r"rate_tiers\.organisation_claim: must be one of .* add 'org'"),
        (lambda config: config["jwt_claims"].pop("forward_claims"), r"rate_tiers\.pools\[1\]\.claim: must be one of"),
    ],
)
def test_a_claim_that_is_not_handed_on_does_not_start(change: Callable[[dict[str, Any]], None], text: str) -> None:
    config = largest()
    Plugin(config)  # the control
    change(config)
    with pytest.raises(ConfigError, match=text):
        Plugin(config)
