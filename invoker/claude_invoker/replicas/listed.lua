-- What lists have of a subject's runs: stands before the scripts that write their records, after `local prefix`.
-- of:<subject> (sorted set): run -> s of its beginning. summaries:<subject> (hash): run -> its summary. A run is in both as
-- long as it has a record, or a little longer: whoever comes across one that has none any more takes it out.
-- all (sorted set): "run subject" -> s of its beginning, of all subjects' likewise.
local function record(id) return prefix .. 'run:' .. id end
local function of(subject) return prefix .. 'of:' .. subject end
local function summaries(subject) return prefix .. 'summaries:' .. subject end

local all = prefix .. 'all'

local function unlist(id, subject)
  redis.call('ZREM', all, id .. ' ' .. subject)
  redis.call('ZREM', of(subject), id)
  redis.call('HDEL', summaries(subject), id)
end

-- Lists a run whose record is kept for so many seconds. The two oldest of the subject are looked at, so that of runs that
-- nobody ends (their replica has died) no more are listed than begin while a record is kept.
local function list(id, subject, began, summary, seconds)
  for _, oldest in ipairs(redis.call('ZRANGE', of(subject), 0, 1)) do
    if redis.call('EXISTS', record(oldest)) == 0 then unlist(oldest, subject) end
  end
  for _, entry in ipairs(redis.call('ZRANGE', all, 0, 1)) do
    local oldest, whose = entry:match('^(%S+) (.*)$')
    if redis.call('EXISTS', record(oldest)) == 0 then unlist(oldest, whose) end
  end
  redis.call('ZADD', all, began, id .. ' ' .. subject)
  redis.call('ZADD', of(subject), began, id)
  redis.call('HSET', summaries(subject), id, summary)
  for _, key in ipairs({all, of(subject), summaries(subject)}) do
    if redis.call('TTL', key) < tonumber(seconds) then redis.call('EXPIRE', key, seconds) end
  end
end
