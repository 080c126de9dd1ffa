-- How long nothing has been heard of a job's worker, by Redis's clock, which wrote down when it was.
-- KEYS: job
-- ARGV: the attempt that is asked about
-- Reply: ms; 0 where that attempt does not run any more
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'beat')
if held[1] ~= 'running' or held[2] ~= ARGV[1] then return 0 end
local clock = redis.call('TIME')
return clock[1] * 1000 + math.floor(clock[2] / 1000) - tonumber(held[3] or 0)
