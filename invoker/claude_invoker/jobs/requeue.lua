-- Put a claimed job back at the head of its subject's line: no place for it now, or its worker was lost.
-- KEYS: job, ticket, blocked, count of waiting, ring of the tier, waiting list of the subject, running
-- ARGV: id, ticket, subject, tier, blocked until (ms; 0: not blocked)
-- Reply: 1 put back, 0 the ticket no longer holds it
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[7], ARGV[1])
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('HDEL', KEYS[1], 'worker', 'ticket', 'beat', 'started_at')
if redis.call('LPUSH', KEYS[6], ARGV[1]) == 1 then redis.call('RPUSH', KEYS[5], ARGV[3]) end
redis.call('INCR', KEYS[4])
if tonumber(ARGV[5]) > 0 then redis.call('HSET', KEYS[3], ARGV[4] .. ':' .. ARGV[3], ARGV[5]) end
return 1
