"""The `kong-claude` command: one module per subcommand."""
