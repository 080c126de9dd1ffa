-- Gives back a lease and its reservation: the run never happened. No cost is booked, and a settlement may still follow.
--
-- KEYS  1 leases
-- ARGV  1 lease
-- Reply 1 given back, 0 there was none

return redis.call('ZREM', KEYS[1], ARGV[1])
