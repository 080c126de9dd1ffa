-- Cancel a job: a waiting one leaves its line, a running one is told so.
-- KEYS: job, waiting list of the subject, count of waiting
-- ARGV: id, channel
-- Reply: the state before; a waiting job is left for finish.lua
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'queued' then
  if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 1 then redis.call('DECR', KEYS[3]) end
elseif state == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return state
