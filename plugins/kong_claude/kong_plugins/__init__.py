"""The files that Kong's plugin server loads, one for each plugin; nothing imports them by name."""

from pathlib import Path

PLUGINS = Path(__file__).parent
"""Their directory: the default of `--plugins-directory`."""
