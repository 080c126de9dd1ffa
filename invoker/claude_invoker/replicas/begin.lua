-- Write the record of a run that begins.
-- KEYS: record
-- ARGV: run, subject, s of its beginning, its summary, the record, seconds for which it is kept
local run, subject = ARGV[1], ARGV[2]
redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[6])
list(run, subject, ARGV[3], ARGV[4], ARGV[6])
