-- Builds what code of pre-function and post-function sees: kong, ngx, cjson, the sandbox, the chain of functions.
-- Called once with the host's functions; gives the functions that the host calls.
local host = ...

local error, setmetatable, getmetatable, rawget, type = error, setmetatable, getmetatable, rawget, type
local yield, select, unpack, ipairs, pairs, tostring = coroutine.yield, select, unpack, ipairs, pairs, tostring
local load, pcall, rawset = load, pcall, rawset

local null = newproxy(true)
getmetatable(null).__tostring = function() return "userdata: NULL" end
local array_mt = {}

local OK, FAIL, EXIT, READ_BODY = 0, 1, 2, 3

local headers_mt = {
  __index = function(t, name)
    return type(name) == "string" and rawget(t, name:lower():gsub("_", "-")) or nil
  end,
}

local function bind(name)
  local is_headers = name:find("get_headers$") ~= nil
  local function call(...)
    local outcome, value = host.call(name, select("#", ...), ...)
    if outcome == OK then
      if is_headers and type(value) == "table" then setmetatable(value, headers_mt) end
      return value
    elseif outcome == READ_BODY then
      yield("read_body")
      return call(...)
    elseif outcome == EXIT then
      yield("exit")
    else
      error(value, 3)
    end
  end
  return call
end

-- kong.*

local kong = { version = "3.9.1", version_num = 3009001 }

