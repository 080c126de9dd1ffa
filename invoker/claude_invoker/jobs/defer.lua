-- Put a running job away until somebody decides what it asks: it has no worker, no ticket and no place any more.
-- KEYS: job, tickets, blocked, running, events, deferred (zset: job -> ms at which it is denied what it asks)
-- ARGV: id, attempt that holds it, its queue and subject as in blocked, when it is denied (ms), then fields
-- Reply: 1 put away, 0 another's by now, 2 not put away, for it shall be cancelled
local id = ARGV[1]
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'ticket', 'cancel')
-- Sent again because the connection broke.
if held[1] == 'waiting_for_approval' and held[2] == ARGV[2] then return 1 end
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
if held[4] then return 2 end
redis.call('HDEL', KEYS[2], held[3])
redis.call('HDEL', KEYS[3], ARGV[3]) -- its place is free for the next
redis.call('ZREM', KEYS[4], id)
redis.call('HSET', KEYS[1], 'state', 'waiting_for_approval', unpack(ARGV, 5))
redis.call('HDEL', KEYS[1], 'worker', 'ticket', 'nonce', 'beat', 'work')
redis.call('ZADD', KEYS[6], ARGV[4], id)
redis.call('XADD', KEYS[5], held[2] .. '-999999990', 'event', 'job.waiting_for_approval', 'data', '{"id":"' .. id .. '"}')
return 1
