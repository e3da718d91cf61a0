-- Begins a try to tell an end, if one is due. Until it is over, or has had its time, nobody else
-- begins one.
-- KEYS: 1 webhook
-- ARGV: 1 for how long a try may take (ms), 2 the longest that a try is put off (ms), 3 "" if who
--       asks knows what is to be told
-- Returns {'go', tries with this one, age of the end (ms), field, value...}, {'wait', ms}, {'heard'}
-- or {'missing'}
local r = redis.call('HMGET', KEYS[1], 'heard', 'at', 'due', 'tries')
if r[1] then return {'heard'} end
if not r[2] then return {'missing'} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local wait = tonumber(r[3] or 0) - now
-- One that is later than any was put off is of a clock that was set back since.
if wait > 0 and wait <= tonumber(ARGV[2]) then return {'wait', wait} end
local tries = redis.call('HINCRBY', KEYS[1], 'tries', 1)
redis.call('HSET', KEYS[1], 'due', string.format('%.0f', now + ARGV[1]))
local facts = ARGV[3] ~= '' and redis.call('HGETALL', KEYS[1]) or {}
return {'go', tries, math.max(0, now - tonumber(r[2])), unpack(facts)}
