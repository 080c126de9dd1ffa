"""Kong plugin `claude-prompt-context`: the gateway's own words in every prompt."""

from kong_claude import __version__
from kong_claude.prompt_context.plugin import Plugin  # noqa: F401
from kong_claude.prompt_context.schema import SCHEMA as Schema  # noqa: F401

version, priority = __version__, 769
