-- Change fields of a record that is there, and say what its holder must know. Its holder shows by it that he lives, at a
-- time by Redis's clock: those of workers differ.
-- KEYS: job
-- ARGV: the attempt that must hold it ("": any), then fields
-- Reply: -1 it is gone or another's, 1 it shall be cancelled, 0 neither
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'cancel')
if not held[1] or (ARGV[1] ~= '' and (held[1] ~= 'running' or held[2] ~= ARGV[1])) then return -1 end
if ARGV[1] ~= '' then
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'beat', clock[1] * 1000 + math.floor(clock[2] / 1000))
end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return held[3] and 1 or 0
