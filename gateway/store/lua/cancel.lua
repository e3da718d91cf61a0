-- Stores a cancel: a cached stream is sealed here, a running one by its owner.
-- KEYS: 1 record, 2 log
-- ARGV: 1 TTL (ms), 2 frame of the end without its id, 3 result (JSON)
-- Returns {state, owner}; state: missing, expired, or what the stream ends with; owner '' if none
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'state', 'start_by', 'owner', 'epoch', 'ahead')
if not r[1] then return {'missing', ''} end
if r[1] == 'starting' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  return {'cancelled', r[3]}
end
if r[1] ~= 'cached' then return {r[1], ''} end
if now > tonumber(r[2]) then return {'expired', ''} end
local epoch = string.format('%.0f', math.max(now + (tonumber(r[5]) or 0), (tonumber(r[4]) or 0) + 1))
local id = epoch .. '-1'
redis.call('XADD', KEYS[2], id, '1', ARGV[2] .. 'id: ' .. id .. '\n\n', 'end', 'cancelled')
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'end_id', id, 'epoch', epoch, 'result', ARGV[3])
redis.call('HDEL', KEYS[1], 'request', 'body')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return {'cancelled', ''}
