return require("kong.plugins.claude-guard.compare").schema("claude-guard-context")
