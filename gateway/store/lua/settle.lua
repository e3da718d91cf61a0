-- Says anew what streams of a subject count, and for how long: those that run go on, those that
-- ended are free. Nothing is refused here.
-- KEYS: 1 bytes of each stream and, under '', of all, 2 until when each counts
-- ARGV: 1 TTL (ms), 2 stream, 3 its bytes, 0 if it is free, 4 for how long they count (ms), more...
-- Returns the bytes of all
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = tonumber(redis.call('HGET', KEYS[1], '') or 0)
local function settle(stream, bytes, milliseconds)
  all = all - tonumber(redis.call('HGET', KEYS[1], stream) or 0) + bytes
  if bytes == 0 then
    redis.call('HDEL', KEYS[1], stream)
    redis.call('ZREM', KEYS[2], stream)
  else
    redis.call('HSET', KEYS[1], stream, string.format('%.0f', bytes))
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + milliseconds), stream)
  end
end
-- First what frees: a full Redis lets a script write only after that.
for _, free in ipairs({true, false}) do
  for i = 2, #ARGV, 3 do
    local bytes = tonumber(ARGV[i + 1])
    if (bytes == 0) == free then settle(ARGV[i], bytes, tonumber(ARGV[i + 2])) end
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
