-- What a subject has used. Writes nothing.
--
-- KEYS  1 leases   2 usd:day   3 usd:month   4... one per window
-- ARGV  per window: length, limit, bucket width, burst (-1: sliding)
-- Reply 1 running   2 reserved   3 spent today   4 spent this month   5 ms left of the day   6 of the month
--       7... per window: remaining, ms until a place comes back (0: nothing is used)

local values = redis.call('MGET', unpack(KEYS, 2))
local running, reserved = read_leases(KEYS[1], '')
local reply = {
  running, reserved, read_spent(values[1], today), read_spent(values[2], month_of(today)),
  math.ceil(((today + 1) * DAY - now) / 1000), math.ceil(month_left() / 1000),
}
for i = 4, #KEYS do
  local at = (i - 4) * 4
  local length, limit, width, burst =
    tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local remaining, reset
  if burst >= 0 then
    local step = length / limit
    local backlog = read_pace(values[i - 1]) - now
    remaining = math.max(math.floor(burst + 1 - backlog / step), 0)
    reset = remaining > 0 and math.min(backlog, step) or backlog - burst * step
  else
    local buckets, _, used = read_window(values[i - 1], length, width)
    remaining = math.max(limit - used, 0)
    reset = buckets[1] and (buckets[1] + 1) * width + length - now or 0
  end
  reply[#reply + 1] = remaining
  reply[#reply + 1] = math.ceil(reset / 1000)
end
return reply
