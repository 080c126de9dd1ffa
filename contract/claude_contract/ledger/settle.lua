-- Ends a run: its lease and its reservation go, what it cost is booked, with all accounts and at this moment: in the
-- periods that it is in. Booked once, however often it is called; and booked even where the lease has lapsed, for the
-- money is spent.
--
-- KEYS  see `money.lua`
-- ARGV  1 lease   2 cost, micro-USD   3 ms for which a repetition is recognised
-- Reply 1 booked, 0 it was before

local BOOK_MS = 33 * DAY       -- longer than any period
local LONG = RECORD * 4096     -- bytes, a month and a half of quarters: then what is older than BOOK_MS goes

local cost = tonumber(ARGV[2])
local month, day_before, month_before = month_of(today), 0, 0
if usd_day then
  day_before, month_before = read_kept(usd_day, today), read_kept(usd_month, month)
end
local books = {}
for n = 1, accounts do
  books[n] = open_book(spent_of(n))
end
if unreadable then
  return unreadable
end

take_off(ARGV[1])
redis.call('ZREMRANGEBYSCORE', SETTLED, '-inf', now_ms)
if redis.call('ZADD', SETTLED, 'NX', now_ms + ARGV[3], ARGV[1]) == 0 then
  return 0
end
redis.call('PEXPIRE', SETTLED, ARGV[3])
if cost == 0 then
  return 1
end

if usd_day then
  write_kept(usd_day, today, day_before + cost, 2)
  write_kept(usd_month, month, month_before + cost, 32)
end
local quarter = math.floor(now_ms / QUARTER)
for n = 1, accounts do
  local key, book = spent_of(n), books[n]
  if book.n == 0 and n == 1 and month_before > 0 then
    -- A book begins with what was booked before there were books: today, and in the month before today.
    if month_before > day_before then
      redis.call('APPEND', key, pack_record(today * DAY / QUARTER - 1, month_before - day_before))
    end
    redis.call('APPEND', key, pack_record(quarter, month_before + cost))
  elseif book.n > 0 and book.last >= quarter then  -- the same one, or the clock went back
    redis.call('SETRANGE', key, RECORD * (book.n - 1), pack_record(book.last, book.total + cost))
  elseif redis.call('APPEND', key, pack_record(quarter, book.total + cost)) > LONG then
    local keep = math.max(ended_by(book, now_ms - BOOK_MS), 1)
    redis.call('SET', key, redis.call('GETRANGE', key, RECORD * (keep - 1), -1))
  end
  redis.call('PEXPIRE', key, BOOK_MS)
end
return 1
