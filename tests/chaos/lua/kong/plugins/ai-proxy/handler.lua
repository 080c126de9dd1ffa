-- Stands for Kong's own ai-proxy where minikong has none: at the same place in the order it sends the request elsewhere.
local handler = { VERSION = "3.9.1", PRIORITY = 770 }

function handler:access(conf)
  local host, port, path = conf.model.options.upstream_url:match("^http://([^:/]+):(%d+)(/.*)$")
  kong.service.set_target(host, tonumber(port))
  kong.service.request.set_path(path)
  kong.service.request.set_header(conf.auth.header_name, conf.auth.header_value)
end

return handler
