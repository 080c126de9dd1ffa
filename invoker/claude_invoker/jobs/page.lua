-- The newest jobs of an index.
-- KEYS: index (sorted set: job -> s of its acceptance)
-- ARGV: highest score, a job of that score that is not wanted any more, nor what comes before it, how many
-- Reply: job and score of each
local upper, after, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local skip = 0
if upper ~= '+inf' then
  for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], upper, upper)) do
    if id >= after then skip = skip + 1 end
  end
end
return redis.call('ZREVRANGEBYSCORE', KEYS[1], upper, '-inf', 'WITHSCORES', 'LIMIT', skip, count)
