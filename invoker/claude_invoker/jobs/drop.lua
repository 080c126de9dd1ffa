-- Delete the requests that a subject's jobs that are over have kept.
-- KEYS: index of the subject
-- ARGV: subject
-- Reply: how many
local dropped = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local record = prefix .. 'job:' .. id
  if redis.call('HGET', record, 'again') == 'kept' then
    local size = redis.call('HSTRLEN', record, 'request')
    redis.call('HSET', record, 'request', BODY, 'again', 'deleted')
    if redis.call('HEXISTS', sizes, id) == 1 then grow(id, ARGV[1], #BODY - size) end
    dropped = dropped + 1
  end
end
return dropped
