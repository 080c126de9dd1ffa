-- Admits one request, or changes nothing. Every window, the concurrency and both budgets are checked first; only
-- then everything is taken. Also takes a queued job's lease when it starts (no windows then).
--
-- KEYS  1 leases   2 usd:day   3 usd:month   4... one per window
-- ARGV  1 lease "<id>:<micro-USD>", or "" for none
--       2 lease's time to live, ms
--       3 concurrent runs allowed, -1 any
--       4 micro-USD allowed per day, -1 any      5 per month, -1 any
--       6 busy: "reject", "queue" (where all slots are taken go on without a lease) or "later" (take no lease now)
--       7... per window: length, limit, bucket width, burst (-1: sliding)
-- Reply 1 verdict: 0 refused, 1 admitted, 2 admitted without its lease (to be taken when the job starts)
--       2 culprit: 0 none, n the nth window, -1 concurrency, -2 day's budget, -3 month's budget
--       3 ms until the culprit may pass           4 running   5 reserved   6 spent today   7 spent this month
--       8... per window: remaining, ms until a place comes back

local lease, ttl_ms, concurrent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local budget_day, budget_month, busy = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local amount = tonumber(string.match(lease, ':(%d+)$') or 0)

local values = redis.call('MGET', unpack(KEYS, 2))
local running, reserved, held = 0, 0, false
if lease ~= '' then
  running, reserved, held = read_leases(KEYS[1], lease)
end
local spent_day = read_spent(values[1], today)
local spent_month = values[2] and read_spent(values[2], month_of(today)) or 0

local culprit, wait = 0, 0
local function blame(who, us)
  -- Of several, the one that stays in the way for longest is named.
  if culprit == 0 or us > wait then
    culprit, wait = who, us
  end
end

local reply, taken, lives = {}, {}, {}
local at = 7
for i = 4, #KEYS do
  local length, limit, width, burst =
    tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + 4
  local value, remaining, reset = values[i - 1], nil, nil
  if burst >= 0 then
    local step = length / limit
    local empty = read_pace(value)
    local over = empty - now - burst * step
    if over > 0 then
      blame(i - 3, over)
      remaining, reset = 0, over
    else
      remaining = math.floor(-over / step)
      reset = remaining > 0 and step or over + step
      empty = math.ceil(empty + step)
      taken[i] = string.format('%.0f', empty)
      lives[i] = empty - now
    end
  else
    local buckets, counts, used = read_window(value, length, width)
    if used >= limit then
      reset = window_wait(buckets, counts, used, limit, length, width)
      blame(i - 3, reset)
      remaining = 0
    else
      -- A clock that went back must not break the order.
      local bucket = math.max(math.floor(now / width), buckets[#buckets] or 0)
      if buckets[#buckets] == bucket then
        counts[#counts] = counts[#counts] + 1
      else
        buckets[#buckets + 1] = bucket
        counts[#counts + 1] = 1
      end
      local list, before = {}, 0
      for n = 1, #buckets do
        list[2 * n - 1], list[2 * n] = buckets[n] - before, counts[n]
        before = buckets[n]
      end
      taken[i] = cmsgpack.pack(list)
      lives[i] = length + width
      remaining = limit - used - 1
      reset = (buckets[1] + 1) * width + length - now
    end
  end
  reply[#reply + 1] = remaining
  reply[#reply + 1] = math.ceil(reset / 1000)
end

local verdict = 1
if lease ~= '' and not held then
  if budget_day >= 0 and spent_day + reserved + amount > budget_day then
    blame(-2, spent_day + amount > budget_day and (today + 1) * DAY - now or 0)
  end
  if budget_month >= 0 and spent_month + reserved + amount > budget_month then
    blame(-3, spent_month + amount > budget_month and month_left() or 0)
  end
  if busy == 'later' then
    verdict = 2
  elseif concurrent >= 0 and running >= concurrent then
    if busy == 'queue' then
      verdict = 2
    else
      blame(-1, 0)
    end
  end
end

if culprit ~= 0 then
  verdict = 0
  for i = 4, #KEYS do
    if taken[i] then
      reply[2 * i - 7] = reply[2 * i - 7] + 1
    end
  end
else
  for i = 4, #KEYS do
    redis.call('SET', KEYS[i], taken[i], 'PX', math.ceil(lives[i] / 1000) + 1000)
  end
  if lease ~= '' and verdict == 1 then
    write_lease(KEYS[1], lease, ttl_ms)
    running, reserved = running + 1, reserved + amount
  end
end

return {verdict, culprit, math.ceil(wait / 1000), running, reserved, spent_day, spent_month, unpack(reply)}
