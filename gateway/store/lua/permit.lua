-- Says whether a subject may ask for one more completion, or begin one, which then has a slot and a
-- reservation of tokens and cost until its lease is over; or says anew what runs, for another lease.
-- The same command again changes nothing.
-- KEYS: 1 slots: "tokens cost preset" of each stream, and sums, 2 when each lease is over, 3 what was
--       spent today, 4 POSTs of the last minute, 5 those in the preset
-- ARGV: 1 "post", "run", "look" or "hold", 2 the lease of a slot (ms); for "hold" then of each stream
--       its name, tokens and cost (billionths) reserved, and preset, "" if it is free; else 3 stream,
--       4 preset, 5 tokens and 6 cost to reserve, 7-10 bounds over all: POSTs a minute, streams,
--       tokens and cost a day, 11-14 the same in the preset; 0 is none
-- Returns {1 or 0, why not, ms until it may pass, ms until more POSTs may, ms of the day that are
-- left, then how many are left of POSTs, streams, tokens, cost, -1 where there is no bound, and
-- the day since 1970}
local MINUTE, DAY = 60000, 86400000
local POSTS, STREAMS, TOKENS, COST = 1, 2, 3, 4
local SUMS = {[STREAMS] = 'streams', [TOKENS] = 'tokens', [COST] = 'cost'}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local kind, lease = ARGV[1], tonumber(ARGV[2])
local function text(number) return string.format('%.0f', number) end

-- A key of another kind, whoever wrote it, would keep its subject out for good.
for i, size in ipairs({'HLEN', 'ZCARD', 'HLEN', 'ZCARD', 'ZCARD'}) do
  if KEYS[i] and type(redis.pcall(size, KEYS[i])) == 'table' then
    redis.call('DEL', KEYS[i], i < 3 and KEYS[3 - i] or KEYS[i])  -- Slots go with their leases.
  end
end
-- A full Redis refuses a script's first write only, and not one that frees: this one writes nothing.
if kind == 'post' or kind == 'run' then redis.call('ZADD', KEYS[2], 'XX', 0, '') end

-- A sum's field has a character that is in no stream's name.
local function sum(what, preset) return '\n' .. SUMS[what] .. '\n' .. preset end
local function add(preset, amounts)
  for what, amount in pairs(amounts) do
    if amount ~= 0 then
      redis.call('HINCRBY', KEYS[1], sum(what, ''), text(amount))
      redis.call('HINCRBY', KEYS[1], sum(what, preset), text(amount))
    end
  end
end
local function free(stream)
  local held = redis.call('HGET', KEYS[1], stream)
  redis.call('HDEL', KEYS[1], stream)
  redis.call('ZREM', KEYS[2], stream)
  if held then
    local tokens, cost, preset = string.match(held, '^(%d+) (%d+) (.*)$')
    add(preset, {[STREAMS] = -1, [TOKENS] = -tonumber(tokens), [COST] = -tonumber(cost)})
  end
end
local function hold(stream, tokens, cost, preset)
  local slot = tokens .. ' ' .. cost .. ' ' .. preset
  if redis.call('HGET', KEYS[1], stream) ~= slot then
    free(stream)
    redis.call('HSET', KEYS[1], stream, slot)
    add(preset, {[STREAMS] = 1, [TOKENS] = tonumber(tokens), [COST] = tonumber(cost)})
  end
  redis.call('ZADD', KEYS[2], text(now + lease), stream)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end

-- One that is longer than any lease was given by a clock that was set back since. Who only looks may
-- have been told of another lease than those who run it.
local overs = {{'-inf', text(now)}}
if kind ~= 'look' then overs[2] = {'(' .. text(now + lease), '+inf'} end
for _, over in ipairs(overs) do
  local streams = redis.call('ZRANGEBYSCORE', KEYS[2], over[1], over[2], 'LIMIT', 0, 1000)
  for _, stream in ipairs(streams) do free(stream) end
end

