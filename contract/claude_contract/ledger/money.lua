-- Runs and money, behind `common.lua`. A request has one or more accounts: its subject's, then those of its pools.
--
-- KEYS, the same for all verbs: 1 leases   2 settled   3 limits   4 held (`amounts` of a subject by itself)
--   5... of each account w and spent   then, where a subject has a tag of its own: usd:day, usd:month
--   last, for the verbs that book (`BOOKS`): booked, of the lease
-- A lease, as ARGV: "v<version>.<id>:<reserved micro-USD>"; where many share a tag its accounts behind it, by spaces

local DAY, QUARTER = 86400000, 900000  -- ms
local AT_ONCE = 1000  -- arguments: Lua can unpack some 8,000
local today = math.floor(now_ms / DAY)
local BOOKED = BOOKS and KEYS[#KEYS]
local last = BOOKS and #KEYS - 1 or #KEYS
local shared = string.sub(KEYS[last], -6) == ':spent'
local accounts = shared and (last - 4) / 2 or 1
local LEASES, SETTLED, LIMITS, HELD = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local usd_day, usd_month = not shared and KEYS[7], not shared and KEYS[8]

local function w_of(account)
  return KEYS[2 * account + 3]
end

local function spent_of(account)
  return KEYS[2 * account + 4]
end

-- Running executions: a sorted set of leases by the millisecond at which each lapses. A subject by itself has one of its
-- own, as release 0.1.0 has it, and adds them up. Where many share a tag they share the set, and `held` has for each account
-- "<running>:<held>:<drawn>:<version>" of those in it, and behind that ":<messages>" where there are messages among them: so that a pool's admission costs the same however many run in it. What
-- has lapsed is taken off there when something is written.
--
-- Two amounts of a run: what it holds is what its admission has taken and it has not spent yet, what it has drawn is of that
-- what its requests to the API may cost that are under way. A new run needs room beside all that is held; a request beside
-- all that is drawn, since it belongs to a run that was let in. A lease holds what stands in it and has drawn nothing, until
-- `held` says otherwise under its own name: "<held>:<drawn>:<version>".
local function reserved_by(lease)
  check_version(tonumber(string.match(lease, '^v(%d+)%.') or 0))
  return tonumber(string.match(lease, '^[^ ]*:(%d+)') or 0)
end

-- A message's lease says so: "v<version>.m.<id>:…". It takes a place of those for messages.
local function is_message(lease)
  return string.find(lease, '^v%d+%.m%.') ~= nil
end

local RUNNING, MESSAGES = 1, 4  -- in what an account has: {running, held, drawn, messages}

local function place_of(lease)
  return is_message(lease) and MESSAGES or RUNNING
end

local function name_of(account)
  return string.sub(w_of(account), #LEASES - 5, -3)
end

local function of_account(value)
  local running, held, drawn, version, messages = string.match(value, '^(%d+):(%d+):(%d+):(%d+):?(%d*)$')
  check_version(tonumber(version) or VERSION + 1)
  return {tonumber(running) or 0, tonumber(held) or 0, tonumber(drawn) or 0, tonumber(messages) or 0}
end

local function of_lease(value)
  local held, drawn, version = string.match(value, '^(%d+):(%d+):(%d+)$')
  check_version(tonumber(version) or VERSION + 1)
  return {tonumber(held) or 0, tonumber(drawn) or 0}
end

-- {running, held, drawn, messages} of the accounts of these names.
local function read_held(held, names)
  local values = redis.call('HMGET', HELD, unpack(names))
  for i = 1, #names do
    held[names[i]] = values[i] and of_account(values[i]) or {0, 0, 0, 0}
  end
end

-- {held, drawn} of each of these leases.
local function amounts_of(leases)
  local all = {}
  for first = 1, #leases, AT_ONCE do
    local values = redis.call('HMGET', HELD, unpack(leases, first, math.min(first + AT_ONCE - 1, #leases)))
    for i, value in ipairs(values) do
      local amount = reserved_by(leases[first + i - 1])
      all[first + i - 1] = value and of_lease(value) or {amount, 0}
    end
  end
  return all
end

local function add_held(held, lease, amounts, sign)
  for name in string.gmatch(lease, ' ([^ ]+)') do
    if not held[name] then
      read_held(held, {name})
    end
    local has, place = held[name], place_of(lease)
    has[place], has[2], has[3] = has[place] + sign, has[2] + sign * amounts[1], has[3] + sign * amounts[2]
  end
end

local function write_held(held)
  local values, n = {}, 0
  for name, has in pairs(held) do
    if has[RUNNING] > 0 or has[MESSAGES] > 0 then
      local value = string.format('%d:%.0f:%.0f:%d', has[RUNNING], has[2], has[3], VERSION)
      values[n + 1], values[n + 2] = name, has[MESSAGES] > 0 and value .. ':' .. has[MESSAGES] or value
      n = n + 2
    else
      redis.call('HDEL', HELD, name)
    end
  end
  if n > 0 then
    redis.call('HSET', HELD, unpack(values))
  end
end

-- What is held as a script has found it. `each`: of every account {running, held, drawn, messages}, without the script's own lease;
-- `own`: {held, drawn} of that one, false where it is not alive; `lapsed`: leases that are to be taken off.
local function read_leases(own)
  local off = redis.call('ZRANGEBYSCORE', LEASES, '-inf', now_ms)
  local found = {each = {}, own = false, lapsed = off}
  if not shared then
    local live, has = redis.call('ZRANGEBYSCORE', LEASES, '(' .. now_ms, '+inf'), {0, 0, 0, 0}
    for i, amounts in ipairs(amounts_of(live)) do
      if live[i] == own then
        found.own = amounts
      else
        local place = place_of(live[i])
        has[place], has[2], has[3] = has[place] + 1, has[2] + amounts[1], has[3] + amounts[2]
      end
    end
    found.each[1] = has
    return found
  end
  local held, names = {}, {}
  for n = 1, accounts do
    names[n] = name_of(n)
  end
  read_held(held, names)
  for i, amounts in ipairs(amounts_of(off)) do
    add_held(held, off[i], amounts, -1)
  end
  local till = own ~= '' and redis.call('ZSCORE', LEASES, own)
  if till and tonumber(till) > now_ms then
    found.own = amounts_of({own})[1]
    add_held(held, own, found.own, -1)
  end
  for n = 1, accounts do
    found.each[n] = held[names[n]]
  end
  found.held = held
  return found
end

-- Nothing has been written yet.
local function stop_if_unreadable()
  if unreadable then
    error(unreadable.err, 0)
  end
end

local function take_off_lapsed(found)
  if #found.lapsed > 0 then
    redis.call('ZREMRANGEBYSCORE', LEASES, '-inf', now_ms)
    for first = 1, #found.lapsed, AT_ONCE do
      redis.call('HDEL', HELD, unpack(found.lapsed, first, math.min(first + AT_ONCE - 1, #found.lapsed)))
    end
  end
end

-- Takes off a lease, and what has lapsed. Returns what it held and had drawn, false where it was not alive.
local function take_off(lease)
  local found = read_leases(lease)
  stop_if_unreadable()
  take_off_lapsed(found)
  redis.call('ZREM', LEASES, lease)
  redis.call('HDEL', HELD, lease)
  if shared then
    write_held(found.held)
  end
  return found.own
end

-- Takes or extends a lease. `found`: what `read_leases` has said with this lease for its own; `amounts`: what it is to hold
-- and to have drawn, nil: as it is. The set itself lives as long as its longest lease.
local function write_lease(lease, ttl_ms, found, amounts)
  redis.call('ZADD', LEASES, now_ms + ttl_ms, lease)  -- first: what frees memory would let the rest pass a full Redis
  take_off_lapsed(found)
  if amounts then
    redis.call('HSET', HELD, lease, string.format('%.0f:%.0f:%d', amounts[1], amounts[2], VERSION))
  end
  if shared then
    add_held(found.held, lease, amounts or found.own or {reserved_by(lease), 0}, 1)
    write_held(found.held)
  end
  if redis.call('PTTL', LEASES) < ttl_ms then
    redis.call('PEXPIRE', LEASES, ttl_ms)
    if shared then
      redis.call('PEXPIRE', HELD, ttl_ms)
    end
  end
  if not shared and (amounts or found.own) and redis.call('PTTL', HELD) < ttl_ms then
    redis.call('PEXPIRE', HELD, ttl_ms)
  end
end

-- The civil month of a day (days since 1970-01-01) as year * 100 + month. Howard Hinnant's civil_from_days.
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor(
    (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 100 + month
end

-- What a subject with a tag of its own has spent in the UTC day and month is also kept as release 0.1.0 has it, so that it
-- holds after an upgrade and after a rollback: "<period>:<micro-USD>:<version>"; another period's counts nothing. Version 1
-- is read and not written yet: for release 0.1.0 it would be nothing spent.
local function read_kept(key, period)
  local value = redis.call('GET', key)
  if value then
    local of, spent, version = string.match(value, '^(%d+):(%d+):?(%d*)$')
    check_version(tonumber(version) or of and 0 or VERSION + 1)
    if tonumber(of) == period then
      return tonumber(spent)
    end
  end
  return 0
end

local function write_kept(key, period, spent, days)
  redis.call('SET', key, string.format('%d:%.0f', period, spent), 'EX', days * 86400)
end

-- What an account has spent is its book (`spent`): a record for each quarter of an hour in which something was booked,
-- oldest first: the quarter's number since 1970, all micro-USD booked until its end, the version. So what was spent since
-- any moment is a difference of two, whatever period begins then, in whichever zone, rolling or not: where a zone or a
-- period is changed nothing is forgotten and nothing counts twice. The clocks of all zones differ by whole quarters; a
-- quarter that a moment cuts counts whole.
local RECORD = 13  -- bytes
local BOOK_MS = 33 * DAY  -- how long a book is kept after the last booking: longer than any period

local function pack_record(quarter, total)
  return struct.pack('<I4dB', quarter, total, VERSION)
end

-- The quarter and the total of a book's last record, false where it has none.
local function last_record(key)
  local tail = redis.call('GETRANGE', key, '-13', '-1')
  if tail == '' then
    return false
  end
  check_version(string.byte(tail, RECORD) or VERSION + 1)
  if #tail < RECORD then
    return 0, 0
  end
  return struct.unpack('<I4d', tail)
end

-- A book of `n` records, the quarter and the total of the last. The others are read where they are needed.
local function open_book(key)
  local last, total = last_record(key)
  local size = last and redis.call('STRLEN', key) or 0
  check_version(size % RECORD == 0 and VERSION or VERSION + 1)
  return {key = key, n = size / RECORD, last = last or 0, total = total or 0}
end

-- Records from the `first` on, up to the `last`.
local function load_records(book, first, last)
  book.first, book.text = first, redis.call('GETRANGE', book.key, RECORD * (first - 1), RECORD * last - 1)
end

local function read_record(book, n)
  return struct.unpack('<I4d', book.text, RECORD * (n - book.first) + 1)
end

-- The last record whose quarter was over at a moment (ms), 0 for none; what was booked until then; and the quarter of the
-- next one (nothing, where there is none).
local function ended_by(book, moment)
  local quarters, n = math.floor(moment / QUARTER), book.n  -- those that were over
  if n == 0 or book.last < quarters then
    return n, book.total
  end
  -- No two records are of one quarter: so many at most are behind the moment, and in a busy book just as many.
  local low = math.max(n - (book.last - quarters + 1), 0)
  load_records(book, math.max(low, 1), low + 1)
  if read_record(book, low + 1) < quarters then
    load_records(book, low + 1, n)
    local high = n - 1
    low = low + 1
    while low < high do
      local middle = math.ceil((low + high) / 2)
      if read_record(book, middle) < quarters then
        low = middle
      else
        high = middle - 1
      end
    end
  end
  local before = 0
  if low > 0 then
    local _, total = read_record(book, low)
    before = total
  end
  return low, before, (read_record(book, low + 1))
end

-- Terms: concurrent runs (-1 any), then per budget micro-USD, start and end of its period (ms), and a byte: 1 or 2 where
-- `usd_day` or `usd_month` has it, and four times the number of its name, by which it may be changed (`live.lua`). A
-- rolling one has its length for the start, and no end.
local function read_terms(packed)
  local terms = {struct.unpack('<i4' .. string.rep('dddB', (#packed - 4) / 25), packed)}
  terms[#terms] = nil
  return terms
end

-- What was booked before a calendar's period began changes no more. An account's windows remember it, so that its book need
-- not be searched: `b`, until when (ms) the book lives for sure, then beginning (ms) and amount of each. Who has no windows
-- at hand searches.
local function remember(windows, book, starts)
  local b = {math.min(book.last * QUARTER, now_ms) + BOOK_MS - DAY}
  for start, amount in pairs(starts) do
    local n = #b
    b[n + 1], b[n + 2] = start, amount
  end
  windows.b = b
end

local function remembered(b, start)
  for n = 2, #b, 2 do
    if b[n] == start then
      return b[n + 1]
    end
  end
end

-- What each budget in the terms has spent, and the ms until its period ends (rolling: until some of it leaves); and the
-- book, where it was opened. Sets `outside` where this moment is in none of the periods that the caller has computed.
local outside = false

local function read_spent(account, terms, windows)
  local b = windows and windows.b
  if b and now_ms >= b[1] then
    b = nil
  end
  local spent, left, booked, searched, largest = {}, {}, false, false, 0
  for at = 2, #terms, 4 do
    local start, ends, n = terms[at + 1], terms[at + 2], (at + 2) / 4
    if ends == 0 then
      terms[at + 1], left[n] = now_ms - start, 0
    elseif now_ms < start or now_ms >= ends then
      outside = true
      return {}, {}
    else
      left[n] = ends - now_ms
    end
    if terms[at + 3] % 4 == 0 then
      booked = true
      local before = b and ends > 0 and remembered(b, start)
      if not before then
        searched = true
      elseif before > largest then
        largest = before
      end
      spent[n] = before
    end
  end
  local book, total, _ = false, false, nil
  if booked and not searched then
    _, total = last_record(spent_of(account))
    searched = not total or total < largest
  end
  if searched then
    book = open_book(spent_of(account))
    total = book.total
  end
  if unreadable then
    return spent, left
  end
  local starts = searched and {}
  for at = 2, #terms, 4 do
    local start, ends, kept, n = terms[at + 1], terms[at + 2], terms[at + 3] % 4, (at + 2) / 4
    if kept == 1 then
      spent[n] = read_kept(usd_day, today)
    elseif kept == 2 then
      spent[n] = read_kept(usd_month, month_of(today))
    elseif not searched then
      spent[n] = total - spent[n]
    elseif book.n == 0 and usd_day then
      -- Booked by a release that had no books: when is known no better.
      local day = start >= today * DAY
      spent[n] = read_kept(day and usd_day or usd_month, day and today or month_of(today))
    else
      local _, before, next_quarter = ended_by(book, start)
      spent[n] = total - before
      if ends > 0 then
        starts[start] = before
      elseif next_quarter then
        left[n] = (next_quarter + 1) * QUARTER - start
      end
    end
  end
  if searched and windows and book.n > 0 then
    remember(windows, book, starts)
  end
  return spent, left, book
end

-- Milliseconds until at most `least` of what a rolling budget counts since `start` is left.
local function rolling_wait(book, start, least)
  local n = ended_by(book, start)
  if n < book.n then
    load_records(book, n + 1, book.n)
  end
  for i = n + 1, book.n do
    local quarter, total = read_record(book, i)
    if book.total - total <= least then
      return (quarter + 1) * QUARTER - start
    end
  end
  return 0
end
