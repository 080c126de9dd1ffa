-- A plugin of somebody's own, which answers requests itself.
local handler = { VERSION = "1.0.0", PRIORITY = 500 }

function handler:access()
  return kong.response.exit(200, { message = "hello" })
end

return handler
