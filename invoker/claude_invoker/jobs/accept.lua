-- Accept a job: all or nothing.
-- KEYS: job, idempotency ("" where none), waiting list of the subject, ring of the tier, index of the subject,
--       index of all, count of waiting
-- ARGV: id, subject, now (s), fingerprint, ttl of the idempotency key (s), then the fields of the job record
-- Reply: {1} accepted; {0, id} the same request was accepted before as that job; {-1} another body under this key
local id, subject, now = ARGV[1], ARGV[2], ARGV[3]
if KEYS[2] ~= '' then
  local known = redis.call('HMGET', KEYS[2], 'id', 'fingerprint')
  if known[1] then
    if known[2] ~= ARGV[4] then return {-1} end
    return {0, known[1]}
  end
  redis.call('HSET', KEYS[2], 'id', id, 'fingerprint', ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
-- The subject joins the ring with its first waiting job; it is there exactly once.
if redis.call('RPUSH', KEYS[3], id) == 1 then redis.call('RPUSH', KEYS[4], subject) end
redis.call('ZADD', KEYS[5], now, id)
redis.call('ZADD', KEYS[6], now, id)
redis.call('INCR', KEYS[7])
return {1}
