-- Claim the next job for a ticket: the most urgent tier first, subjects of a tier in turn.
-- KEYS: job prefix, ticket (hash: ticket -> job), blocked (hash: tier:subject -> until ms), count of waiting,
--       then for each tier in order: its ring
-- ARGV: ticket, worker, now (ms), waiting prefix, running (zset job -> beat ms), then the tiers' names
-- Reply: nil nothing to do; {id, 0} claimed now; {id, 1} this ticket had claimed it before (its worker may be lost)
local ticket, worker, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local before = redis.call('HGET', KEYS[2], ticket)
if before then return {before, 1} end
for i = 5, #KEYS do
  local tier = ARGV[i + 1]
  for _ = 1, redis.call('LLEN', KEYS[i]) do
    local subject = redis.call('LPOP', KEYS[i])
    local blocked = tonumber(redis.call('HGET', KEYS[3], tier .. ':' .. subject) or 0)
    if blocked > now then
      redis.call('RPUSH', KEYS[i], subject)
    else
      local waiting = ARGV[4] .. tier .. ':' .. subject
      local id = redis.call('LPOP', waiting)
      if redis.call('EXISTS', waiting) == 1 then redis.call('RPUSH', KEYS[i], subject) end
      if id then
        redis.call('HDEL', KEYS[3], tier .. ':' .. subject)
        redis.call('DECR', KEYS[4])
        redis.call('HSET', KEYS[2], ticket, id)
        redis.call('ZADD', ARGV[5], now, id)
        redis.call('HSET', KEYS[1] .. id, 'state', 'running', 'worker', worker, 'ticket', ticket,
                   'beat', now, 'started_at', string.format('%.3f', now / 1000))
        redis.call('HINCRBY', KEYS[1] .. id, 'attempt', 1)
        return {id, 0}
      end
    end
  end
end
return nil