for name in host.functions:gmatch("[^ ]+") do
  local node, path = kong, {}
  for part in name:gmatch("[^.]+") do path[#path + 1] = part end
  for i = 2, #path - 1 do
    local child = node[path[i]]
    if type(child) ~= "table" then
      local callable = child
      child = setmetatable({}, callable and { __call = function(_, ...) return callable(...) end } or nil)
      node[path[i]] = child
    end
    node = child
  end
  local last = path[#path]
  if type(node[last]) == "table" then
    local callable = bind(name)
    setmetatable(node[last], { __call = function(_, ...) return callable(...) end })
  else
    node[last] = bind(name)
  end
end

kong.ctx = setmetatable({}, { __index = function(_, k) return host.ctx_table(k) end })
kong.configuration = setmetatable({}, { __index = function(_, k) return host.configuration(k) end })
kong.table = { new = function() return {} end, clear = function(t) for k in pairs(t) do t[k] = nil end end }

-- ngx.*

local ngx = {
  null = null, OK = 0, ERROR = -1, AGAIN = -2, DONE = -4, DECLINED = -5,
  STDERR = 0, EMERG = 1, ALERT = 2, CRIT = 3, ERR = 4, WARN = 5, NOTICE = 6, INFO = 7, DEBUG = 8,
  HTTP_OK = 200, HTTP_CREATED = 201, HTTP_NO_CONTENT = 204, HTTP_MOVED_TEMPORARILY = 302,
  HTTP_BAD_REQUEST = 400, HTTP_UNAUTHORIZED = 401, HTTP_FORBIDDEN = 403, HTTP_NOT_FOUND = 404,
  HTTP_INTERNAL_SERVER_ERROR = 500, HTTP_SERVICE_UNAVAILABLE = 503,
  now = host.now, time = function() return math.floor(host.now()) end, update_time = function() end,
  encode_base64 = host.encode_base64, decode_base64 = host.decode_base64,
  escape_uri = host.escape_uri, unescape_uri = host.unescape_uri, md5 = host.md5,
  get_phase = host.get_phase,
  var = setmetatable({}, { __index = function(_, k) return host.var(k) end }),
  ctx = setmetatable({}, {
    __index = function(_, k) return host.get_ctx(k) end,
    __newindex = function(_, k, v) host.set_ctx(k, v) end,
  }),
  arg = setmetatable({}, {
    __index = function(_, k) return host.get_arg(k) end,
    __newindex = function(_, k, v) host.set_arg(k, v) end,
  }),
  header = setmetatable({}, {
    __index = function(_, k) return host.get_header(k) end,
    __newindex = function(_, k, v) host.set_header(k, v) end,
  }),
  req = {
    get_headers = kong.request.get_headers, get_method = kong.request.get_method,
    get_uri_args = kong.request.get_query, set_header = kong.service.request.set_header,
    clear_header = kong.service.request.clear_header, read_body = function() kong.request.get_raw_body(0) end,
    get_body_data = kong.request.get_raw_body, http_version = kong.request.get_http_version,
  },
  resp = { get_headers = kong.response.get_headers },
  worker = { pid = host.pid, id = function() return 0 end, count = function() return 1 end },
  config = { subsystem = "http" },
}

function ngx.log(level, ...)
  local parts = {}
  for i = 1, select("#", ...) do parts[i] = tostring((select(i, ...))) end
  host.log(level, table.concat(parts))
end

local function flatten(out, value)
  if type(value) == "table" then
    for _, item in ipairs(value) do flatten(out, item) end
  else
    out[#out + 1] = value == null and "null" or tostring(value)
  end
end

function ngx.print(...)
  local out = {}
  for i = 1, select("#", ...) do flatten(out, (select(i, ...))) end
  host.print(table.concat(out))
  return 1
end

function ngx.say(...)
  local out = {}
  for i = 1, select("#", ...) do flatten(out, (select(i, ...))) end
  host.print(table.concat(out) .. "\n")
  return 1
end

function ngx.exit(status)
  host.exit(status)
  yield("exit")
end

setmetatable(ngx, { __index = function(_, k) if k == "status" then return host.get_status() end end,
  __newindex = function(t, k, v) if k == "status" then host.set_status(v) else rawset(t, k, v) end end })

-- cjson

local function new_cjson(safe)
  local function encode(value)
    local text, problem = host.json_encode(value)
    if not text then
      if safe then return nil, problem end
      error(problem, 2)
    end
    return text
  end
  local function decode(text)
    local ok, value = host.json_decode(text)
    if not ok then
      if safe then return nil, value end
      error(value, 2)
    end
    return value
  end
  return {
    encode = encode, decode = decode, null = null, array_mt = array_mt, empty_array_mt = array_mt,
    empty_array = setmetatable({}, array_mt), _NAME = "cjson", _VERSION = "2.1.0.10",
  }
end

local modules = { cjson = new_cjson(false), ["cjson.safe"] = new_cjson(true) }
-- Installed plugins (kong.plugins.<name>.*) are trusted: they have everything, and Kong as globals.
_G.kong, _G.ngx = kong, ngx
package.path, package.cpath = host.package_path, ""
package.preload["cjson"] = function() return modules.cjson end
package.preload["cjson.safe"] = function() return modules["cjson.safe"] end
package.preload["kong.db.schema.typedefs"] = function()
  return setmetatable({}, { __index = function(_, name) return { minikong_typedef = name } end })
end

-- Plugins of plugin servers, for a handler in Lua that stands before one.
local notifications = {}
package.preload["kong.runloop.plugin_servers"] = function()
  return {
    load_plugin = function(name)
      local plugin = host.served(name)
      if not plugin then return false, "no plugin found" end
      plugin.name, plugin.rpc_notifications = name, notifications
      plugin.rpc = {
        handle_event = function(_, _conf, event)
          host.event(name, event)
          local problem = yield("event")
          if problem then error(problem, 0) end
        end,
      }
      for _, phase in ipairs(plugin.phases) do
        plugin[phase] = phase == "log" and function() host.log_event(name) end
          or function(_, conf) plugin.rpc:handle_event(conf, phase) end
      end
      return true, plugin
    end,
  }
end

-- What is to be run for a notification; nil for one that nobody knows.
local function notification(label, message)
  local known = notifications[label]
  return known and function() known(nil, message) end
end

local function load_plugin(name, part)
  return require("kong.plugins." .. name .. "." .. part)
end

-- One phase of a configured plugin, as a function without arguments.
local function method(handler, phase, conf)
  return function() handler[phase](handler, conf) end
end

local host_require = require
local function find_module(name)
  if modules[name] then return modules[name] end
  return host_require(name)
end

-- sandbox

local function pick(names)
  local env = {}
  for id in names:gmatch("%S+") do
    local module, member = id:match("([^%.]+)%.([^%.]+)")
    if module then
      env[module] = env[module] or {}
      env[module][member] = _G[module][member]
    else
      env[id] = _G[id]
    end
  end
  return env
end

local BASE = pick [[
  _VERSION assert error ipairs next pairs pcall select tonumber tostring type unpack xpcall
  coroutine.create coroutine.resume coroutine.running coroutine.status coroutine.wrap coroutine.yield
  math.abs math.acos math.asin math.atan math.atan2 math.ceil math.cos math.cosh math.deg math.exp math.fmod
  math.floor math.frexp math.huge math.ldexp math.log math.log10 math.max math.min math.modf math.pi math.pow
  math.rad math.random math.sin math.sinh math.sqrt math.tan math.tanh
  os.clock os.date os.difftime os.time
  string.byte string.char string.find string.format string.gmatch string.gsub string.len string.lower
  string.match string.rep string.reverse string.sub string.upper
  table.concat table.insert table.maxn table.remove table.sort
]]
for _, name in ipairs { "coroutine", "math", "os", "string", "table" } do
  BASE[name] = setmetatable({}, {
    __index = BASE[name],
    __newindex = function(_, key) error("Can not modify " .. name .. "." .. key .. ". Protected by the sandbox.") end,
  })
end

local function link(path, from, to)
  local first, rest = path:match("([^%.]+)%.?(.*)")
  local found = from[first]
  if not found then return end
  if rest == "" then
    to[first] = type(found) == "table" and setmetatable({}, { __index = found }) or found
    return
  end
  to[first] = to[first] or {}
  link(rest, found, to[first])
end

local globals = setmetatable({ kong = kong, ngx = ngx, require = find_module }, { __index = _G })

local allowed, extra
if host.mode == "sandbox" then
  allowed, extra = {}, {}
  for name in host.requires:gmatch("[^ ]+") do allowed[name] = true end
  for name in host.environment:gmatch("[^ ]+") do link(name, globals, extra) end
  extra.require = function(name)
    if not allowed[name] then error(("require '%s' not allowed within sandbox"):format(name)) end
    return find_module(name)
  end
end

local function compile(code)
  if host.mode == "off" then
    error("loading of untrusted Lua code disabled because 'untrusted_lua' config option is set to 'off'")
  end
  local given = { kong = setmetatable({}, { __index = kong }), ngx = ngx }
  if host.mode ~= "sandbox" then
    return assert(load(code, nil, "t", setmetatable(given, { __index = globals })))
  end
  setmetatable(given, { __index = extra })
  local env = {}
  for key, value in pairs(BASE) do env[key] = value end
  setmetatable(env, { __index = given })
  env._G = env
  local chunk = assert(load(code, nil, "t", env))
  return function(...)
    local function finish(ok, ...)
      if not ok then error((...)) end
      return ...
    end
    return finish(pcall(chunk, ...))
  end
end

-- One phase's functions of one configured plugin. A chunk that returns a function is replaced by that function;
-- one that ended early on its first run stays what it is.
local function chain(codes)
  local steps = {}
  for i, code in ipairs(codes) do
    local current, began = compile(code), false
    steps[i] = function()
      if began then
        steps[i] = current
        return current()
      end
      began = true
      local result = current()
      if type(result) == "function" then
        current = result
        steps[i] = result
        result()
      end
      steps[i] = current
    end
  end
  return function()
    for _, step in ipairs(steps) do step() end
  end
end

return {
  chain = chain, null = null, load_plugin = load_plugin, method = method, notification = notification,
  check = function(code) local _, problem = loadstring(code) return problem end,
  is_array = function(t) return getmetatable(t) == array_mt end,
  as_array = function(t) return setmetatable(t, array_mt) end,
}
