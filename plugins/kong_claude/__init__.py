"""Kong Gateway plugins in Python that make Kong the gateway for Claude Code, and the server that runs them."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("kong-claude")
PLUGINS = Path(__file__).parent / "kong_plugins"
"""The files that the plugin server loads, one for each plugin: the default of `--plugins-directory`."""
