return require("kong.plugins.claude-pair.partner")("claude-jwt-claims")
