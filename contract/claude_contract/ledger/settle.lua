-- Ends a run: its lease goes with all that it holds, and what it has cost is booked as far as it was not, even where the
-- lease has lapsed, for the money is spent. Where the cost is not final its last requests are not answered yet: what they may
-- cost stays drawn, by a lease of its own, which takes the place of a message: a request to a model is all that is left.
--
-- KEYS  see `money.lua`
-- ARGV  1 lease   2 cost in all, micro-USD   3 ms for which a repetition is recognised
--       4 whether it is final: else whoever knows more settles it again, and the difference is booked
--       5 the lease of what is left of it   6 how long that lives, ms, if nobody knows more
-- Reply 1 ended or booked, 0 it was before

local cost, final = tonumber(ARGV[2]), ARGV[4] == '1'
local booked, books = read_booked(), open_books({})
if unreadable then
  return unreadable
end

local had = take_off(ARGV[1])
if final then
  if booked and redis.call('ZSCORE', LEASES, ARGV[5]) then
    take_off(ARGV[5])
  end
elseif had and had[2] > 0 then
  write_lease(ARGV[5], tonumber(ARGV[6]), read_leases(ARGV[5]), {had[2], had[2]})
end
redis.call('ZREMRANGEBYSCORE', SETTLED, '-inf', now_ms)
local first = redis.call('ZADD', SETTLED, 'NX', now_ms + ARGV[3], ARGV[1]) == 1
redis.call('PEXPIRE', SETTLED, ARGV[3])
if not first and not booked then
  return 0
end
local more = math.max(cost - (booked or 0), 0)
if not final then
  write_booked((booked or 0) + more)
elseif booked then
  redis.call('DEL', BOOKED)
end
if more > 0 then
  book_cost(books, more)
end
return (first or more > 0) and 1 or 0
