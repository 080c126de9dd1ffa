local typedefs = require "kong.db.schema.typedefs"

return {
  name = "claude-errors",
  fields = {
    { consumer = typedefs.no_consumer },
    { protocols = typedefs.protocols_http },
    { config = { type = "record", fields = {
      { prefix = { type = "string", required = true, default = "/claude/v1",
                   description = "The path under which clients of Anthropic's and OpenAI's APIs ask." } },
      { graphql = { type = "string", required = true, default = "/claude/graphql",
                    description = "The path at which clients of GraphQL ask." } },
      { dashboard = { type = "string", required = true, default = "/claude/dashboard",
                      description = "The path of the dashboard, where browsers get a page." } },
    } } },
  },
}
