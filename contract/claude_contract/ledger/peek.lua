-- What a subject and its pools have used. Behind `live.lua`. Writes nothing.
--
-- KEYS  see `money.lua`
-- ARGV  1 the subject's tier   2 "1": windows and places are those of messages   3... per account: rules, "" for none; terms
-- Reply 1: 1, or -1: this moment, 2 in ms, is in another period than the caller has computed
--       2... what was changed, an account that is blocked among it (with the ms for which it is), and per account, from 5 on as `admit` has it, where 0 ms until a place comes back says that nothing is used

of_messages = ARGV[2] == '1'
local all_rules, all_terms = {}, {}
for n = 1, accounts do
  all_rules[n], all_terms[n] = read_rules(ARGV[2 * n + 1]), read_terms(ARGV[2 * n + 2])
end
apply_changes(all_rules, all_terms, ARGV[1])
for n = 1, accounts do
  if blocked_until[n] then
    append(changed, {n, blocked_by[n], blocked_until[n] - now_ms})
  end
end
local reply, holds = {1, #changed}, read_leases('').each
local at = append(reply, changed)
for n = 1, accounts do
  local windows, rules = read_windows(redis.call('GET', w_of(n))), all_rules[n]
  local spent, left = read_spent(n, all_terms[n], windows)
  if unreadable then
    return unreadable
  end
  if outside then
    return {-1, now_ms}
  end
  local states = states_of(windows, rules)
  reply[at], reply[at + 1], at = holds[n][of_messages and MESSAGES or RUNNING], holds[n][2], at + 2
  for i = 1, #spent do
    reply[at], reply[at + 1], at = spent[i], left[i], at + 2
  end
  for i = 1, #states do
    local rule = 4 * i - 3
    local remaining, reset = quota(rules[rule + 3], rules[rule + 1], rules[rule], states[i])
    reply[at], reply[at + 1], at = remaining, reset, at + 2
  end
end
return reply
