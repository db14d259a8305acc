"""The Lua of the log of events. The keys of one turn share a hash tag; on a Cluster, no script is
given more than one turn's.

A turn is a hash (`fence owner record next until ended cancel taken bytes count steers`, and for
each steer `key N`, `steer N` and `steered KEY`) and a stream of batches.
A batch's id is the number behind its last event, so that those behind event N begin at id N + 1;
its fields are the number of its first event and its events. Times are the server's own, in ms.
"""

APPEND = """
-- The next batches of several turns, each by itself.
-- KEYS turn stream, for each turn
-- ARGV most_events most_bytes lease_ms ttl_ms batches data: few, since every argument costs the
-- router more than what is in it. `batches` is JSON, for each turn [fence, first, last, size,
-- ended, owner, record_size], the last three only where they are needed; `data` has in a row, for
-- each, the size bytes of its events and those of its record. No events: the lease is renewed.
-- Of each turn of which there is more to say than that the log goes on behind `last`, and in a
-- row: its place from 0, ok 0 | gone 1 | fenced 2 | ended 3, next, cancel, missing, steers. Mostly
-- nothing: what is replied is read event by event.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local until_ms = string.format('%.0f', now + ARGV[3])
local most_events, most_bytes, ttl_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[4]

local function append(turn, stream, batch, data, record)
  local fence, first, last, ended, owner = batch[1], batch[2], batch[3], batch[5], batch[6]
  local facts = redis.call(
    'HMGET', turn, 'fence', 'next', 'ended', 'cancel', 'bytes', 'count', 'missing', 'steers')
  if not facts[1] then
    if not owner then
      return 1, 0, 0, 0, 0
    end
    redis.call('DEL', stream)
    redis.call('HSET', turn, 'fence', fence, 'next', first, 'owner', owner, 'record', record)
    facts = {fence, 0, false, false, false, false, false, false}
  end
  if facts[1] ~= fence then
    return 2, 0, 0, 0, 0
  end
  if facts[3] then
    return 3, 0, 0, tonumber(facts[7]) or 0, 0
  end
  local upto, missing = tonumber(facts[2]), tonumber(facts[7]) or 0
  if data ~= '' and first >= upto then
    if first > upto then
      missing = missing + first - upto
      redis.call('HSET', turn, 'missing', missing)
    end
    upto = last + 1
    redis.call('XADD', stream, string.format('%.0f-0', upto), 'n', first, 'e', data)
    local bytes = (tonumber(facts[5]) or 0) + #data
    local count = (tonumber(facts[6]) or 0) + upto - first
    while bytes > most_bytes or count > most_events do
      local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
      local id = tonumber(string.match(oldest[1], '^%d+'))
      if id == upto then
        break
      end
      bytes = bytes - #oldest[2][4]
      count = count - (id - oldest[2][2])
      redis.call('XDEL', stream, oldest[1])
    end
    redis.call('HSET', turn, 'next', upto, 'bytes', bytes, 'count', count, 'until', until_ms)
    if ended then
      redis.call('HSET', turn, 'ended', '1')
    end
  else
    redis.call('HSET', turn, 'until', until_ms)
  end
  redis.call('PEXPIRE', turn, ttl_ms)
  redis.call('PEXPIRE', stream, ttl_ms)
  return 0, upto, facts[4] and 1 or 0, missing, tonumber(facts[8]) or 0
end

local told = {}
local at = 1
for n, batch in ipairs(cjson.decode(ARGV[5])) do
  local middle = at + batch[4]
  local stop = middle + (batch[7] or 0)
  local data, record = string.sub(ARGV[6], at, middle - 1), string.sub(ARGV[6], middle, stop - 1)
  local state, upto, cancel, missing, steers =
    append(KEYS[2 * n - 1], KEYS[2 * n], batch, data, record)
  if state ~= 0 or upto ~= batch[3] + 1 or cancel ~= 0 or missing ~= 0 or steers ~= 0 then
    for _, word in ipairs({n - 1, state, upto, cancel, missing, steers}) do
      told[#told + 1] = word
    end
  end
  at = stop
end
return told
"""

