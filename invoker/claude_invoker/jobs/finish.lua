-- End a job, once. A worker that was thought lost and comes back finds that its attempt no longer counts.
-- KEYS: job, ticket, running, events, tombstone
-- ARGV: id, ticket, attempt ("" where whoever ends it need not hold it), retention (s), tombstone ttl (s), subject,
--       the state, then the fields of the record
-- Reply: 1 ended now, 0 it was over before or belongs to another attempt
if redis.replicate_commands then redis.replicate_commands() end -- before Redis 7: XADD chooses an id
local held = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if held[1] ~= 'running' and held[1] ~= 'queued' then
  redis.call('HDEL', KEYS[2], ARGV[2])
  return 0
end
if ARGV[3] ~= '' and (held[1] ~= 'running' or held[2] ~= ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[7], unpack(ARGV, 8))
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
-- The last event, so that whoever follows the stream need not ask for the state.
redis.call('XADD', KEYS[4], '*', 'event', 'job.' .. ARGV[7], 'data', '{"id":"' .. ARGV[1] .. '","state":"' .. ARGV[7] .. '"}')
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('SET', KEYS[5], ARGV[6], 'EX', ARGV[5])
return 1
