-- Accept a job: all or nothing.
-- KEYS: job, idempotency (not used where the fingerprint is ""), waiting list of the subject, round robin of the queue, index of the subject,
--       index of all, waiting (hash: queue -> count)
-- ARGV: id, subject, now (s), fingerprint, ttl of the idempotency key (s), queue, bytes that a subject's jobs may hold,
--       bytes that all may hold, the job that it tries again ("": none), then the record
-- Reply: {1} accepted; {0, id} the same request was accepted before as that job; {-1} another body under this key;
--        {-2} the subject's jobs hold too much; {-3} all jobs do
local id, subject, now = ARGV[1], ARGV[2], ARGV[3]
-- A client whose connection broke sends the script again: ids are random, so this one is its own.
if redis.call('EXISTS', KEYS[1]) == 1 then return {1} end
if ARGV[4] ~= '' then
  local known = redis.call('HMGET', KEYS[2], 'id', 'fingerprint')
  -- A job that has expired is forgotten, with its key. Another subject's is never given, whatever led here.
  if known[1] and redis.call('HGET', prefix .. 'job:' .. known[1], 'subject') == subject then
    if known[2] ~= ARGV[4] then return {-1} end
    return {0, known[1]}
  end
end
local size = RECORD
for i = 10, #ARGV do size = size + #ARGV[i] end
if not room(ended .. ':' .. subject, 'of:' .. subject, tonumber(ARGV[7]), size) then return {-2} end
if not room(ended, 'all', tonumber(ARGV[8]), size) then return {-3} end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'id', id, 'fingerprint', ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 10))
grow(id, subject, size)
-- The subject joins the round robin with its first waiting job; it is there exactly once.
if redis.call('RPUSH', KEYS[3], id) == 1 then redis.call('RPUSH', KEYS[4], subject) end
redis.call('ZADD', KEYS[5], now, id)
redis.call('ZADD', KEYS[6], now, id)
redis.call('HINCRBY', KEYS[7], ARGV[6], 1)
-- Only what is still there says so: it may have expired, or have made room just now.
local before = prefix .. 'job:' .. ARGV[9]
if ARGV[9] ~= '' and redis.call('HGET', before, 'subject') == subject then redis.call('HSET', before, 'retried_as', id) end
return {1}
