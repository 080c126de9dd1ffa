-- The changes of limits that hold now. Writes nothing.
--
-- KEYS  1 the changes (`live.lua`)
-- Reply of each the field, and the change

local all, found = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local readable, change = pcall(cjson.decode, all[i + 1])
  local till = readable and type(change) == 'table' and tonumber(change['until']) or math.huge
  if till > now_ms then
    found[#found + 1], found[#found + 2] = all[i], all[i + 1]
  end
end
return found
