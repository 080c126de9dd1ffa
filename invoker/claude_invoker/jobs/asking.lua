-- Jobs that wait to be allowed calls of tools: those that are put away first, then by their claims.
-- KEYS: those that are put away, those that run (sorted sets of jobs)
-- ARGV: prefix of records, how many of both are looked at
-- Reply: for each its id, its subject, and how many calls wait
local found, left = {}, tonumber(ARGV[2])
local waits = {running = true, waiting_for_approval = true}
for _, key in ipairs(KEYS) do
  local ids = left > 0 and redis.call('ZRANGE', key, 0, left - 1) or {}
  left = left - #ids
  for _, id in ipairs(ids) do
    local job = redis.call('HMGET', ARGV[1] .. id, 'subject', 'state', 'asking')
    local count = tonumber(job[3] or '') or 0
    if job[1] and waits[job[2]] and count > 0 then
      found[#found + 1], found[#found + 2], found[#found + 3] = id, job[1], count
    end
  end
end
return found
