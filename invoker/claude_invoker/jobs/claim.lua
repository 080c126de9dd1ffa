-- Claim the next job for a ticket: the most urgent queue first, in it a round robin of subjects.
-- KEYS: job prefix, ticket (hash: ticket -> job), blocked (hash: queue:subject -> until ms), waiting (hash: queue -> count),
--       then for each queue in order: its round robin (list of subjects)
-- ARGV: ticket, worker, now (ms), waiting prefix, running (zset job -> ms of its claim), nonce of this call,
--       version of records, then the queues
-- Reply: nil nothing to do; {id, 0} claimed now; {id, 1} this ticket had claimed it before (it may be orphaned);
--        {id, 2, version} nothing to do, except a job that another release has stored: it waits for a worker of that
local ticket, worker, now, newest = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[7])
local passed
local clock = redis.call('TIME')
local before = redis.call('HGET', KEYS[2], ticket)
if before then
  local held = redis.call('HMGET', KEYS[1] .. before, 'state', 'ticket', 'nonce')
  if held[1] == 'running' and held[2] == ticket then
    -- The same call, sent again because its connection broke, is the claim itself.
    return {before, held[3] == ARGV[6] and 0 or 1}
  end
  redis.call('HDEL', KEYS[2], ticket)
end
for i = 5, #KEYS do
  local queue = ARGV[i + 3]
  for _ = 1, redis.call('LLEN', KEYS[i]) do
    local subject = redis.call('LPOP', KEYS[i])
    local blocked = tonumber(redis.call('HGET', KEYS[3], queue .. ':' .. subject) or 0)
    if blocked > now then
      redis.call('RPUSH', KEYS[i], subject)
    else
      local waiting = ARGV[4] .. queue .. ':' .. subject
      local id = redis.call('LINDEX', waiting, 0)
      local version = id and tonumber(redis.call('HGET', KEYS[1] .. id, 'v') or 0)
      local ours = not id or version == newest or version == newest - 1
      if ours then redis.call('LPOP', waiting) end
      if redis.call('EXISTS', waiting) == 1 then redis.call('RPUSH', KEYS[i], subject) end
      if not ours then
        passed = passed or {id, 2, version}
      elseif id then
        redis.call('HDEL', KEYS[3], queue .. ':' .. subject)
        redis.call('HINCRBY', KEYS[4], queue, -1)
        if redis.call('HGET', KEYS[1] .. id, 'state') == 'queued' then
          redis.call('HSET', KEYS[2], ticket, id)
          redis.call('ZADD', ARGV[5], now, id)
          redis.call('HSET', KEYS[1] .. id, 'state', 'running', 'worker', worker, 'ticket', ticket, 'nonce', ARGV[6],
                     'beat', clock[1] * 1000 + math.floor(clock[2] / 1000), 'started_at', string.format('%.3f', now / 1000))
          redis.call('HDEL', KEYS[1] .. id, 'waits')
          redis.call('HINCRBY', KEYS[1] .. id, 'attempt', 1)
          return {id, 0}
        end
      end
    end
  end
end
return passed
