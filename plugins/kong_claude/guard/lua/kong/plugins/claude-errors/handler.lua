-- Errors in the language of the client, on the paths of the vendors' APIs and of GraphQL, and as a page to a browser that
-- asks for the dashboard: those of our plugins, of the guards, of other
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

-- As on the dashboard's own pages (claude_invoker/dashboard/guard.py).
local PAGE_HEADERS = {
  ["Content-Type"] = "text/html; charset=utf-8",
  ["Content-Security-Policy"] = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    .. "form-action 'none'; frame-ancestors 'none'",
  ["X-Content-Type-Options"] = "nosniff",
  ["Referrer-Policy"] = "same-origin",
  ["Cache-Control"] = "no-store",
}
-- What somebody can do about it, and how the link to the login is called.
local TODO = {
  [401] = { "Log in first", "Whoever is logged in, for no longer than the login lasts, sees this page.", "Log in" },
  [403] = { "This account may not do that", "Ask whoever runs this gateway to let you in, then log in again.",
            "Log in again, or as somebody else" },
}
local LATER = { "That did not work", "Try it again in a moment.", nil }
local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- Anthropic's for messages, and for whoever sends what its clients always do; else OpenAI's.
local function language(conf)
  local path = (ngx.var.request_uri or ""):match("^[^?#]*")
  local prefix, dashboard = conf.prefix, conf.dashboard
  if path == conf.graphql then return "graphql" end
  if path == dashboard or path:sub(1, #dashboard + 1) == dashboard .. "/" then
    return (ngx.var.http_accept or ""):lower():find("text/html", 1, true) and "page" or nil
  end
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
  local spoken = language(conf)
  if not spoken then return end
  if spoken == "page" then
    kong.response.set_status(status)
    for name, value in pairs(PAGE_HEADERS) do kong.response.set_header(name, value) end
    kong.response.clear_header("Content-Length")
    kong.ctx.plugin.told = { spoken = spoken, status = status, home = conf.dashboard,
                             id = kong.response.get_header("X-Request-Id") or ngx.var.kong_request_id or "" }
    return
  end
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

local function escaped(text) return (text:gsub("[&<>\"']", ENTITIES)) end

local function page(told, message)
  local todo, home = TODO[told.status] or LATER, escaped(told.home)
  local login = todo[3] and '<p><a href="' .. home .. '/login">' .. todo[3] .. "</a></p>" or ""
  return '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    .. '<meta name="viewport" content="width=device-width, initial-scale=1"><title>' .. todo[1] .. " – Claude gateway</title>"
    .. '<link rel="stylesheet" href="' .. home .. '/static/style.css">'
    .. '<link rel="icon" href="' .. home .. '/static/icon.svg" type="image/svg+xml"></head>'
    .. '<body><main id="main"><section class="card login"><h1>' .. todo[1] .. "</h1><p>" .. todo[2] .. "</p>" .. login
    .. '<p class="dim">The gateway says: ' .. escaped(message) .. " (" .. told.status .. ", request "
    .. escaped(told.id) .. ")</p></section></main></body></html>"
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
  if told.spoken == "page" then return kong.response.set_raw_body(page(told, message)) end
  kong.response.set_raw_body(cjson.encode(SPEAK[told.spoken](told, message, said)))
end

return errors
