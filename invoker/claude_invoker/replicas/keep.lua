-- Write the record of a run that is over, and drop the oldest such where a subject's or all take more than they may.
-- KEYS: record, sizes (hash: run -> bytes), held (hash: "all" and "of:<subject>" -> bytes), ended and the subject's of it
--       (sorted sets: "run subject" -> ms until which its record is kept)
-- ARGV: run, subject, s of its beginning, its summary, the record, seconds for which it is kept, bytes of a subject's, of
--       all
local run, subject, size = ARGV[1], ARGV[2], #ARGV[4] + #ARGV[5]
local sizes, held, ended = KEYS[2], KEYS[3], KEYS[4]
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)

local function grow(id, whose, by)
  for _, field in ipairs({'all', 'of:' .. whose}) do
    if redis.call('HINCRBY', held, field, by) <= 0 then redis.call('HDEL', held, field) end
  end
end

local function forget(entry)
  local id, whose = entry:match('^(%S+) (.*)$')
  grow(id, whose, -tonumber(redis.call('HGET', sizes, id) or 0))
  redis.call('HDEL', sizes, id)
  redis.call('ZREM', ended, entry)
  redis.call('ZREM', ended .. ':' .. whose, entry)
  unlist(id, whose)
  return id
end

for _, entry in ipairs(redis.call('ZRANGEBYSCORE', ended, '-inf', now, 'LIMIT', 0, 1000)) do forget(entry) end
local entry = run .. ' ' .. subject
if redis.call('HEXISTS', sizes, run) == 1 then forget(entry) end -- it is written again
redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[6])
redis.call('HSET', sizes, run, size)
grow(run, subject, size)
redis.call('ZADD', ended, now + ARGV[6] * 1000, entry)
redis.call('ZADD', KEYS[5], now + ARGV[6] * 1000, entry)
list(run, subject, ARGV[3], ARGV[4], ARGV[6])
for _, bound in ipairs({{KEYS[5], 'of:' .. subject, ARGV[7]}, {ended, 'all', ARGV[8]}}) do
  while tonumber(redis.call('HGET', held, bound[2]) or 0) > tonumber(bound[3]) do
    local oldest = redis.call('ZRANGE', bound[1], 0, 1)
    local first = oldest[1] ~= entry and oldest[1] or oldest[2]
    if not first then break end
    redis.call('DEL', record(forget(first)))
  end
end
