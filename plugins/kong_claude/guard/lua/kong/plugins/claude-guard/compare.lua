-- What the guards share: a handler that runs right after one of our plugins, and its schema.
local typedefs = require "kong.db.schema.typedefs"

local compare = {}

-- When the plugin server is away every request comes by here, and says the same.
local said, unsaid = 0, 0

local function say(key, by)
  local now = ngx.time()
  if now == said then
    unsaid = unsaid + 1
    return
  end
  kong.log.err(key, " did not pass for this ", by, unsaid > 0 and ", nor for " .. unsaid .. " requests before" or "")
  said, unsaid = now, 0
end

-- A plugin's last act is to leave its mark: the id of the entity (route or service) whose configuration it ran with.
-- One side is compared, never either: a stale configuration of the whole service must not pass a stricter route.
function compare.handler(priority, key_of)
  local handler = { VERSION = "0.1.0", PRIORITY = priority }

  function handler:access(conf)
    local key = key_of(conf)
    local own = conf.by == "service" and kong.router.get_service() or conf.by == "route" and kong.router.get_route()
    local left = kong.ctx.shared[key]
    if type(left) ~= "table" or not own or left.mark ~= own.id then
      say(key, conf.by)
      return kong.response.exit(503, { message = "service temporarily unavailable" }, { ["Retry-After"] = "1" })
    end
  end

  return handler
end

function compare.schema(name, ...)
  return {
    name = name,
    fields = {
      -- A guard that a consumer replaces would be no guard.
      { consumer = typedefs.no_consumer },
      { protocols = typedefs.protocols_http },
      { config = { type = "record", fields = {
        { by = { type = "string", required = true, default = "route", one_of = { "route", "service" },
                 description = "Whose id the mark must be." } },
        ...
      } } },
    },
  }
end

return compare
