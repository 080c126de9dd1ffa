-- Leaves a line for the audit log, of an attempt that was refused: where too many wait already, it is not kept.
--
-- KEYS  1 what waits for the audit log
-- ARGV  1 the line   2 how many may wait
-- Reply 1 kept, 0 not

if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('XADD', KEYS[1], '*', 'line', ARGV[1], 'before', '', 'after', '')
return 1
