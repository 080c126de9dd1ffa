-- What jobs hold in Redis, in bytes: stands before the scripts that change it, after `local prefix` and what else store.py
-- knows.
-- sizes (hash): job -> bytes. held (hash): "all" and "of:<subject>" -> bytes. ended, ended:<subject> (sorted sets): jobs
-- that are over -> ms of their end.
local EVENT, RECORD = 128, 2048 -- what an event and a record take beside their texts
local BODY = '{"prompt":"-"}' -- in the place of one that is deleted: a body still, so that release 0.1.0 reads the record
local sizes, held, ended = prefix .. 'sizes', prefix .. 'held', prefix .. 'ended'

local function holds(field) return tonumber(redis.call('HGET', held, field) or 0) end

local function grow(id, subject, by)
  redis.call('HINCRBY', sizes, id, by)
  for _, field in ipairs({'all', 'of:' .. subject}) do
    if redis.call('HINCRBY', held, field, by) <= 0 then redis.call('HDEL', held, field) end
  end
end

-- Takes a job that is gone out of what is counted and listed. Harmless if called again.
local function forget(id, subject)
  local size = redis.call('HGET', sizes, id)
  if size then grow(id, subject, -tonumber(size)) end
  redis.call('HDEL', sizes, id)
  redis.call('ZREM', ended, id)
  redis.call('ZREM', ended .. ':' .. subject, id)
  redis.call('ZREM', prefix .. 'all', id)
  redis.call('ZREM', prefix .. 'of:' .. subject, id)
end

-- Drops jobs that are over, the oldest first, until `field` has room for `need` bytes more. Whether it has. One whose
-- webhook is owed stays: the webhook says its result.
local function room(index, field, allowed, need)
  if holds(field) + need <= allowed then return true end
  for _, id in ipairs(redis.call('ZRANGE', index, 0, 999)) do
    if not redis.call('ZSCORE', prefix .. 'callbacks', id) then
      local subject = redis.call('HGET', prefix .. 'job:' .. id, 'subject')
      redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'events:' .. id)
      if subject then forget(id, subject) else redis.call('ZREM', index, id) end
      if holds(field) + need <= allowed then return true end
    end
  end
  return false
end
