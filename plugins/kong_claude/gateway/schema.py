"""Configuration of claude-gateway: one section per plugin it stands for, with exactly that plugin's fields."""

from __future__ import annotations

from dataclasses import dataclass

from claude_contract.errors import ConfigError
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

    def __post_init__(self) -> None:
        """A claim by which limits are shared must reach them, or everybody would be refused. Raises ConfigError."""
        if self.jwt_claims is None or self.rate_tiers is None:
            return
        wanted = {f"pools[{n}].claim": pool.claim for n, pool in enumerate(self.rate_tiers.pools, start=1)}
        for name, claim in {**wanted, "organisation_claim": self.rate_tiers.organisation_claim}.items():
            if claim and claim not in self.jwt_claims.forward_claims:
                raise ConfigError(
                    f"rate_tiers.{name}", f"must be one of jwt_claims.forward_claims: add {claim!r} there"
                )


SCHEMA: list[Field] = [*fields(GatewayConfig), *ENFORCING_FIELDS]
