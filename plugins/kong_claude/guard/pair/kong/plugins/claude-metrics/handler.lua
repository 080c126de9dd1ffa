return require("kong.plugins.claude-pair.partner")("claude-metrics")
