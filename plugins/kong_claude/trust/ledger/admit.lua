-- Admits one request, or changes nothing. Every window, the concurrency and both budgets are checked first; only
-- then everything is taken. Also takes a queued job's lease when it starts (no windows then).
--
-- KEYS  1 leases   2 w   3 usd:day   4 usd:month
-- ARGV  1 lease "<id>:<micro-USD>", or "" for none
--       2 lease's time to live, ms
--       3 concurrent runs allowed, -1 any
--       4 micro-USD allowed per day, -1 any      5 per month, -1 any
--       6 busy: "reject", "queue" (where all slots are taken go on without a lease) or "later" (take no lease now)
--       7... per window: length (s), limit, bucket width (ms), burst (-1: sliding)
-- Reply 1 verdict: 0 refused, 1 admitted, 2 admitted without its lease (to be taken when the job starts)
--       2 culprit: 0 none, n the nth window, -1 concurrency, -2 day's budget, -3 month's budget
--       3 ms until the culprit may pass           4 running   5 reserved   6 spent today   7 spent this month
--       8... per window: remaining, ms until a place comes back

local lease, ttl_ms, concurrent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local budget_day, budget_month, busy = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local amount = tonumber(string.match(lease, ':(%d+)$') or 0)

local values = redis.call('MGET', KEYS[2], KEYS[3], KEYS[4])
local running, reserved, held = 0, 0, false
if lease ~= '' then
  running, reserved, held = read_leases(KEYS[1], lease)
end
local spent_day = read_spent(values[2], today)
local spent_month = values[3] and read_spent(values[3], month_of(today)) or 0

local culprit, wait = 0, 0
local function blame(who, us)
  -- Of several, the one that stays in the way for longest is named.
  if culprit == 0 or us > wait then
    culprit, wait = who, us
  end
end

local windows = read_windows(values[1])
local rules = {}
for at = 7, #ARGV, 4 do
  local n = #rules + 1
  local rule = {
    length = tonumber(ARGV[at]), limit = tonumber(ARGV[at + 1]), width = tonumber(ARGV[at + 2]),
    burst = tonumber(ARGV[at + 3]),
  }
  rules[n] = rule
  if rule.burst >= 0 then
    rule.step = rule.length * 1000000 / rule.limit
    rule.empty = empty_at(windows[-rule.length])
    local over = rule.empty - now - rule.burst * rule.step
    if over > 0 then
      blame(n, over)
    end
  else
    rule.state = live(windows[rule.length], rule.length * 1000)
    if rule.state and rule.state[1] >= rule.limit then
      blame(n, window_wait(rule.state, rule.limit, rule.length * 1000))
    end
  end
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
else
  for _, rule in ipairs(rules) do
    if rule.burst >= 0 then
      rule.empty = math.ceil(rule.empty + rule.step)
      windows[-rule.length] = rule.empty
    else
      rule.state = count_one(rule.state, rule.width)
      windows[rule.length] = rule.state
    end
  end
  if #rules > 0 then
    write_windows(KEYS[2], windows)
  end
  if lease ~= '' and verdict == 1 then
    write_lease(KEYS[1], lease, ttl_ms)
    running, reserved = running + 1, reserved + amount
  end
end

local reply = {verdict, culprit, math.ceil(wait / 1000), running, reserved, spent_day, spent_month}
for _, rule in ipairs(rules) do
  local remaining, reset = quota(rule.burst, rule.limit, rule.length, rule.burst >= 0 and rule.empty or rule.state)
  reply[#reply + 1] = remaining
  reply[#reply + 1] = reset
end
return reply
