-- What a subject has used. Writes nothing.
--
-- KEYS  1 leases   2 w   3 usd:day   4 usd:month
-- ARGV  1 rules, "" for none
-- Reply 1 running   2 reserved   3 spent today   4 spent this month   5 ms left of the day   6 of the month
--       7... per window: remaining, ms until a place comes back (0: nothing is used)

local running, reserved = read_leases(KEYS[1], '')
local reply = {
  running, reserved, read_spent(redis.call('GET', KEYS[3]), today),
  read_spent(redis.call('GET', KEYS[4]), month_of(today)),
  math.ceil(((today + 1) * DAY - now) / 1000), math.ceil(month_left() / 1000),
}
local windows, rules = read_windows(redis.call('GET', KEYS[2])), read_rules(ARGV[1])
if unreadable then
  return unreadable
end
for at = 1, #rules - 1, 4 do
  local length, limit, burst = rules[at], rules[at + 1], rules[at + 3]
  local state
  if burst >= 0 then
    state = empty_at(windows[-length])
  else
    state = live(windows[length], length * 1000)
  end
  local remaining, reset = quota(burst, limit, length, state)
  reply[#reply + 1] = remaining
  reply[#reply + 1] = reset
end
return reply
