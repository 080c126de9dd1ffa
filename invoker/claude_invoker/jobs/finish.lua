-- End a job, once, and drop its body, unless it may be tried again and is small. A worker that was thought dead and comes back finds that its attempt no longer counts.
-- KEYS: job, tickets, running, events, tombstone, waiting list of the subject, round robin of the queue, waiting, blocked,
--       callbacks (zset: job -> ms since which its webhook is owed), deferred
-- ARGV: id, attempt that holds it ("" : it must still wait), retention (s), tombstone ttl (s), subject, queue, now (ms),
--       the state, then fields of the record
-- Reply: 1 ended now, 0 it was over before or another's
local id, subject, queue = ARGV[1], ARGV[5], ARGV[6]
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'ticket', 'callback')
if ARGV[2] == '' then
  if held[1] ~= 'queued' and held[1] ~= 'waiting_for_approval' then return 0 end
  redis.call('ZREM', KEYS[11], id)
  if redis.call('LREM', KEYS[6], 1, id) == 1 then redis.call('HINCRBY', KEYS[8], queue, -1) end
  if redis.call('EXISTS', KEYS[6]) == 0 then
    redis.call('LREM', KEYS[7], 0, subject) -- else a later job would serve it twice in each round
    redis.call('HDEL', KEYS[9], queue .. ':' .. subject)
  end
else
  if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
  redis.call('HDEL', KEYS[9], queue .. ':' .. subject) -- its place is free for the next
end
-- Nobody runs it any more: its body goes, which may have megabytes, and the result stays. What has not succeeded may be
-- asked for once more: a small body is kept with it then, and of another it is said why it is not.
local size, again = redis.call('HSTRLEN', KEYS[1], 'request'), ''
if ARGV[8] ~= 'done' then
  if size > most_kept then
    again = 'large'
  else
    local body = redis.call('HGET', KEYS[1], 'request') or ''
    local attached = body:find('"type":"image"', 1, true) or body:find('"type":"document"', 1, true)
    again = attached and 'attached' or 'kept'
  end
end
local change = 0
for i = 9, #ARGV do change = change + #ARGV[i] end
if again ~= 'kept' then
  if redis.call('HEXISTS', sizes, id) == 1 then change = change + #BODY - size end
  redis.call('HSET', KEYS[1], 'request', BODY)
end
redis.call('HSET', KEYS[1], 'again', again, 'state', ARGV[8], unpack(ARGV, 9))
grow(id, subject, change)
redis.call('ZADD', ended, ARGV[7], id)
redis.call('ZADD', ended .. ':' .. subject, ARGV[7], id)
if held[3] then redis.call('HDEL', KEYS[2], held[3]) end
redis.call('ZREM', KEYS[3], id)
redis.call('EXPIRE', KEYS[1], ARGV[3])
-- The last event, so that whoever follows need not ask for the state; none can be added behind it.
local attempt = tonumber(held[2] or 0) + (ARGV[2] == '' and 1 or 0)
redis.call('XADD', KEYS[4], string.format('%d-999999999', attempt), 'event', 'job.' .. ARGV[8],
           'data', '{"id":"' .. id .. '","state":"' .. ARGV[8] .. '"}')
redis.call('EXPIRE', KEYS[4], ARGV[3])
redis.call('SET', KEYS[5], subject, 'EX', ARGV[4])
if held[4] then redis.call('ZADD', KEYS[10], ARGV[7], id) end
return 1
