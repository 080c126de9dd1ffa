-- Stands for Kong's own redirect where minikong has none: answers at the same place in the order.
local handler = { VERSION = "3.9.1", PRIORITY = 779 }

function handler:access(conf)
  return kong.response.exit(302, "elsewhere", { ["Location"] = conf.location })
end

return handler
