-- Errors in the language of the client, on the paths of the vendors' APIs and of GraphQL: those of our plugins, of the guards, of other
-- plugins and of Kong itself (no route, no upstream), so it is global. What a service answers is left alone: the invoker
-- speaks these languages (claude_invoker/api/languages.py has the same table, and a test holds the two together).
local cjson = require "cjson.safe"

local errors = { VERSION = "0.1.0", PRIORITY = 5 }

local ANTHROPIC = {
  [401] = "authentication_error", [402] = "billing_error", [403] = "permission_error", [404] = "not_found_error",
  [408] = "timeout_error", [413] = "request_too_large", [429] = "rate_limit_error", [503] = "overloaded_error",
  [504] = "timeout_error", [507] = "overloaded_error", [529] = "overloaded_error",
}
local OPENAI = { [401] = "authentication_error", [403] = "permission_error", [429] = "rate_limit_error" }
-- The invoker's kinds, of what has no name of a plugin's.
local GRAPHQL = {
  [400] = "bad-request", [401] = "unauthenticated", [403] = "forbidden", [404] = "not-found",
  [405] = "method-not-allowed", [408] = "too-slow", [413] = "too-large", [422] = "invalid", [429] = "limited",
  [503] = "busy", [504] = "timeout",
}
-- What is said where there is no JSON to take it from: a client asked for HTML, or nginx answered.
local SAID = { [404] = "there is nothing at this path", [413] = "the request is too large" }
-- Members of Kong's and our plugins' bodies that have a place of their own.
local PLACED = { message = true, detail = true, title = true, type = true, status = true, request_id = true }

-- Anthropic's for messages, and for whoever sends what its clients always do; else OpenAI's.
local function language(prefix, graphql)
  local path = (ngx.var.request_uri or ""):match("^[^?#]*")
  if path == graphql then return "graphql" end
  if path:sub(1, #prefix + 1) ~= prefix .. "/" then return nil end
  local inside = path:sub(#prefix + 2)
  if inside == "messages" or inside:sub(1, 9) == "messages/" or ngx.var.http_anthropic_version then
    return "anthropic"
  end
  return "openai"
end

function errors:header_filter(conf)
  local status = kong.response.get_status()
  if status < 400 or kong.response.get_source() == "service" then return end
  local spoken = language(conf.prefix, conf.graphql)
  if not spoken then return end
  if status == 422 and spoken ~= "graphql" then status = 400 end
  local id = kong.response.get_header("X-Request-Id")
  if not id then
    id = ngx.var.kong_request_id or ""
    kong.response.set_header("X-Request-Id", id)
  end
  if spoken == "anthropic" then kong.response.set_header("request-id", id) end
  -- The service had the request before it failed: a run may have begun, and must not be paid for again. And a token that
  -- is refused will be refused: Claude Code would try it for minutes before it says so.
  if status == 401 or (ngx.var.upstream_connect_time or ""):find("%d") then
    kong.response.set_header("X-Should-Retry", "false")
  end
  kong.response.set_status(status)
  kong.response.set_header("Content-Type", "application/json")
  kong.response.clear_header("Content-Length")
  local refusal = kong.response.get_header("X-Claude-Refusal")
  kong.ctx.plugin.told = { spoken = spoken, status = status, id = id, code = refusal and refusal:match("([^/]+)$") }
end

-- What else there is to know of it, such as which limit: nil where there is nothing.
local function details(body)
  local found
  for name, value in pairs(body) do
    if not PLACED[name] then
      found = found or {}
      found[name] = value
    end
  end
  return found
end

local function anthropic(told, message, body)
  local more = details(body)
  if told.code then
    more = more or {}
    more.error_code = told.code
  end
  local kind = ANTHROPIC[told.status] or (told.status < 500 and "invalid_request_error" or "api_error")
  return { type = "error", error = { type = kind, message = message, details = more }, request_id = told.id }
end

local function openai(told, message, body)
  local kind = OPENAI[told.status] or (told.status < 500 and "invalid_request_error" or "server_error")
  local said = { message = message, type = kind, param = cjson.null, code = told.code or cjson.null }
  said.details = details(body)
  return { error = said }
end

local function graphql(told, message, body)
  local extensions = details(body) or {}
  extensions.code = told.code or GRAPHQL[told.status] or "internal"
  extensions.status = told.status
  extensions.request_id = told.id
  return { errors = { { message = message, extensions = extensions } } }
end

local SPEAK = { anthropic = anthropic, openai = openai, graphql = graphql }

function errors:body_filter()
  local told = kong.ctx.plugin.told
  if not told then return end
  local body = kong.response.get_raw_body()
  if not body then return end
  local said = cjson.decode(body)
  if type(said) ~= "table" then said = {} end
  local message = said.message or said.detail
  if type(message) ~= "string" then message = SAID[told.status] or "the request failed with status " .. told.status end
  kong.response.set_raw_body(cjson.encode(SPEAK[told.spoken](told, message, said)))
end

return errors