READ = """
-- KEYS turn stream   ARGV after most_batches
-- nil for an unknown turn, else {next, ended, ms left of the lease, {first, data, ...}}
local facts = redis.call('HMGET', KEYS[1], 'next', 'ended', 'until')
if not facts[1] then
  return nil
end
local clock = redis.call('TIME')
local left = facts[3] - (clock[1] * 1000 + math.floor(clock[2] / 1000))
local found = {}
local from = string.format('(%.0f-0', ARGV[1] + 1)
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[2])) do
  found[#found + 1] = entry[2][2]
  found[#found + 1] = entry[2][4]
end
return {facts[1], facts[2] and 1 or 0, left, found}
"""

LOOK = """
-- KEYS turn   nil, or {next, ended, ms left of the lease, fence, cancel, owner, record, taken}
local facts = redis.call('HMGET', KEYS[1], 'next', 'ended', 'until', 'fence', 'cancel', 'owner',
  'record', 'taken')
if not facts[1] then
  return nil
end
local clock = redis.call('TIME')
local left = facts[3] - (clock[1] * 1000 + math.floor(clock[2] / 1000))
return {facts[1], facts[2] and 1 or 0, left, facts[4], facts[5] and 1 or 0, facts[6], facts[7],
  facts[8] and 1 or 0}
"""

TAKE = """
-- KEYS turn stream   ARGV owner lease_ms ttl_ms
-- {fence, next, cancel, record} if the turn runs and its lease has run out; the ms that are left
-- of the lease of one that runs; else nil
local facts = redis.call('HMGET', KEYS[1], 'next', 'ended', 'until', 'fence', 'cancel', 'record')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if not facts[1] or facts[2] then
  return nil
end
if tonumber(facts[3]) > now then
  return facts[3] - now
end
-- Counted from the clock, as the first was, so that it grows whoever has counted before.
local fence = math.max(clock[1] * 1000000 + clock[2], facts[4] + 1)
fence = string.format('%.0f', fence)
redis.call('HSET', KEYS[1], 'fence', fence, 'owner', ARGV[1], 'taken', '1',
  'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {fence, facts[1], facts[5] and 1 or 0, facts[6]}
"""

RELEASE_TURN = """
-- KEYS turn   ARGV fence
if redis.call('HGET', KEYS[1], 'fence') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'until', '0')
end
return 1
"""

CANCEL = """
-- KEYS turn   1 if the turn runs, and is to be cancelled
local facts = redis.call('HMGET', KEYS[1], 'fence', 'ended')
if not facts[1] or facts[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'cancel', '1')
return 1
"""

STEER = """
-- KEYS turn   ARGV key said most
-- Kept 0, under its key before 1; not, since the turn has ended 2, is unknown 3, has too many 4
local facts = redis.call('HMGET', KEYS[1], 'fence', 'ended', 'steers', 'steered ' .. ARGV[1])
if not facts[1] then
  return 3
end
if facts[4] then
  return 1
end
if facts[2] then
  return 2
end
local count = tonumber(facts[3]) or 0
if count >= tonumber(ARGV[3]) then
  return 4
end
redis.call('HSET', KEYS[1], 'steers', count + 1, 'steered ' .. ARGV[1], '1',
  'key ' .. count, ARGV[1], 'steer ' .. count, ARGV[2])
return 0
"""

STEERS = """
-- KEYS turn   {key, said, ...}, in order
local found = {}
for n = 0, (tonumber(redis.call('HGET', KEYS[1], 'steers')) or 0) - 1 do
  local one = redis.call('HMGET', KEYS[1], 'key ' .. n, 'steer ' .. n)
  found[#found + 1] = one[1]
  found[#found + 1] = one[2]
end
return found
"""
