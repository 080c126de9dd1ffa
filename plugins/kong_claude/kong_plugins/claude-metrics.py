"""Kong plugin `claude-metrics`: counts what Kong answered."""

from kong_claude import __version__
from kong_claude.metrics.plugin import Plugin  # noqa: F401
from kong_claude.metrics.schema import SCHEMA as Schema  # noqa: F401

version, priority = __version__, 11
# Counting must never stop a request.
on_error = "pass"
