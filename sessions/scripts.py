"""The Lua that must be atomic: the binding's three steps, the turn lock, the end of a turn.

Every script touches the keys of one session, which share a hash tag, and so one Cluster slot.
A binding is stored as `epoch US replica US incarnation` (US: unit separator).
"""

CLAIM = """
-- KEYS binding record   ARGV replica incarnation ttl_ms
-- The binding in force, claimed if there is none: {won, binding, state, context_tokens}
local facts = redis.call('HMGET', KEYS[2], 'state', 'context_tokens')
local state = facts[1] or 'open'
local held = facts[2] or '0'
if state == 'closed' then
  return {0, '', state, held}
end
local binding = redis.call('GET', KEYS[1])
local won = 0
if not binding then
  binding = '1\\31' .. ARGV[1] .. '\\31' .. ARGV[2]
  won = 1
end
redis.call('SET', KEYS[1], binding, 'PX', ARGV[3])
return {won, binding, state, held}
"""

REFRESH = """
-- KEYS binding   ARGV binding ttl_ms
-- Renews the expiry of exactly this binding; what is in force, or nil. Revives nothing.
local current = redis.call('GET', KEYS[1])
if current == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return current
"""

REBIND = """
-- KEYS binding   ARGV seen moved ttl_ms
-- Compare and set: `moved` if `seen` is in force or nothing is; what is in force afterwards.
local current = redis.call('GET', KEYS[1])
if current and current ~= ARGV[1] then
  return current
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ARGV[2]
"""

ASSIGN = """
-- KEYS variant, and for each known variant: record binding
-- ARGV ttl_ms proposal, and for each known variant: name keeps
-- The variant that the session belongs to: {variant, the one it left or '', whether it is new}
local found = redis.call('GET', KEYS[1])
local new = 0
if not found then
  for n = 2, #KEYS, 2 do
    if redis.call('EXISTS', KEYS[n], KEYS[n + 1]) > 0 then
      found = ARGV[n + 1]
      break
    end
  end
end
local stays = found
if found then
  for n = 3, #ARGV, 2 do
    if ARGV[n] == found then
      stays = ARGV[n + 1] == '1' or redis.call('HGET', KEYS[n - 1], 'state') == 'closed'
    end
  end
else
  new = 1
end
local variant = stays and found or ARGV[2]
redis.call('SET', KEYS[1], variant, 'PX', ARGV[1])
return {variant, found and found ~= variant and found or '', new}
"""

PUT_RELEASE = """
-- KEYS releases   ARGV served seen said ttl_ms
-- Compare and set one field; what it holds afterwards.
local said = redis.call('HGET', KEYS[1], ARGV[1])
if not said or said == ARGV[2] then
  said = ARGV[3]
  redis.call('HSET', KEYS[1], ARGV[1], said)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return said
"""

ACQUIRE = """
-- KEYS lock fence   ARGV turn lock_ttl_ms fence_ttl_ms
-- The fencing number, or nil while another turn holds the lock.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return nil
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
-- Counted from the clock, so that it grows also over a server that has lost the last number.
local clock = redis.call('TIME')
local fence = clock[1] * 1000000 + clock[2]
fence = math.max(fence, (tonumber(redis.call('GET', KEYS[2])) or 0) + 1)
redis.call('SET', KEYS[2], string.format('%.0f', fence), 'PX', ARGV[3])
return fence
"""

RELEASE = """
-- KEYS lock   ARGV turn
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
"""

CREATE = """
-- KEYS record models   ARGV ttl_ms model field value ...
-- 1 if the session is new, else 0.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
"""

CLOSE = """
-- KEYS record binding   1 if there is such a session.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'closed')
redis.call('DEL', KEYS[2])
return 1
"""

END = """
-- KEYS record models binding fence
-- ARGV fence binding head prompt cached completion parent tenant session model ttl binding_ttl
-- Empty strings stand for what is unknown or not given. 0 if a newer turn has taken the lock.
if ARGV[1] ~= '' then
  local newest = redis.call('GET', KEYS[4])
  if newest and newest ~= ARGV[1] then
    return 0
  end
end
local clock = redis.call('TIME')
local now = string.format('%d.%06d', clock[1], clock[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'tenant', ARGV[8], 'session', ARGV[9], 'model', ARGV[10],
    'created_at', now)
  if ARGV[7] ~= '' then
    redis.call('HSET', KEYS[1], 'parent', ARGV[7], 'program', ARGV[7])
  end
  redis.call('SADD', KEYS[2], ARGV[10])
end
redis.call('HINCRBY', KEYS[1], 'turns', 1)
redis.call('HSET', KEYS[1], 'last_turn_at', now)
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'head', ARGV[3])
end
if ARGV[4] ~= '' then
  redis.call('HINCRBY', KEYS[1], 'prompt_tokens', ARGV[4])
  local held = string.format('%d', ARGV[4] + (tonumber(ARGV[6]) or 0))
  redis.call('HSET', KEYS[1], 'context_tokens', held)
end
if ARGV[5] ~= '' then
  redis.call('HINCRBY', KEYS[1], 'cached_tokens', ARGV[5])
end
if ARGV[6] ~= '' then
  redis.call('HINCRBY', KEYS[1], 'completion_tokens', ARGV[6])
end
redis.call('PEXPIRE', KEYS[1], ARGV[11])
redis.call('PEXPIRE', KEYS[2], ARGV[11])
if ARGV[2] ~= '' and redis.call('GET', KEYS[3]) == ARGV[2] then
  redis.call('PEXPIRE', KEYS[3], ARGV[12])
end
return 1
"""

