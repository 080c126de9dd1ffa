-- Books what a run has cost so far, and takes what its requests may cost that are under way, with one more about to be sent:
-- of every budget as it is now, or of none. Keeps the lease, and brings back one that has lapsed.
--
-- KEYS  see `money.lua`
-- ARGV  1 lease   2 time to live, ms   3 what it has cost in all so far, micro-USD
--       4 what those under way may cost   5 the least and 6 the most that it may be with the one more; as 4 where there is none
--       7 the subject's tier   8... per account: terms
-- Reply 1 verdict: 1 drawn, 0 refused (those under way stay drawn), 2 the run is settled and draws nothing any more,
--         -1: this moment, 2 in ms, is in another period than the caller has computed
--       2 what is drawn now, micro-USD   3 of which account the narrowest budget is, from 1   4 which, 0 for none, -1000: it
--         is blocked, -1001: its tier is
--       5 ms until its period ends (rolling: until some of it leaves)
--       6 1 where it was refused only for what others have drawn, some of which comes back

local lease, ttl_ms, cost = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local under_way, least, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- A message holds nothing from its admission on: what it draws must not be held by a run, which was promised it.
of_messages = is_message(lease)
local BESIDE = of_messages and 2 or 3
local settled = tonumber(redis.call('ZSCORE', SETTLED, lease) or 0) > now_ms
local booked = read_booked()
if settled and not booked then
  return {2, 0, 1, 0, 0, 0}
end
local more = math.max(cost - (booked or 0), 0)
local found, books, room, who, which, left = read_leases(lease), {}, math.huge, 1, 0, 0
local room_alone = math.huge  -- if nobody else had drawn anything; what runs hold beyond that does not come back soon
local no_rules, all_terms = {}, {}
for n = 1, accounts do
  no_rules[n], all_terms[n] = {}, read_terms(ARGV[7 + n])
end
apply_changes(no_rules, all_terms, ARGV[7])
for n = 1, accounts do
  local terms = all_terms[n]
  local spent, ends, book = read_spent(n, terms)
  if unreadable then
    return unreadable
  end
  if outside then
    return {-1, now_ms}
  end
  books[n] = book or nil
  for i = 1, #spent do
    local has = terms[4 * i - 2] - spent[i] - more - found.each[n][BESIDE]
    room_alone = math.min(room_alone, has + found.each[n][3])
    if has < room then
      room, who, which, left = has, n, i, ends[i]
    end
  end
end
for n = 1, accounts do
  if blocked_until[n] then
    room, room_alone, who, which, left = -1, -1, n, blocked_by[n], blocked_until[n] - now_ms
  end
end
if more > 0 then
  open_books(books)
end
if unreadable then
  return unreadable
end

local drawn, verdict = math.min(most, math.floor(room)), 1
if most <= under_way or drawn < least then
  verdict, drawn = most <= under_way and 1 or 0, under_way
end
if settled then
  verdict, drawn = 2, 0
else
  local holds = math.max(reserved_by(lease) - (booked or 0) - more, drawn)
  write_lease(lease, ttl_ms, found, {holds, drawn})
end
if more > 0 or not booked then
  write_booked((booked or 0) + more)
end
if more > 0 then
  book_cost(books, more)
end
return {verdict, drawn, who, which, left, verdict == 0 and room_alone >= least and 1 or 0}
