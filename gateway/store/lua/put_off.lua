-- Puts the next try to tell an end off, and writes again what is to be told where Redis forgot it.
-- KEYS: 1 webhook
-- ARGV: 1 for how long (ms), 2 TTL where it has none (ms), 3 tries so far, 4... field, value
-- Returns {1, 1 if it has a body}; nothing is put off that was heard
if redis.call('HEXISTS', KEYS[1], 'heard') == 1 then return {1, 1} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'due', string.format('%.0f', now + ARGV[1]), 'tries', ARGV[3])
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {1, redis.call('HEXISTS', KEYS[1], 'body')}
