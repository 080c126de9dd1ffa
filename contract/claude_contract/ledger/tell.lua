-- Notes that a budget is nearly used up in this period, once; the notice of it is owed to the operator.
--
-- KEYS  1 told   2 owed: sorted set of notices by the millisecond at which each was told
-- ARGV  1 ms until the period is over   2 notice   3 how many are kept, the oldest go   4 ms for which they are
-- Reply 1 told now, 0 it was before

if not redis.call('SET', KEYS[1], VERSION, 'NX', 'PX', ARGV[1]) then
  return 0
end
redis.call('ZADD', KEYS[2], now_ms, ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
