"""Kong plugin `claude-jwt-claims`: who is calling, and may they."""

from kong_claude import __version__
from kong_claude.jwt_claims.plugin import Plugin  # noqa: F401
from kong_claude.jwt_claims.schema import SCHEMA as Schema  # noqa: F401

version, priority = __version__, 1440
