-- Changes limits for a while, or takes a change back; and says so to the audit log, in one: no change without its line.
-- What has lapsed goes.
--
-- KEYS  1 the changes (`live.lua`)   2 what waits for the audit log
-- ARGV  1 field   2 the change, "" to take it back   3 its line for the audit log   4 how many changes there may be
-- Reply 1: 1 done, 0 there was nothing to take back, -1 there are too many   2 what was there before, "" for nothing

local LIMITS, field, change = KEYS[1], ARGV[1], ARGV[2]
local all, count, longest, before = redis.call('HGETALL', LIMITS), 0, 0, ''
local lapsed = {}
for i = 1, #all, 2 do
  local readable, found = pcall(cjson.decode, all[i + 1])
  local till = readable and type(found) == 'table' and tonumber(found['until']) or math.huge
  if till <= now_ms then
    lapsed[#lapsed + 1] = all[i]
  elseif all[i] == field then
    before = all[i + 1]
  else
    count, longest = count + 1, math.max(longest, till)
  end
end
if change == '' and before == '' then
  return {0, ''}
end
if change ~= '' and count >= tonumber(ARGV[4]) then
  return {-1, before}
end

redis.call('XADD', KEYS[2], '*', 'line', ARGV[3], 'before', before, 'after', change)
for i = 1, #lapsed do
  redis.call('HDEL', LIMITS, lapsed[i])
end
if change == '' then
  redis.call('HDEL', LIMITS, field)
else
  redis.call('HSET', LIMITS, field, change)
  longest = math.max(longest, cjson.decode(change)['until'])
end
if longest < math.huge and longest > 0 then
  redis.call('PEXPIREAT', LIMITS, string.format('%.0f', longest))
else
  redis.call('PERSIST', LIMITS)
end
return {1, before}
