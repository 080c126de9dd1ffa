"""Kong plugin `claude-jwt-claims`: who is calling, and may they."""

from kong_claude.jwt_claims.plugin import Plugin  # noqa: F401
from kong_claude.jwt_claims.schema import SCHEMA as Schema  # noqa: F401

version, priority = "0.1.0", 1440
