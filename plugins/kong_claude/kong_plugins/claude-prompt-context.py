"""Kong plugin `claude-prompt-context`: the gateway's own words in every prompt."""

from kong_claude.prompt_context.plugin import Plugin  # noqa: F401
from kong_claude.prompt_context.schema import SCHEMA as Schema  # noqa: F401

version, priority = "0.1.0", 769
