-- Says whether a subject may ask for one more completion, or begin one, which then has a slot and a
-- reservation of tokens and cost until its lease is over. The same command again changes nothing.
-- KEYS: 1 slots, 2 what was spent today, 3 POSTs of the last minute, 4 those in the preset
-- ARGV: 1 "post", "run" or "look", 2 stream, 3 preset, 4 the lease of a slot (ms), 5 tokens and
--       6 cost (billionths) to reserve, 7-10 bounds over all: POSTs a minute, streams, tokens and
--       cost a day, 11-14 the same in the preset; 0 is none
-- Returns {1 or 0, why not, ms until it may pass, ms until more POSTs may, ms of the day that are
-- left, then how many are left of POSTs, streams, tokens, cost, -1 where there is no bound, and
-- the day since 1970}
local MINUTE, DAY = 60000, 86400000
local POSTS, STREAMS, TOKENS, COST = 1, 2, 3, 4
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local day = math.floor(now / DAY)
local kind, stream, preset, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local night = (day + 1) * DAY - now
local function text(number) return string.format('%.0f', number) end
local function bound(scope, what) return tonumber(ARGV[2 + 4 * scope + what]) end

-- What counts in each scope: of tokens and cost first what was spent, then what is reserved.
local counts = {{0, 0, 0, 0}, {0, 0, 0, 0}}
local spent = redis.call('HMGET', KEYS[2], 'day', 'tokens', 'cost', 'tokens\n' .. preset,
  'cost\n' .. preset)
if tonumber(spent[1] or 0) ~= day then spent = {} end
local reserved = {{0, 0, 0, 0}, {0, 0, 0, 0}}
for scope = 1, 2 do
  counts[scope][TOKENS] = tonumber(spent[2 * scope] or 0)
  counts[scope][COST] = tonumber(spent[2 * scope + 1] or 0)
end
-- A lease that is longer than any can be was given by a clock that was set back since.
local stale, mine, held = {}, false, redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  local till, tokens, cost, where = string.match(held[i + 1], '^(%d+) (%d+) (%d+) (.*)$')
  till = tonumber(till or 0)
  if till <= now or till > now + lease then
    if #stale < 1000 then stale[#stale + 1] = held[i] end
  elseif held[i] == stream then
    mine = true
  else
    for scope = 1, where == preset and 2 or 1 do
      counts[scope][STREAMS] = counts[scope][STREAMS] + 1
      reserved[scope][TOKENS] = reserved[scope][TOKENS] + tonumber(tokens)
      reserved[scope][COST] = reserved[scope][COST] + tonumber(cost)
    end
  end
end
-- Who only looks may have been told of another lease than those who run it.
if #stale > 0 and kind ~= 'look' then redis.call('HDEL', KEYS[1], unpack(stale)) end

local left, soon = {-1, -1, -1, -1}, 0
for scope = 1, 2 do
  local key, most = KEYS[2 + scope], bound(scope, POSTS)
  if most > 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now - MINUTE))
    redis.call('ZREMRANGEBYSCORE', key, '(' .. text(now), '+inf')
    local count = redis.call('ZCARD', key)
    counts[scope][POSTS] = redis.call('ZSCORE', key, stream) and count - 1 or count
    local nth = math.max(0, count - most)  -- When that one is forgotten there is room.
    local first = redis.call('ZRANGE', key, nth, nth, 'WITHSCORES')[2]
    if first then soon = math.max(soon, tonumber(first) + MINUTE - now) end
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
  local slot = text(now + lease) .. ' ' .. ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. preset
  redis.call('HSET', KEYS[1], stream, slot)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
else
  for scope = 1, 2 do
    if bound(scope, POSTS) > 0 then
      redis.call('ZADD', KEYS[2 + scope], 'NX', text(now), stream)
      redis.call('PEXPIRE', KEYS[2 + scope], MINUTE)
    end
  end
  if left[POSTS] > 0 then left[POSTS] = left[POSTS] - 1 end
end
return answer(1, '', 0)
