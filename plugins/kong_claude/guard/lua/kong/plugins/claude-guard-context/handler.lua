-- Runs right after claude-prompt-context (769).
return require("kong.plugins.claude-guard.compare").handler(768, function() return "claude_context" end)
