-- A subject's runs, or all, the newest first.
-- KEYS: of the subject, or all
-- ARGV: subject (of all: ""), highest and lowest score, a run of the highest score ("": none) that is not wanted any more,
--       nor what comes before it, how many are looked at
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
if #found == 2 * count then page = {found[#found], found[#found - 1]:match('^%S+')} end
for at = 1, #found, 2 do
  local id, whose = found[at], subject
  if KEYS[1] == all then id, whose = id:match('^(%S+) (.*)$') end
  local summary = redis.call('EXISTS', record(id)) == 1 and redis.call('HGET', summaries(whose), id)
  if summary then page[#page + 1] = summary else unlist(id, whose) end
end
return page
