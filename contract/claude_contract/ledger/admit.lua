-- Admits one request, or changes nothing. Every window, the concurrency and both budgets are checked first; only
-- then everything is taken. Also takes a queued job's lease when it starts (no windows then).
--
-- KEYS  1 leases   2 w   3 usd:day   4 usd:month
-- ARGV  1 lease "<id>:<micro-USD>", or "" for none
--       2 lease's time to live, ms
--       3 concurrent runs allowed, -1 any
--       4 micro-USD allowed per day, -1 any      5 per month, -1 any
--       6 busy: "reject", "queue" (where all slots are taken go on without a lease) or "later" (take no lease now)
--       7 rules, "" for none
-- Reply 1 verdict: 0 refused, 1 admitted, 2 admitted without its lease (to be taken when the job starts)
--       2 exceeded limit: 0 none, n the nth window, -1 concurrency, -2 day's budget, -3 month's budget
--       3 ms until it may pass                    4 running   5 reserved   6 spent today   7 spent this month
--       (4 to 7 are 0 where no lease was asked for)
--       8... per window: remaining, ms until a place comes back

local lease, ttl_ms, concurrent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local budget_day, budget_month, busy = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local amount = tonumber(string.match(lease, ':(%d+)$') or 0)

local value
local running, reserved, held, spent_day, spent_month = 0, 0, false, 0, 0
if lease == '' then
  value = redis.call('GET', KEYS[2])
else
  local day, month
  value, day, month = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]), redis.call('GET', KEYS[4])
  running, reserved, held = read_leases(KEYS[1], lease)
  spent_day = read_spent(day, today)
  spent_month = month and read_spent(month, month_of(today)) or 0
end

local exceeded, wait = 0, 0
local function refuse_for(limit, us)
  -- Of several, the one that stays in the way for longest is named.
  if exceeded == 0 or us > wait then
    exceeded, wait = limit, us
  end
end

local windows, rules, states = read_windows(value), read_rules(ARGV[7]), {}
if unreadable then
  return unreadable
end
local count = (#rules - 1) / 4  -- struct.unpack adds the position behind what it read
for n = 1, count do
  local at = 4 * n - 3
  local length, limit, burst = rules[at], rules[at + 1], rules[at + 3]
  if burst >= 0 then
    states[n] = empty_at(windows[-length])
    local over = states[n] - now - burst * (length * 1000000 / limit)
    if over > 0 then
      refuse_for(n, over)
    end
  else
    local state = live(windows[length], length * 1000)
    states[n] = state
    if state and state[1] >= limit then
      refuse_for(n, window_wait(state, limit, length * 1000))
    end
  end
end

local verdict = 1
if lease ~= '' and not held then
  if budget_day >= 0 and spent_day + reserved + amount > budget_day then
    refuse_for(-2, spent_day + amount > budget_day and (today + 1) * DAY - now or 0)
  end
  if budget_month >= 0 and spent_month + reserved + amount > budget_month then
    refuse_for(-3, spent_month + amount > budget_month and month_left() or 0)
  end
  if busy == 'later' then
    verdict = 2
  elseif concurrent >= 0 and running >= concurrent then
    if busy == 'queue' then
      verdict = 2
    else
      refuse_for(-1, 0)
    end
  end
end

if exceeded ~= 0 then
  verdict = 0
else
  for n = 1, count do
    local at = 4 * n - 3
    local length, empty = rules[at], nil
    if rules[at + 3] >= 0 then
      states[n] = math.ceil(states[n] + length * 1000000 / rules[at + 1])
      windows[-length] = states[n]
      empty = math.ceil(states[n] / 1000)
    else
      states[n] = count_one(states[n], rules[at + 2])
      windows[length] = states[n]
      empty = states[n][2] + length * 1000
    end
    if empty > windows[0] then
      windows[0] = empty
    end
  end
  if count > 0 then
    write_windows(KEYS[2], windows)
  end
  if lease ~= '' and verdict == 1 then
    write_lease(KEYS[1], lease, ttl_ms)
    running, reserved = running + 1, reserved + amount
  end
end

local reply = {verdict, exceeded, math.ceil(wait / 1000), running, reserved, spent_day, spent_month}
for n = 1, count do
  local at = 4 * n - 3
  reply[2 * n + 6], reply[2 * n + 7] = quota(rules[at + 3], rules[at + 1], rules[at], states[n])
end
return reply
