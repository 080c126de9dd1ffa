-- Say that a run has ended with its replica, unless its record is another by now.
-- KEYS: record
-- ARGV: run, subject, the record, the one that takes its place, its summary ("": it is not listed)
if redis.call('GET', KEYS[1]) ~= ARGV[3] then return end
redis.call('SET', KEYS[1], ARGV[4], 'KEEPTTL')
if ARGV[5] ~= '' then redis.call('HSET', summaries(ARGV[2]), ARGV[1], ARGV[5]) end
