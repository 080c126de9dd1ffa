-- Ask for a job's end: whoever holds it is told. A waiting one is ended by finish.lua; should it be claimed before
-- that, its worker finds the mark.
-- KEYS: job
-- ARGV: id, channel, the subject for whom
-- Reply: the state before, or nil
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'queued' or state == 'running' or state == 'waiting_for_approval' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('HSETNX', KEYS[1], 'cancel_by', ARGV[3])
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return state
