-- A running execution's heartbeat. A lease that lapsed comes back, since the run is still there; one that was settled
-- does not.
--
-- KEYS  1 leases   2 settled
-- ARGV  1 lease   2 time to live, ms
-- Reply 1 extended, 2 it had lapsed, 0 it is settled

if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0
end
local until_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
write_lease(KEYS[1], ARGV[1], tonumber(ARGV[2]))
return (until_ms and tonumber(until_ms) > now_ms) and 1 or 2
