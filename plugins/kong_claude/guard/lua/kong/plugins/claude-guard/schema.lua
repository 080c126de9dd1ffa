return require("kong.plugins.claude-guard.compare").schema("claude-guard", {
  plugin = { type = "string", required = true, default = "claude-gateway",
             one_of = { "claude-gateway", "claude-jwt-claims" }, description = "The plugin that must have passed." },
})
