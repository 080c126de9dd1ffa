"""MCP servers of the catalog as runs have them: the invoker stands between, so that no run has a credential."""
