-- Put a claimed job back at the head of its subject's queue: no place for it now, or it is orphaned.
-- KEYS: job, tickets, blocked, waiting, round robin of the queue, waiting list of the subject, running, events
-- ARGV: id, attempt that holds it, subject, queue, blocked until (ms; 0: it ran, and runs again), then fields
-- Reply: 1 put back, 0 another's by now, 2 not put back, for it shall be cancelled
local id, subject, queue, blocked = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'ticket', 'cancel')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
if held[4] then return 2 end
redis.call('HDEL', KEYS[2], held[3])
redis.call('ZREM', KEYS[7], id)
redis.call('HSET', KEYS[1], 'state', 'queued', unpack(ARGV, 6))
redis.call('HDEL', KEYS[1], 'worker', 'ticket', 'nonce', 'beat', 'started_at', 'work')
if redis.call('LPUSH', KEYS[6], id) == 1 then redis.call('RPUSH', KEYS[5], subject) end
redis.call('HINCRBY', KEYS[4], queue, 1)
if blocked > 0 then
  redis.call('HINCRBY', KEYS[1], 'attempt', -1)
  redis.call('HSET', KEYS[3], queue .. ':' .. subject, ARGV[5])
else
  redis.call('XADD', KEYS[8], held[2] .. '-999999999', 'event', 'job.requeued', 'data', '{"id":"' .. id .. '"}')
end
return 1
