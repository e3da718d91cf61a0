-- Counts the bytes of a stream among those of its subject, if they fit. What was counted until a time
-- that is over is free again, whoever died before it could say so. The same command again counts
-- nothing twice, and a smaller repeat takes nothing back.
-- KEYS: 1 bytes of each stream and, under '', of all, 2 until when each counts
-- ARGV: 1 most bytes, 2 for how long these count (ms), 3 stream, 4 its bytes, 5 TTL (ms)
-- Returns {1 if they fit, else 0, ms until some are free}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A key of another kind, whoever wrote it, would keep its subject out for good.
for i, size in ipairs({'HLEN', 'ZCARD'}) do
  if type(redis.pcall(size, KEYS[i])) == 'table' then redis.call('DEL', KEYS[1], KEYS[2]) end
end
-- A full Redis refuses a script's first write only, and not one that frees: this one writes nothing.
redis.call('ZADD', KEYS[2], 'XX', 0, '')
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
local freed = 0
if #over > 0 then
  for _, bytes in ipairs(redis.call('HMGET', KEYS[1], unpack(over))) do
    freed = freed + (tonumber(bytes) or 0)
  end
  redis.call('HDEL', KEYS[1], unpack(over))
  redis.call('ZREM', KEYS[2], unpack(over))
end
local known = redis.call('HMGET', KEYS[1], '', ARGV[3])
local all, had = tonumber(known[1] or 0), tonumber(known[2] or 0)
local bytes = math.max(had, tonumber(ARGV[4]))
local sum = math.max(0, all - freed) - had + bytes
if sum > tonumber(ARGV[1]) and bytes > had then
  if freed > 0 then redis.call('HINCRBY', KEYS[1], '', -freed) end
  -- By a clock set back, they would count until it is there again.
  local last = string.format('%.0f', now + tonumber(ARGV[5]))
  local late = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. last, '+inf', 'LIMIT', 0, 1000)
  for _, each in ipairs(late) do redis.call('ZADD', KEYS[2], last, each) end
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
  return {0, math.max(0, tonumber(first or now) - now)}
end
local till = now + tonumber(ARGV[2])
if had > 0 then till = math.max(till, tonumber(redis.call('ZSCORE', KEYS[2], ARGV[3]) or 0)) end
redis.call('HSET', KEYS[1], '', string.format('%.0f', sum), ARGV[3], string.format('%.0f', bytes))
redis.call('ZADD', KEYS[2], string.format('%.0f', till), ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {1, 0}
