-- Gives back a lease and its reservation: the run never happened. No cost is booked, and a settlement may still follow.
--
-- KEYS  see `money.lua`
-- ARGV  1 lease
-- Reply 1 given back, 0 there was none

return take_off(ARGV[1]) and 1 or 0
