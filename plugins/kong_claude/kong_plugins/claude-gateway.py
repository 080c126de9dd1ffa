"""Kong plugin `claude-gateway`: claude-jwt-claims, claude-rate-tiers and claude-prompt-context in one event."""

from kong_claude import __version__
from kong_claude.gateway.plugin import Plugin  # noqa: F401
from kong_claude.gateway.schema import SCHEMA as Schema  # noqa: F401

version, priority = __version__, 1440
