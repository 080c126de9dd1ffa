"""Configuration of claude-gateway: one section per plugin it stands for, with exactly that plugin's fields."""

from __future__ import annotations

from dataclasses import dataclass

from kong_claude.jwt_claims.schema import JwtClaimsConfig
from kong_claude.prompt_context.schema import PromptContextConfig
from kong_claude.rate_tiers.schema import RateTiersConfig
from kong_claude.schema import Field, fields, record
from kong_claude.stage import ENFORCING_FIELDS

_SECTION = "The configuration of {}; without it that part does not run."


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The sections that are there."""

    jwt_claims: JwtClaimsConfig | None = record(_SECTION.format("claude-jwt-claims"), JwtClaimsConfig)
    rate_tiers: RateTiersConfig | None = record(_SECTION.format("claude-rate-tiers"), RateTiersConfig)
    prompt_context: PromptContextConfig | None = record(_SECTION.format("claude-prompt-context"), PromptContextConfig)


SCHEMA: list[Field] = [*fields(GatewayConfig), *ENFORCING_FIELDS]
