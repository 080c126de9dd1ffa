-- Add events to a job's stream. Redis refuses what is there already and what comes behind the end.
-- KEYS: job, events
-- ARGV: id, subject, attempt, bytes that a job may hold, a subject's jobs, all jobs, events of a job at most,
--       then number, name and data of each event
local id, subject, most = ARGV[1], ARGV[2], tonumber(ARGV[7])
local job_may, subject_may, all_may = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local added = 0
for i = 8, #ARGV, 3 do
  local reply = redis.pcall('XADD', KEYS[2], ARGV[3] .. '-' .. ARGV[i], 'event', ARGV[i + 1], 'data', ARGV[i + 2])
  if type(reply) == 'string' then added = added + #ARGV[i + 2] + EVENT end
end
if added == 0 then return end
grow(id, subject, added)
room(ended .. ':' .. subject, 'of:' .. subject, subject_may, 0)
room(ended, 'all', all_may, 0)
-- Where that is not enough, this job's own oldest events go; its last ones stay.
while tonumber(redis.call('HGET', sizes, id)) > job_may or redis.call('XLEN', KEYS[2]) > most
    or holds('of:' .. subject) > subject_may or holds('all') > all_may do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 101)
  local going = #oldest - 1
  if going < 1 then return end
  local freed = 0
  for i = 1, going do freed = freed + #oldest[i][2][4] + EVENT end
  redis.call('XTRIM', KEYS[2], 'MINID', oldest[going + 1][1])
  grow(id, subject, -freed)
end
