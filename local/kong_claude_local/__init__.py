"""The embedded stack: everything of kong-claude on one machine, without Docker, Kong or an API key."""
