-- Says anew what streams of a subject count, and for how long: those that run go on, those that
-- ended are free. Nothing is refused here.
-- KEYS: 1 bytes of each stream and, under '', of all, 2 until when each counts
-- ARGV: 1 stream, 2 its bytes, 0 if it is free, 3 for how long they count (ms); 4... more of them
-- Returns the bytes of all
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = tonumber(redis.call('HGET', KEYS[1], '') or 0)
-- First what frees: a full Redis lets nothing else pass.
for turn = 1, 2 do
  for i = 1, #ARGV, 3 do
    local bytes = tonumber(ARGV[i + 1])
    if (bytes == 0) == (turn == 1) then
      all = all - (tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0)) + bytes
      if bytes == 0 then
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('ZREM', KEYS[2], ARGV[i])
      else
        redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
        redis.call('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[i + 2])), ARGV[i])
      end
    end
  end
end
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if not last then
  redis.call('DEL', KEYS[1])
  return 0
end
all = math.max(0, all)
redis.call('HSET', KEYS[1], '', string.format('%.0f', all))
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', last))
return all
