-- A subject's runs, the newest first.
-- KEYS: of the subject, its summaries
-- ARGV: subject, highest and lowest score, a run of the highest score ("": none) that is not wanted any more, nor what
--       comes before it, how many are looked at
-- Reply: the score and run where it goes on ("", "" at the end), then summaries
local subject, upper, after, count = ARGV[1], ARGV[2], ARGV[4], tonumber(ARGV[5])
local skip = 0
if after ~= '' then
  for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], upper, upper)) do
    if id >= after then skip = skip + 1 end
  end
end
local found = redis.call('ZREVRANGEBYSCORE', KEYS[1], upper, ARGV[3], 'WITHSCORES', 'LIMIT', skip, count)
local page = {'', ''}
if #found == 2 * count then page = {found[#found], found[#found - 1]} end
for at = 1, #found, 2 do
  local id = found[at]
  local summary = redis.call('EXISTS', record(id)) == 1 and redis.call('HGET', KEYS[2], id)
  if summary then page[#page + 1] = summary else unlist(id, subject) end
end
return page
