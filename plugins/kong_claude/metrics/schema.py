"""Configuration of claude-metrics."""

from __future__ import annotations

from kong_claude.trust.schema import Field

SCHEMA: list[Field] = []
