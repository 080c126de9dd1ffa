-- Ends a run: its lease and its reservation go, what it cost is booked. Booked once, however often it is called;
-- and booked even where the lease has lapsed, for the money is spent.
--
-- KEYS  1 leases   2 usd:day   3 usd:month   4 settled
-- ARGV  1 lease   2 cost, micro-USD   3 ms for which a repetition is recognised
-- Reply 1 booked, 0 it was before

local month = month_of(today)
local spent_day = read_spent(redis.call('GET', KEYS[2]), today)
local spent_month = read_spent(redis.call('GET', KEYS[3]), month)
if unreadable then
  return unreadable
end

redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now_ms)
if redis.call('ZADD', KEYS[4], 'NX', now_ms + ARGV[3], ARGV[1]) == 0 then
  return 0
end
redis.call('PEXPIRE', KEYS[4], ARGV[3])

local cost = tonumber(ARGV[2])
if cost > 0 then
  write_spent(KEYS[2], today, spent_day + cost, 2)
  write_spent(KEYS[3], month, spent_month + cost, 32)
end
return 1
