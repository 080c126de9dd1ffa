"""Kong plugin `claude-rate-tiers`: how much, how many at once, at what cost."""

from kong_claude import __version__
from kong_claude.rate_tiers.plugin import Plugin  # noqa: F401
from kong_claude.rate_tiers.schema import SCHEMA as Schema  # noqa: F401

version, priority = __version__, 905
