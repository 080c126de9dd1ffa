-- Fields of the newest jobs.
-- KEYS: index (sorted set: job -> s of its acceptance)
-- ARGV: prefix of records, least score, how many are looked at, version of records, then the fields
-- Reply: for each job that is there, and of no other release, its fields
local found = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', ARGV[2], 'LIMIT', 0, ARGV[3])) do
  local version = redis.call('HGET', ARGV[1] .. id, 'v')
  if version == ARGV[4] then found[#found + 1] = redis.call('HMGET', ARGV[1] .. id, unpack(ARGV, 5)) end
end
return found
