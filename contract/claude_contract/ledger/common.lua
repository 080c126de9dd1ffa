-- Put in front of every script that reads windows or money. Times are microseconds since the epoch unless a name
-- says otherwise; they fit a Lua number exactly until 2255. The clock is Redis's own, so that gateways
-- whose clocks differ still agree.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

local DAY = 86400000000

-- Values say their version; one that does not is version 0 (release 0.1.0). Versions `VERSION` and the one before are
-- read. A script that meets another returns `unreadable` before it has changed anything. Values are read by GET, not
-- MGET, to which a key of another type is none: what is damaged must not count as nothing.
local unreadable

local function check_version(version)
  if version > VERSION or version < VERSION - 1 then
    unreadable = redis.error_reply('VERSION ' .. version)
  end
end

-- Rules, as a flat list: per window its length (s), limit, bucket width (ms) and burst (-1: sliding), packed little-endian.
local function read_rules(packed)
  return {struct.unpack('<' .. string.rep('I4I4I4i4', #packed / 16), packed)}
end

-- All windows of a subject are one value: a MessagePack map from a window's length in seconds to its state (minus the
-- length for a paced one); under 0 the millisecond at which all of them are empty. Other configurations' windows in it
-- stay as they are. `v` is the version.
local function read_windows(value)
  local windows = value and cmsgpack.unpack(value) or {[0] = 0, v = VERSION}
  check_version(windows.v or 0)
  return windows
end

-- Sliding window: {used, last, span, count, step, count, step, count, ...}. The counts are buckets, oldest first; `last`
-- is the end of the newest (ms), `span` how long before it the oldest one ends, each step the time between two ends.
-- A bucket counts until its end has left the window: so no sliding window ever holds more than the limit, and a place
-- comes back at most one bucket too late. Ends, not numbers, so that the buckets' width may change with the limit.
-- Returns the state without what has left, or nil.
local function live(window, length_ms)
  if not window then
    return nil
  end
  local first, from = window[2] - window[3], 4
  while (first + length_ms) * 1000 <= now do
    window[1] = window[1] - window[from]
    if not window[from + 1] then
      return nil
    end
    first, from = first + window[from + 1], from + 2
  end
  if from == 4 then
    return window
  end
  return {window[1], window[2], window[2] - first, unpack(window, from)}
end

-- The state with one more request.
local function count_one(window, width_ms)
  local last = (math.floor(now / 1000 / width_ms) + 1) * width_ms
  if not window then
    return {1, last, 0, 1}
  end
  local step = last - window[2]
  window[1] = window[1] + 1
  if step > 0 then  -- a clock that went back, or narrower buckets than before, must not break the order
    window[2], window[3] = last, window[3] + step
    window[#window + 1] = step
    window[#window + 1] = 1
  else
    window[#window] = window[#window] + 1
  end
  return window
end

-- Microseconds until the oldest bucket leaves.
local function first_leaves(window, length_ms)
  return (window[2] - window[3] + length_ms) * 1000 - now
end

-- Microseconds until fewer than `limit` are left.
local function window_wait(window, limit, length_ms)
  local used, ends, at = window[1], window[2] - window[3], 4
  while true do
    used = used - window[at]
    if used < limit then
      return (ends + length_ms) * 1000 - now
    end
    ends, at = ends + window[at + 1], at + 2
  end
end

-- Paced window (a tier with `burst`): the leaky bucket of nginx's limit_req with nodelay, kept as the microsecond at
-- which it will be empty (GCRA's theoretical arrival time). Returns that time, not before now.
local function empty_at(state)
  return math.max(state or 0, now)
end

local function write_windows(key, windows)
  windows.v = VERSION
  redis.call('SET', key, cmsgpack.pack(windows), 'PX', windows[0] - now_ms + 1)
end

-- What is left of a window, and milliseconds until a place comes back (0: all are there).
-- `state` is the live state of a sliding window, the time `empty_at` of a paced one.
local function quota(burst, limit, length, state)
  if burst >= 0 then
    local step, backlog = length * 1000000 / limit, state - now
    local remaining = math.max(math.floor(burst + 1 - backlog / step), 0)
    return remaining, math.ceil((remaining > 0 and math.min(backlog, step) or backlog - burst * step) / 1000)
  elseif state then
    return math.max(limit - state[1], 0), math.ceil(first_leaves(state, length * 1000) / 1000)
  end
  return limit, 0
end

-- The civil month of a day (days since 1970-01-01) as year * 100 + month. Howard Hinnant's civil_from_days.
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor(
    (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 100 + month
end

local today = math.floor(now / DAY)

-- Money spent in a period (UTC day or month). The value is "<period>:<micro-USD>:<version>"; another period's counts
-- nothing. Version 1 is read and not written yet: for release 0.1.0, after a rollback, it would be nothing spent.
local function read_spent(value, period)
  if value then
    local of, spent, version = string.match(value, '^(%d+):(%d+):?(%d*)$')
    check_version(tonumber(version) or of and 0 or VERSION + 1)
    if tonumber(of) == period then
      return tonumber(spent)
    end
  end
  return 0
end

local function write_spent(key, period, spent, days)
  redis.call('SET', key, string.format('%d:%.0f', period, spent), 'EX', days * 86400)
end

-- Microseconds until the month ends.
local function month_left()
  local month, day = month_of(today), today + 1
  while month_of(day) == month do
    day = day + 1
  end
  return day * DAY - now
end

-- Running executions: a sorted set of "v<version>.<id>:<reserved micro-USD>" by the millisecond at which each lapses.
-- Returns how many live, the money they reserve (both without `own`), whether `own` is among them, and when the
-- first lapses.
local function read_leases(key, own)
  local live = redis.call('ZRANGEBYSCORE', key, '(' .. now_ms, '+inf')
  local running, reserved, held = 0, 0, false
  for i = 1, #live do
    if live[i] == own then
      held = true
    else
      check_version(tonumber(string.match(live[i], '^v(%d+)%.') or 0))
      running = running + 1
      reserved = reserved + tonumber(string.match(live[i], ':(%d+)$') or 0)
    end
  end
  return running, reserved, held
end

-- Takes or extends a lease; the set itself lives as long as its longest lease.
local function write_lease(key, lease, ttl_ms)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now_ms)
  redis.call('ZADD', key, now_ms + ttl_ms, lease)
  if redis.call('PTTL', key) < ttl_ms then
    redis.call('PEXPIRE', key, ttl_ms)
  end
end
