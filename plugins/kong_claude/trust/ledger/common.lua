-- Put in front of every script that reads windows or money. Times are microseconds since the epoch unless a name
-- says otherwise; they fit a Lua number exactly until the year 2255. The clock is Redis's own, so that gateways
-- whose clocks differ still agree.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

local DAY = 86400000000

-- Sliding window. Its value is a MessagePack list [bucket, count, step, count, step, count, ...], oldest first; each
-- step is the distance to the bucket before. A bucket counts until the last instant in it has left the window: so
-- no sliding window ever holds more than the limit, and a place comes back at most one bucket too late.
-- Returns the live buckets, their counts, and the sum.
local function read_window(value, length, width)
  local buckets, counts, used = {}, {}, 0
  if value then
    local list, bucket = cmsgpack.unpack(value), 0
    for i = 1, #list, 2 do
      bucket = bucket + list[i]
      if (bucket + 1) * width + length > now then
        buckets[#buckets + 1] = bucket
        counts[#counts + 1] = list[i + 1]
        used = used + list[i + 1]
      end
    end
  end
  return buckets, counts, used
end

-- Microseconds until `used` has fallen below `below`, the oldest buckets leaving first.
local function window_wait(buckets, counts, used, below, length, width)
  for i = 1, #buckets do
    used = used - counts[i]
    if used < below then
      return (buckets[i] + 1) * width + length - now
    end
  end
  return 0
end

-- Paced window (a tier with `burst`): the leaky bucket of nginx's limit_req with nodelay, kept as the time at which
-- it would be empty (GCRA's theoretical arrival time). Returns that time, not before now.
local function read_pace(value)
  return math.max(tonumber(value or 0), now)
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

-- Money spent in a period (UTC day or month). The value is "<period>:<micro-USD>"; another period's counts nothing.
local function read_spent(value, period)
  if value then
    local of, spent = string.match(value, '^(%d+):(%d+)$')
    if tonumber(of) == period then
      return tonumber(spent)
    end
  end
  return 0
end

-- Microseconds until the month ends.
local function month_left()
  local month, day = month_of(today), today + 1
  while month_of(day) == month do
    day = day + 1
  end
  return day * DAY - now
end

-- Running executions: a sorted set of "<id>:<reserved micro-USD>" by the millisecond at which each lapses.
-- Returns how many live, the money they reserve (both without `own`), whether `own` is among them, and when the
-- first lapses.
local function read_leases(key, own)
  local live = redis.call('ZRANGEBYSCORE', key, '(' .. now_ms, '+inf')
  local running, reserved, held = 0, 0, false
  for i = 1, #live do
    if live[i] == own then
      held = true
    else
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
