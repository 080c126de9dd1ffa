"""pytest fixtures for authors of Python Kong plugins."""
