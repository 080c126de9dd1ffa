"""The Kong plugin claude-gateway: claude-jwt-claims, claude-rate-tiers and claude-prompt-context in one event."""

from __future__ import annotations

from kong_claude.gateway.schema import GatewayConfig
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.pipeline import plugin
from kong_claude.prompt_context.plugin import PromptContext
from kong_claude.rate_tiers.plugin import RateTiers

# In the order of the separate plugins' priorities.
Plugin = plugin(JwtClaims, RateTiers, PromptContext, sections=GatewayConfig, shared_key="claude_gateway")