if kind == 'hold' then
  for _, freed in ipairs({true, false}) do  -- These first: a full Redis lets a script free.
    for i = 3, #ARGV, 4 do
      local preset = ARGV[i + 3]
      if freed and preset == '' then free(ARGV[i]) end
      if not freed and preset ~= '' then hold(ARGV[i], ARGV[i + 1], ARGV[i + 2], preset) end
    end
  end
  return {1, '', 0, 0, 0, -1, -1, -1, -1, 0}
end

local stream, preset = ARGV[3], ARGV[4]
local day = math.floor(now / DAY)
local night = (day + 1) * DAY - now
local function bound(scope, what) return tonumber(ARGV[2 + 4 * scope + what]) end

-- What counts in each scope, over all and in the preset.
local counts, reserved = {{}, {}}, {{}, {}}
local spent = redis.call('HMGET', KEYS[3], 'day', 'tokens', 'cost', 'tokens\n' .. preset,
  'cost\n' .. preset)
if tonumber(spent[1] or 0) ~= day then spent = {} end
for scope, where in ipairs({'', preset}) do
  local sums = redis.call('HMGET', KEYS[1], sum(STREAMS, where), sum(TOKENS, where),
    sum(COST, where))
  counts[scope] = {0, tonumber(sums[1] or 0), tonumber(spent[2 * scope] or 0),
    tonumber(spent[2 * scope + 1] or 0)}
  reserved[scope] = {0, 0, tonumber(sums[2] or 0), tonumber(sums[3] or 0)}
end
local mine = redis.call('HEXISTS', KEYS[1], stream) == 1

local left, soon = {-1, -1, -1, -1}, 0
for scope = 1, 2 do
  local key, most = KEYS[3 + scope], bound(scope, POSTS)
  if most > 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now - MINUTE))
    redis.call('ZREMRANGEBYSCORE', key, '(' .. text(now), '+inf')
    local count = redis.call('ZCARD', key)
    counts[scope][POSTS] = redis.call('ZSCORE', key, stream) and count - 1 or count
    local nth = math.max(0, count - most)  -- When that one is forgotten there is room.
    local first = redis.call('ZRANGE', key, nth, nth, 'WITHSCORES')[2]
    local wait = kind == 'post' and MINUTE or 0  -- Else this one is the first to be forgotten.
    if first then wait = tonumber(first) + MINUTE - now end
    local rest = math.max(0, most - counts[scope][POSTS])
    if left[POSTS] < 0 or rest < left[POSTS] then soon = wait end  -- That of the tighter one.
    if rest == left[POSTS] then soon = math.max(soon, wait) end
  end
  for what = POSTS, COST do
    local most = bound(scope, what)
    local rest = math.max(0, most - counts[scope][what] - reserved[scope][what])
    if most > 0 and (left[what] < 0 or rest < left[what]) then left[what] = rest end
  end
end

left[#left + 1] = day
local function answer(ok, why, ms) return {ok, why, math.ceil(ms), soon, night, unpack(left)} end
if kind == 'look' then return answer(1, '', 0) end
if kind == 'post' and left[POSTS] == 0 then return answer(0, 'rate_limited', soon) end
if not mine then
  for scope = 1, 2 do
    for what = TOKENS, COST do
      local most = bound(scope, what)
      if most > 0 and counts[scope][what] >= most then return answer(0, 'quota_exhausted', night) end
    end
  end
  if left[STREAMS] == 0 then return answer(0, 'too_many_streams', 2000) end
  -- All of the rest is reserved; of what runs some may be left when it has ended.
  if left[TOKENS] == 0 or left[COST] == 0 then return answer(0, 'quota_reserved', 2000) end
end
if kind == 'run' then
  hold(stream, ARGV[5], ARGV[6], preset)
else
  for scope = 1, 2 do
    if bound(scope, POSTS) > 0 then
      redis.call('ZADD', KEYS[3 + scope], 'NX', text(now), stream)
      redis.call('PEXPIRE', KEYS[3 + scope], MINUTE)
    end
  end
  if left[POSTS] > 0 then left[POSTS] = left[POSTS] - 1 end
end
return answer(1, '', 0)
