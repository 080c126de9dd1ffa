-- Put a running job away until somebody decides what it asks: it has no worker, no ticket and no place any more. What is
-- decided by now is stored with that, and it waits for its turn at once, at the head of its subject's queue.
-- KEYS: job, tickets, blocked, running, events, deferred (zset: job -> ms at which it is denied what it asks), waiting list
--       of the subject, round robin of the queue, waiting
-- ARGV: id, attempt that holds it, subject, queue, when it is denied (ms; "": it is decided), then fields
-- Reply: 1 put away, 0 another's by now, 2 not put away, for it shall be cancelled
local id, subject, queue, denied_at = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local state = denied_at == '' and 'queued' or 'waiting_for_approval'
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'ticket', 'cancel')
-- Sent again because the connection broke.
if held[1] == state and held[2] == ARGV[2] then return 1 end
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
if held[4] then return 2 end
redis.call('HDEL', KEYS[2], held[3])
redis.call('HDEL', KEYS[3], queue .. ':' .. subject) -- its place is free for the next
redis.call('ZREM', KEYS[4], id)
redis.call('HSET', KEYS[1], 'state', state, unpack(ARGV, 6))
redis.call('HDEL', KEYS[1], 'worker', 'ticket', 'nonce', 'beat', 'work')
if denied_at == '' then
  if redis.call('LPUSH', KEYS[7], id) == 1 then redis.call('RPUSH', KEYS[8], subject) end
  redis.call('HINCRBY', KEYS[9], queue, 1)
else
  redis.call('ZADD', KEYS[6], denied_at, id)
  redis.call('XADD', KEYS[5], held[2] .. '-999999990', 'event', 'job.waiting_for_approval', 'data', '{"id":"' .. id .. '"}')
end
return 1
