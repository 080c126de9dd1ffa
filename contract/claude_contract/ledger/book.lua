-- Booking what runs cost, behind `money.lua`: with all accounts and at this moment, in the periods that it is in.
--
-- What is said of a run is always what it has cost in all so far. `BOOKED` has how much of that is booked,
-- "<micro-USD>:<version>", until the run is settled for good: so it is booked once, however often it is said and by whom.

local LONG = RECORD * 4096  -- bytes, a month and a half of quarters: then what is older than BOOK_MS goes

-- Micro-USD, nil for a run of which nothing is known.
local function read_booked()
  local value = redis.call('GET', BOOKED)
  if not value then
    return nil
  end
  local amount, version = string.match(value, '^(%d+):(%d+)$')
  check_version(tonumber(version) or VERSION + 1)
  return tonumber(amount)
end

local function write_booked(amount)
  redis.call('SET', BOOKED, string.format('%.0f:%d', amount, VERSION), 'PX', BOOK_MS)
end

-- All that is read before something is booked; `books`: those that are open already.
local function open_books(books)
  for n = 1, accounts do
    books[n] = books[n] or open_book(spent_of(n))
  end
  if usd_day then
    books.day, books.month = read_kept(usd_day, today), read_kept(usd_month, month_of(today))
  end
  return books
end

local function book_cost(books, cost)
  if usd_day then
    write_kept(usd_day, today, books.day + cost, 2)
    write_kept(usd_month, month_of(today), books.month + cost, 32)
  end
  local quarter = math.floor(now_ms / QUARTER)
  for n = 1, accounts do
    local key, book = spent_of(n), books[n]
    if book.n == 0 and n == 1 and usd_day and books.month > 0 then
      -- A book begins with what was booked before there were books: today, and in the month before today.
      if books.month > books.day then
        redis.call('APPEND', key, pack_record(today * DAY / QUARTER - 1, books.month - books.day))
      end
      redis.call('APPEND', key, pack_record(quarter, books.month + cost))
    elseif book.n > 0 and book.last >= quarter then  -- the same one, or the clock went back
      redis.call('SETRANGE', key, RECORD * (book.n - 1), pack_record(book.last, book.total + cost))
    elseif redis.call('APPEND', key, pack_record(quarter, book.total + cost)) > LONG then
      local keep = math.max(ended_by(book, now_ms - BOOK_MS), 1)
      redis.call('SET', key, redis.call('GETRANGE', key, RECORD * (keep - 1), -1))
    end
    redis.call('PEXPIRE', key, BOOK_MS)
  end
end
