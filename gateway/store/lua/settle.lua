-- Says anew what streams of a subject hold, and for how long: those that run go on, those that ended
-- are free. Nothing is refused here.
-- KEYS: 1 bytes of each stream and, under '', of all, 2 until when each counts, 3 slots
-- ARGV: 1 TTL (ms), 2 lease of a slot (ms), then for each stream: its name, its bytes (0 if it is
--       free, -1 if none are counted), for how long they count (ms), and "tokens cost preset" if it
--       has a slot, else ""
-- Returns the bytes of all
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = tonumber(redis.call('HGET', KEYS[1], '') or 0)
local function settle(stream, bytes, milliseconds, slot)
  if bytes >= 0 then
    all = all - tonumber(redis.call('HGET', KEYS[1], stream) or 0) + bytes
  end
  if bytes == 0 then
    redis.call('HDEL', KEYS[1], stream)
    redis.call('ZREM', KEYS[2], stream)
    redis.call('HDEL', KEYS[3], stream)
  elseif bytes > 0 then
    redis.call('HSET', KEYS[1], stream, string.format('%.0f', bytes))
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + milliseconds), stream)
  end
  if slot ~= '' then
    redis.call('HSET', KEYS[3], stream, string.format('%.0f ', now + tonumber(ARGV[2])) .. slot)
    redis.call('PEXPIRE', KEYS[3], ARGV[2])
  end
end
-- First what frees: a full Redis lets a script write only after that.
for _, free in ipairs({true, false}) do
  for i = 3, #ARGV, 4 do
    local bytes = tonumber(ARGV[i + 1])
    if (bytes == 0) == free then settle(ARGV[i], bytes, tonumber(ARGV[i + 2]), ARGV[i + 3]) end
  end
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('HSET', KEYS[1], '', string.format('%.0f', math.max(0, all)))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return math.max(0, all)
