-- Limits that an admin has changed for a while, behind `money.lua`: in the rules and terms that were sent they take the
-- place of what the configuration says.
--
-- `LIMITS` is a hash. A field is what the change binds, "s:<subject>", "t:<tier>", "p:<pool's key>" or "P:<pool's name>";
-- its value is JSON: {v: version, until: ms, limits: {name: number}, …}. Of several changes of one limit that of the
-- subject goes before that of the tier, that of one pool before that of all pools of its name. Only limits that are there
-- are changed, and `blocked`.
local BLOCKED = -1000  -- the number of the limit that refuses whoever is blocked,
local BLOCKED_TIER = -1001  -- and whose tier is

-- What was changed, for the reply: of which account, which limit (as `admit` numbers them), what it is now. And until when
-- an account is blocked, by which of the two numbers.
local changed, blocked_until, blocked_by = {}, {}, {}

-- Changes the rules and the terms of each account. `tier` is the subject's. Nearly always there is nothing to change: what
-- is needed to change it is made only then.
local function apply_changes(rules, terms, tier)
  if redis.call('EXISTS', LIMITS) == 0 then
    return
  end
  local lengths = {second = 1, minute = 60, hour = 3600, day = 86400, month = 2592000, year = 31536000}
  local budgets = {
    'usd_per_hour', 'usd_per_day', 'usd_per_week', 'usd_per_month',
    'usd_per_rolling_hour', 'usd_per_rolling_day', 'usd_per_rolling_week', 'usd_per_rolling_month',
  }

  local function change_window(of, length, value)
    for at = 1, #of, 4 do
      if of[at] == length then
        of[at + 1], of[at + 2] = value, value <= 64 and 1 or math.floor(length * 1000 / 64)
        return (at + 3) / 4
      end
    end
  end

  local function change_terms(of, name, value)
    if name == 'concurrent' then
      if of[1] and of[1] >= 0 then
        of[1] = value
        return -1
      end
      return nil
    end
    for at = 2, #of, 4 do
      if budgets[math.floor(of[at + 3] / 4)] == name then
        of[at] = value
        return -1 - (at + 2) / 4
      end
    end
  end

  local function change(n, name, value, till, of_tier)
    if name == 'blocked' then
      blocked_until[n] = value > 0 and till or nil
      blocked_by[n] = of_tier and BLOCKED_TIER or BLOCKED
      return
    end
    local length = lengths[name]
    if of_messages and (length or name == 'concurrent') then
      return  -- those are of runs
    end
    local which = length and change_window(rules[n], length, value) or change_terms(terms[n], name, value)
    if which then
      local last = #changed
      changed[last + 1], changed[last + 2], changed[last + 3] = n, which, value
    end
  end

  local fields = {'s:' .. (shared and name_of(1) or string.match(LEASES, '{(.*)}:leases$')), 't:' .. tier}
  for n = 2, accounts do
    local key = name_of(n)
    fields[2 * n - 1], fields[2 * n] = 'p:' .. key, 'P:' .. string.match(key, '^pool%.([^:]*)')
  end
  local values = redis.call('HMGET', LIMITS, unpack(fields))
  for n = 1, accounts do
    local known = {}
    for at = 2 * n - 1, 2 * n do
      local found = values[at] and cjson.decode(values[at])
      if found then
        check_version(found.v or 0)
      end
      if found and found['until'] > now_ms then
        for name, value in pairs(found.limits) do
          if not known[name] then
            known[name] = true
            change(n, name, value, found['until'], at == 2)
          end
        end
      end
    end
  end
end

-- Behind what is in the reply; returns the place behind that.
local function append(reply, numbers)
  for i = 1, #numbers do
    reply[#reply + 1] = numbers[i]
  end
  return #reply + 1
end
