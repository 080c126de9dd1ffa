-- A running execution's heartbeat. A lease that lapsed comes back, since the run is still there; one that was settled
-- does not.
--
-- KEYS  see `money.lua`
-- ARGV  1 lease   2 time to live, ms
-- Reply 1 extended, 2 it had lapsed, 0 it is settled

if redis.call('ZSCORE', SETTLED, ARGV[1]) then
  return 0
end
local found = read_leases(ARGV[1])
if unreadable then
  return unreadable
end
write_lease(ARGV[1], tonumber(ARGV[2]), found)
return found.own and 1 or 2
