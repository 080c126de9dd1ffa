-- The newest jobs that are asked for, as far as a bounded look reaches.
-- KEYS: index (sorted set: job -> s of its acceptance)
-- ARGV: prefix of records, the score and job behind which it goes on ("", "": at the newest), how many are wanted, how many are looked
--       at; then what is asked for ("": whichever): state, tier, a part of the repository's name, a part of the title (small letters),
--       a tag
-- Reply: the score and job where it goes on ("", "" at the end), then jobs
local upper, after, count, most = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local state, tier, repository, text = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local tag = ARGV[10]

local function has(whole, part) return part == '' or (whole and whole:lower():find(part, 1, true)) end

local function is_tagged(tags)
  for each in (tags or ''):gmatch('%S+') do
    if each == tag then return true end
  end
  return tag == ''
end

local first = 0
if upper ~= '' then
  first = redis.call('ZCOUNT', KEYS[1], '(' .. upper, '+inf')
  for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], upper, upper)) do
    if id >= after then first = first + 1 end
  end
end
local seen = redis.call('ZREVRANGE', KEYS[1], first, first + most - 1, 'WITHSCORES')
local page = {'', ''}
for at = 1, #seen, 2 do
  local of = redis.call('HMGET', ARGV[1] .. seen[at], 'state', 'tier', 'repository', 'title', 'tags')
  if of[1] and (state == '' or state == of[1]) and (tier == '' or tier == of[2]) and has(of[3], repository) and has(of[4], text)
      and is_tagged(of[5]) then
    page[#page + 1] = seen[at]
  end
  local is_last = at + 1 == #seen
  if #page == count + 2 or is_last then
    if not is_last or #seen == 2 * most then page[1], page[2] = seen[at + 1], seen[at] end
    break
  end
end
return page
