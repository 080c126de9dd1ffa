"""The Kong plugin claude-gateway: claude-jwt-claims, claude-rate-tiers and claude-prompt-context in one event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.pipeline import MakeStage, Stage, plugin_class
from kong_claude.prompt_context.plugin import PromptContext
from kong_claude.rate_tiers.plugin import RateTiers

# In the order of the separate plugins' priorities.
SECTIONS: dict[str, MakeStage] = {
    "jwt_claims": JwtClaims,
    "rate_tiers": RateTiers,
    "prompt_context": PromptContext,
}


def stages(config: Mapping[str, Any]) -> list[Stage]:
    """A stage for each section that is there. A stage sees what its own plugin would: its fields and the shared ones.

    Raises ConfigError, with the section in the field's name.
    """
    shared = {name: value for name, value in config.items() if name not in SECTIONS}
    made = []
    for section, make in SECTIONS.items():
        if config.get(section) is None:
            continue
        try:
            made.append(make({**shared, **config[section]}))
        except ConfigError as error:
            own = error.field_name.partition(".")[0] not in shared
            raise ConfigError(f"{section}.{error.field_name}" if own else error.field_name, error.problem) from None
    if not made:
        raise ConfigError(next(iter(SECTIONS)), "no section is configured, so nothing would be checked")
    return made


Plugin = plugin_class(stages, "claude_gateway", logs=True)