RECENT = """
-- KEYS recent   ARGV now_s ttl_ms most, and for each session: when_s member
for n = 4, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1] - ARGV[2] / 1000)
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[3])
if over > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1)
end
return 1
"""

EXCHANGE = """
-- KEYS seen told news   ARGV router report ttl_s keys_ttl_ms news since most most_bytes
-- Stores a router's report, and its news unless they are empty. Of all others: the reports that
-- were renewed within the ttl, and the news behind the id `since`: {reports, news, last id}
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local others = {}
local all = redis.call('HGETALL', KEYS[2])
for n = 1, #all, 2 do
  if all[n] ~= ARGV[1] then
    others[#others + 1] = all[n]
    others[#others + 1] = all[n + 1]
  end
end
if ARGV[5] ~= '' then
  local oldest = string.format('%.0f', now * 1000 - ARGV[4])
  redis.call('XADD', KEYS[3], 'MINID', oldest, '*', ARGV[1], ARGV[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
end
local news, last = {}, ARGV[6]
local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
if newest and newest[1] ~= last then
  local function ms(id) return tonumber(string.match(id, '^%d+')) or math.huge end
  -- What was seen later than the newest was seen in a stream that has been lost since.
  local from = ms(last) > ms(newest[1]) and '-' or '(' .. last
  local left = tonumber(ARGV[8])
  for _, entry in ipairs(redis.call('XRANGE', KEYS[3], from, '+', 'COUNT', ARGV[7])) do
    if left <= 0 then
      break
    end
    last = entry[1]
    local router, told = unpack(entry[2])
    if router ~= ARGV[1] then
      news[#news + 1] = router
      news[#news + 1] = told
      left = left - #told
    end
  end
end
return {others, news, last}
"""

BEGIN_ONCE = """
-- KEYS once   ARGV turn asked ttl_ms lease_ms
-- nil: the key is this turn's now; else {turn, asked, answer or '', whether the lease runs}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local facts = redis.call('HMGET', KEYS[1], 'turn', 'asked', 'answer', 'until')
if facts[1] then
  return {facts[1], facts[2], facts[3] or '', (tonumber(facts[4]) or 0) > now and 1 or 0}
end
redis.call('HSET', KEYS[1], 'turn', ARGV[1], 'asked', ARGV[2],
  'until', string.format('%.0f', now + ARGV[4]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return nil
"""

RENEW_ONCE = """
-- KEYS once   ARGV turn ttl_ms lease_ms
if redis.call('HGET', KEYS[1], 'turn') == ARGV[1] then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[3]))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
"""

END_ONCE = """
-- KEYS once   ARGV turn answer ttl_ms   An empty answer frees the key.
local held = redis.call('HGET', KEYS[1], 'turn')
if held and held ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'turn', ARGV[1], 'answer', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
"""

_ADD_ITEMS = """
local function add(first)
  for n = first, #ARGV, 2 do
    if redis.call('HEXISTS', KEYS[3], ARGV[n]) == 0 then
      redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[1], 'last', 1), ARGV[n])
    end
    redis.call('HSET', KEYS[3], ARGV[n], ARGV[n + 1])
  end
end
"""

_KEEP = """
for n = 1, 3 do
  redis.call('PEXPIRE', KEYS[n], ARGV[1])
end
"""

CONVERSATION_CREATE = f"""
-- KEYS facts order items   ARGV ttl_ms created_at metadata, and for each item: id body
{_ADD_ITEMS}
redis.call('HSET', KEYS[1], 'created_at', ARGV[2], 'metadata', ARGV[3])
add(4)
{_KEEP}
return 1
"""

CONVERSATION_APPEND = f"""
-- KEYS facts order items   ARGV ttl_ms, and for each item: id body
-- 0 if there is no such conversation: one that was deleted meanwhile does not come back.
{_ADD_ITEMS}
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
add(2)
{_KEEP}
return 1
"""

CONVERSATION_UPDATE = """
-- KEYS facts   ARGV metadata
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'metadata', ARGV[1])
end
return 1
"""

CONVERSATION_GET = f"""
-- KEYS facts order items   ARGV ttl_ms   {{created_at, metadata, size}}, or nil
local facts = redis.call('HMGET', KEYS[1], 'created_at', 'metadata')
if not facts[1] then
  return nil
end
{_KEEP}
return {{facts[1], facts[2], redis.call('ZCARD', KEYS[2])}}
"""

CONVERSATION_PAGE = f"""
-- KEYS facts order items   ARGV ttl_ms after limit rev   The bodies behind `after`, or nil.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return nil
end
{_KEEP}
local rev = ARGV[4] == 'REV'
local from, to = '-inf', '+inf'
if rev then
  from, to = to, from
end
if ARGV[2] ~= '' then
  local score = redis.call('ZSCORE', KEYS[2], ARGV[2])
  if not score then
    return {{}}
  end
  from = '(' .. score
end
local call = rev and 'ZREVRANGEBYSCORE' or 'ZRANGEBYSCORE'
local ids = redis.call(call, KEYS[2], from, to, 'LIMIT', 0, ARGV[3])
if #ids == 0 then
  return {{}}
end
return redis.call('HMGET', KEYS[3], unpack(ids))
"""
