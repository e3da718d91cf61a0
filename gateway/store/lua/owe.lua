-- Notes that the end of a stream is to be told to its receiver, once: with all that is told of it but
-- its text, as the log may be gone by then.
-- KEYS: 1 record, 2 webhook
-- ARGV: 1 TTL (ms)
-- Returns {1}; nothing is noted where the stream has no end, no receiver, or was noted before
local names = {'subject', 'preset', 'protocol', 'ref', 'issued', 'state', 'result'}
local r = redis.call('HMGET', KEYS[1], 'end_id', 'webhook', 'owed', unpack(names))
if not r[1] or not r[2] or r[3] then return {1} end
redis.call('HSET', KEYS[1], 'owed', 1)
local was = redis.call('HMGET', KEYS[2], 'issued', 'state', 'result')
-- Who tells it has written it again before the owner did so with the record.
if was[1] == r[8] and was[2] == r[9] and was[3] == r[10] then return {1} end
local t = redis.call('TIME')
redis.call('DEL', KEYS[2])  -- Of another stream, perhaps, that a repeated key began under this id.
redis.call('HSET', KEYS[2], 'to', r[2],
  'at', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
for i, name in ipairs(names) do
  if r[3 + i] then redis.call('HSET', KEYS[2], name, r[3 + i]) end
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return {1}
