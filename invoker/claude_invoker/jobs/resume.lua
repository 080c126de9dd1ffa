-- Let a job that is put away wait for its turn, at the head of its subject's queue: what it asks is decided.
-- KEYS: job, waiting list of the subject, round robin of the queue, waiting, events, deferred
-- ARGV: id, attempt that was put away, subject, queue, the decision (JSON), then fields
-- Reply: 1 it waits, 0 it is decided already, or put away no more
local id = ARGV[1]
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt')
-- Sent again because the connection broke: a worker may have the job by then.
local decided = ARGV[2] .. '-999999995'
local told = redis.call('XRANGE', KEYS[5], decided, decided)[1]
if told and told[2][4] == ARGV[5] then return 1 end
if held[1] ~= 'waiting_for_approval' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', unpack(ARGV, 6))
redis.call('ZREM', KEYS[6], id)
if redis.call('LPUSH', KEYS[2], id) == 1 then redis.call('RPUSH', KEYS[3], ARGV[3]) end
redis.call('HINCRBY', KEYS[4], ARGV[4], 1)
redis.call('XADD', KEYS[5], decided, 'event', 'permission.decided', 'data', ARGV[5])
return 1
