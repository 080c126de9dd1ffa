-- Runs right after claude-gateway or claude-jwt-claims (1440), before everything of Kong's that could answer.
local KEYS = { ["claude-gateway"] = "claude_gateway", ["claude-jwt-claims"] = "claude_identity" }

return require("kong.plugins.claude-guard.compare").handler(1439, function(conf) return KEYS[conf.plugin] end)
