"""Configuration of claude-gateway: one section per plugin it stands for, with exactly that plugin's fields."""

from __future__ import annotations

from kong_claude.jwt_claims.schema import FIELDS as JWT_CLAIMS
from kong_claude.prompt_context.schema import FIELDS as PROMPT_CONTEXT
from kong_claude.rate_tiers.schema import FIELDS as RATE_TIERS
from kong_claude.schema import ENFORCING_FIELDS, Field


def _section(name: str, plugin: str, fields: list[Field]) -> Field:
    return {
        name: {
            "type": "record",
            # Without this Kong would fill in {} and switch the section on.
            "required": False,
            "fields": fields,
            "description": f"The configuration of {plugin}; without it that part does not run.",
        }
    }


SCHEMA: list[Field] = [
    _section("jwt_claims", "claude-jwt-claims", JWT_CLAIMS),
    _section("rate_tiers", "claude-rate-tiers", RATE_TIERS),
    _section("prompt_context", "claude-prompt-context", PROMPT_CONTEXT),
    *ENFORCING_FIELDS,
]
