-- Admits one request, or changes nothing. Behind `live.lua`. Of every account (the subject's own, then its pools') all windows, the
-- concurrency and all budgets are checked first; only then everything is taken. Also takes a queued job's lease when it
-- starts (no windows then).
--
-- KEYS  see `money.lua`
-- ARGV  1 lease, or "" for none
--       2 lease's time to live, ms
--       3 busy: "reject", "queue" (where all slots are taken go on without a lease) or "later" (take no lease now)
--       4 the subject's tier   5 "1": it is a message, which takes windows and places of its own
--       6... per account: rules, "" for none; terms
-- Reply 1 verdict: 0 refused, 1 admitted, 2 admitted without its lease (to be taken when the job starts),
--         -1: this moment, 2 in ms, is in another period than the caller has computed
--       2 of which account the exceeded limit is, from 1    3 which: 0 none, n the nth window, -1 concurrency, -1 - n the
--         nth budget, -1000 it is blocked, -1001 its tier   4 ms until it may pass
--       5 how many numbers come next: for each limit that an admin has changed its account, which (as in 3), what it is
--       6... per account: running, reserved; per budget: spent, ms left; per window: remaining, ms until a place comes back
--       (running, reserved and spent are 0 where no lease was asked for)

local lease, ttl_ms, busy = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local amount = lease ~= '' and reserved_by(lease) or 0
of_messages = ARGV[5] == '1'
local PLACE = of_messages and MESSAGES or RUNNING

local exceeded, who, wait = 0, 1, 0
local function refuse_for(account, limit, us)
  -- Whoever is blocked is told that, whatever else is in his way; else of several the one that stays there for longest.
  local blocks, blocked = limit <= BLOCKED, exceeded <= BLOCKED
  if exceeded == 0 or (blocks and not blocked) or (blocks == blocked and us > wait) then
    exceeded, who, wait = limit, account, us
  end
end

local each, verdict, found, is_held = {}, 1, nil, false
if lease ~= '' then
  found = read_leases(lease)
  is_held = found.own
end
local all_rules, all_terms = {}, {}
for n = 1, accounts do
  all_rules[n], all_terms[n] = read_rules(ARGV[2 * n + 4]), lease ~= '' and read_terms(ARGV[2 * n + 5]) or {}
end
apply_changes(all_rules, all_terms, ARGV[4])
for n = 1, accounts do
  local rules = all_rules[n]
  local windows = #rules > 0 and read_windows(redis.call('GET', w_of(n))) or {}
  local a = {windows = windows, rules = rules, running = 0, reserved = 0, spent = {}, left = {}}
  each[n] = a
  if lease ~= '' then
    a.terms = all_terms[n]
    a.running, a.reserved = found.each[n][PLACE], found.each[n][2]
    a.spent, a.left, a.book = read_spent(n, a.terms, windows)
  end
  if unreadable then
    return unreadable
  end
  if outside then
    return {-1, now_ms}
  end
  a.states = states_of(windows, rules)
end

for n = 1, accounts do
  local a = each[n]
  if blocked_until[n] and not is_held then
    refuse_for(n, blocked_by[n], 1000 * (blocked_until[n] - now_ms))
  end
  for i = 1, #a.states do
    local length, limit, burst = a.rules[4 * i - 3], a.rules[4 * i - 2], a.rules[4 * i]
    local state = a.states[i]
    if burst >= 0 then
      local over = state - now - burst * (length * 1000000 / limit)
      if over > 0 then
        refuse_for(n, i, over)
      end
    elseif state and state[1] >= limit then
      refuse_for(n, i, window_wait(state, limit, length * 1000))
    end
  end
  if lease ~= '' and not is_held then
    for i = 1, #a.spent do
      local at, need = 4 * i - 2, a.spent[i] + amount
      local budget, start, ends = a.terms[at], a.terms[at + 1], a.terms[at + 2]
      if need + a.reserved > budget then
        local us = 0
        if need > budget then
          us = 1000 * (ends > 0 and a.left[i] or rolling_wait(a.book, start, budget - amount))
        end
        refuse_for(n, -1 - i, us)
      end
    end
    if busy == 'later' then
      verdict = 2
    elseif a.terms[1] >= 0 and a.running >= a.terms[1] then
      if busy == 'queue' then
        verdict = 2
      else
        refuse_for(n, -1, 0)
      end
    end
  end
end

if exceeded ~= 0 then
  verdict = 0
end
if lease ~= '' and verdict == 1 then
  write_lease(lease, ttl_ms, found)
end
local reply = {verdict, who, exceeded, math.ceil(wait / 1000), #changed}
local at = append(reply, changed)
for n = 1, accounts do
  local a = each[n]
  if verdict > 0 then
    if #a.states > 0 then
      count_in(a.windows, a.rules, a.states)
      write_windows(w_of(n), a.windows)
    end
    if lease ~= '' and verdict == 1 then
      a.running, a.reserved = a.running + 1, a.reserved + (is_held and is_held[1] or amount)
    end
  end
  reply[at], reply[at + 1], at = a.running, a.reserved, at + 2
  for i = 1, #a.spent do
    reply[at], reply[at + 1], at = a.spent[i], a.left[i], at + 2
  end
  for i = 1, #a.states do
    local rule = 4 * i - 3
    local remaining, reset = quota(a.rules[rule + 3], a.rules[rule + 1], a.rules[rule], a.states[i])
    reply[at], reply[at + 1], at = remaining, reset, at + 2
  end
end
return reply
