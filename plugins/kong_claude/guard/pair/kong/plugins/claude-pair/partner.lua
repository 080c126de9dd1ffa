-- The Lua half of a plugin of ours. Kong takes a plugin's handler from its Lua path before it asks a plugin server: so
-- this runs in the place of the plugin, at its priority, with its configuration, and starts the plugin server's event
-- itself. Two things make that event cheaper than Kong's own:
--   what the plugin asked Kong for last time is asked beforehand, and travels with the event;
--   what the plugin tells Kong without awaiting an answer travels in front of its next message, and is done here.
-- Everything else (an answer, a refusal, a consumer, a question that is new) stays the call that it is.
local servers = require "kong.runloop.plugin_servers"

local pairs, type, unpack, error, select, tonumber = pairs, type, unpack, error, select, tonumber
local running, pcall = coroutine.running, pcall
local sub, lower, null = string.sub, string.lower, ngx.null
local set_header, get_body_data = ngx.req.set_header, ngx.req.get_body_data

local PROTOCOL = 1      -- of what travels; the plugin server makes single calls for any other
local LABEL = "claude-pair"
local MAX_BODY = 8192   -- bytes that are read before anybody has seen who sends them

-- A body is read beforehand where that cannot mean waiting for a client: short, announced, not asked for by us.
local function small(limit)
  local length = tonumber(ngx.var.http_content_length)
  return length and length <= MAX_BODY and (not limit or limit <= 0 or length <= limit) and not ngx.var.http_expect
end

-- What can be asked beforehand: it changes nothing, and Kong answers it on every request.
local ASK = {
  ["kong.request.get_headers"] = function(max) return kong.request.get_headers(max) end,
  ["kong.request.get_method"] = function() return kong.request.get_method() end,
  ["kong.request.get_raw_query"] = function() return kong.request.get_raw_query() end,
  ["kong.request.get_uri_captures"] = function() return kong.request.get_uri_captures() end,
  ["kong.request.get_raw_body"] = function(limit)
    return small(limit) and kong.request.get_raw_body(limit) or false  -- false: to be asked by a call
  end,
  ["kong.client.get_consumer"] = function() return kong.client.get_consumer() end,
  ["kong.client.get_credential"] = function() return kong.client.get_credential() end,
  ["kong.client.get_forwarded_ip"] = function() return kong.client.get_forwarded_ip() end,
  ["kong.nginx.get_var"] = function(name) return ngx.var[name] end,
  ["kong.ctx.shared.get"] = function(key) return kong.ctx.shared[key] end,
}

-- Headers whose values are texts are set as the PDK would: its checks of each cost more than the setting.
local SPECIAL = { host = true, ["transfer-encoding"] = true, transfer_encoding = true }

local function plain(headers)
  for name, value in pairs(headers) do
    if type(name) ~= "string" or type(value) ~= "string" or value == "" or SPECIAL[lower(name)] then
      return false
    end
  end
  return true
end

local function set_request_headers(headers)
  if not plain(headers) then
    return kong.service.request.set_headers(headers)
  end
  for name, value in pairs(headers) do
    set_header(name, value)
  end
end

local function set_response_headers(headers)
  if not plain(headers) then
    return kong.response.set_headers(headers)
  end
  local header = ngx.header
  for name, value in pairs(headers) do
    header[name] = value
  end
end

-- What can be told without an answer.
local TELL = {
  ["kong.service.request.set_headers"] = set_request_headers,
  ["kong.service.request.set_raw_query"] = function(query) kong.service.request.set_raw_query(query) end,
  ["kong.service.request.set_raw_body"] = function(body) kong.service.request.set_raw_body(body) end,
  ["kong.response.set_headers"] = set_response_headers,
  ["kong.log.set_serialize_value"] = function(key, value) kong.log.set_serialize_value(key, value) end,
  ["kong.ctx.shared.set"] = function(key, value) kong.ctx.shared[key] = value end,
  -- set_raw_body by what differs: `length` bytes at `offset` become `bytes`.
  splice = function(offset, length, bytes)
    local body = get_body_data() or kong.request.get_raw_body(0)
    kong.service.request.set_raw_body(sub(body, 1, offset) .. bytes .. sub(body, offset + length + 1))
  end,
}

local questions = setmetatable({}, { __mode = "k" })  -- configuration -> { id, { name, argument }, ... }
local timers = setmetatable({}, { __mode = "k" })  -- coroutine of a log phase -> what kong.ctx.plugin is for a request
local number = 0

local function told(_, message)
  local own = timers[running()] or kong.ctx.plugin
  if not own or not own.event or message[1] ~= own.event then
    return  -- for a request that is over
  end
  if message[2] then
    questions[own.conf] = message[2]
  end
  for i = 3, #message do
    local call = message[i]
    local tell = TELL[call[1]] or error("no such call: " .. call[1])
    tell(unpack(call[2]))
  end
end

-- Whether the plugin server has something to end: a lease that no service has taken over.
local function owed(key)
  local left = kong.ctx.shared[key]
  if type(left) ~= "table" then
    return false
  end
  local admission = left.claude_admission or left
  return admission.lease and (admission.settles or kong.response.get_source() ~= "service")
end

local KEYS = { ["claude-gateway"] = "claude_gateway", ["claude-rate-tiers"] = "claude_admission" }

return function(name)
  local found, plugin = servers.load_plugin(name)
  if not found then
    error(name .. ": no plugin server serves it", 0)
  end
  local rpc, key = plugin.rpc, KEYS[name]
  local handler = { PRIORITY = plugin.PRIORITY, VERSION = plugin.VERSION }
  for _, phase in pairs(plugin.phases) do
    handler[phase] = function(_, conf) return plugin[phase](plugin, conf) end
  end
  plugin.rpc_notifications[LABEL] = told

  -- `own`: a table of this request's
  local function send(phase, conf, own, answers)
    number = number + 1
    local asked = questions[conf]
    local event = { phase, PROTOCOL, number, asked and asked[1] or 0 }
    for i = 2, asked and #asked or 1 do
      local answer = answers[asked[i][1]](select(2, unpack(asked[i])))
      event[3 + i] = answer == nil and null or answer
    end
    own.event, own.conf = number, conf
    rpc:handle_event(conf, event)
    own.event = nil
  end

  if handler.access then
    function handler:access(conf)
      send("access", conf, kong.ctx.plugin, ASK)
    end
  elseif handler.log then
    -- Kong's own log phase keeps what it has serialized and starts the event in a timer, where no request is: there
    -- plugins are answered by `exposed_api`, and kong.ctx.plugin is whose log phase was the last.
    plugin.rpc = setmetatable({
      handle_event = function(_, conf, phase)
        local own, timer = {}, running()
        timers[timer] = own
        -- Of these answers the plugin server asks for `kong.log.serialize` alone.
        local sent, problem = pcall(send, phase, conf, own, plugin.exposed_api)
        timers[timer] = nil  -- in any case: nginx uses coroutines again, for requests
        if not sent then
          error(problem, 0)
        end
      end,
    }, { __index = rpc })
  end

  if handler.log and key then
    function handler:log(conf)
      if owed(key) then
        plugin.log(plugin, conf)
      end
    end
  end

  return handler
end
