-- Stores a request under its stream id, once; an unredeemed one that ran out is replaced.
-- KEYS: 1 record, 2 log
-- ARGV: 1 seconds to redeem in (ms), 2 TTL (ms), 3 digest of the request, 4... field, value
-- Returns {issued, start-by, now, digest, state, made}: what is stored now, by whoever stored it
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
local old = redis.call('HMGET', KEYS[1], 'issued', 'start_by', 'digest', 'state')
if old[1] and not (old[4] == 'cached' and now > tonumber(old[2])) then
  return {old[1], old[2], text(now), old[3], old[4], 0}
end
if old[1] then redis.call('DEL', KEYS[1]) end
local start_by = now + ARGV[1]
redis.call('HSET', KEYS[1], 'state', 'cached', 'issued', text(now), 'start_by', text(start_by),
  'digest', ARGV[3], unpack(ARGV, 4))
redis.call('DEL', KEYS[2])  -- Not first: Redis looks for room at a script's first write only.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {text(now), text(start_by), text(now), ARGV[3], 'cached', 1}
