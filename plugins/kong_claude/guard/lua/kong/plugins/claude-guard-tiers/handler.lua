-- Runs right after claude-rate-tiers (905).
return require("kong.plugins.claude-guard.compare").handler(904, function() return "claude_admission" end)
