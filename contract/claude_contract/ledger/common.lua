-- Put in front of every script. Times are microseconds since the epoch unless a name
-- says otherwise; they fit a Lua number exactly until 2255. The clock is Redis's own, so that gateways
-- whose clocks differ still agree.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

-- Values say their version; one that does not is version 0 (release 0.1.0). Versions `VERSION` and the one before are
-- read. A script that meets another returns `unreadable` before it has changed anything. Values are read by GET, not
-- MGET, to which a key of another type is none: what is damaged must not count as nothing.
local unreadable

local function check_version(version)
  if version > VERSION or version < VERSION - 1 then
    unreadable = redis.error_reply('VERSION ' .. version)
  end
end

-- Messages (requests to a model itself) have windows and places of their own, and money in common with runs. Whether the
-- script is about one: its windows are kept beside those of runs, under "m<length>".
local of_messages = false

local function kept_as(length)
  return of_messages and 'm' .. length or length
end

-- Rules, as a flat list: per window its length (s), limit, bucket width (ms) and burst (-1: sliding), packed little-endian.
local function read_rules(packed)
  local rules = {struct.unpack('<' .. string.rep('I4I4I4i4', #packed / 16), packed)}
  rules[#rules] = nil  -- the position behind what was read
  return rules
end

-- All windows of a subject are one value: a MessagePack map from a window's length in seconds to its state (minus the
-- length for a paced one); under 0 the millisecond at which all of them are empty. Other configurations' windows in it
-- stay as they are. `v` is the version; `kept_as` says under which keys those of messages are.
local function read_windows(value)
  local windows = value and cmsgpack.unpack(value) or {[0] = 0, v = VERSION}
  check_version(windows.v or 0)
  return windows
end

-- Sliding window: {used, last, span, count, step, count, step, count, ...}. The counts are buckets, oldest first; `last`
-- is the end of the newest (ms), `span` how long before it the oldest one ends, each step the time between two ends.
-- A bucket counts until its end has left the window: so no sliding window ever holds more than the limit, and a place
-- comes back at most one bucket too late. Ends, not numbers, so that the buckets' width may change with the limit.
-- Returns the state without what has left, or false.
local function live(window, length_ms)
  if not window then
    return false
  end
  local first, from = window[2] - window[3], 4
  while (first + length_ms) * 1000 <= now do
    window[1] = window[1] - window[from]
    if not window[from + 1] then
      return false
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

-- Counts one more in `windows`, by the rules and their live states; `states` are those with it.
local function count_in(windows, rules, states)
  for n = 1, #states do
    local at = 4 * n - 3
    local length, empty = rules[at], nil
    if rules[at + 3] >= 0 then
      states[n] = math.ceil(states[n] + length * 1000000 / rules[at + 1])
      windows[kept_as(-length)] = states[n]
      empty = math.ceil(states[n] / 1000)
    else
      states[n] = count_one(states[n], rules[at + 2])
      windows[kept_as(length)] = states[n]
      empty = states[n][2] + length * 1000
    end
    if empty > windows[0] then
      windows[0] = empty
    end
  end
end

local function write_windows(key, windows)
  windows.v = VERSION
  redis.call('PSETEX', key, windows[0] - now_ms + 1, cmsgpack.pack(windows))
end

-- What is left of a window, and milliseconds until a place comes back (0: all are there). Less than nothing is left where
-- its limit was lowered meanwhile.
-- `state` is the live state of a sliding window, the time `empty_at` of a paced one.
local function quota(burst, limit, length, state)
  if burst >= 0 then
    local step, backlog = length * 1000000 / limit, state - now
    local remaining = math.floor(burst + 1 - backlog / step)
    return remaining, math.ceil((remaining > 0 and math.min(backlog, step) or backlog - burst * step) / 1000)
  elseif state then
    return limit - state[1], math.ceil(first_leaves(state, length * 1000) / 1000)
  end
  return limit, 0
end

-- The live state of each window in the rules.
local function states_of(windows, rules)
  local states = {}
  for at = 1, #rules, 4 do
    local length = rules[at]
    if rules[at + 3] >= 0 then
      states[#states + 1] = empty_at(windows[kept_as(-length)])
    else
      states[#states + 1] = live(windows[kept_as(length)], length * 1000)
    end
  end
  return states
end
