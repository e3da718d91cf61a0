-- Ends a stream: the last entry, the state and the TTLs in one step. A stored cancel wins.
-- KEYS: 1 record, 2 log
-- ARGV: 1 owner, 2 epoch, 3 id of the last entry, 4 TTL (ms), 5 result (JSON),
--       6 state, 7 id, 8 events in it, 9 frames, 10-13 the same if a cancel is stored, 14 what it
--       took, to be booked by whoever finds it, "" if that is done in one step with this
-- Returns {1, 'sealed', state}, or {0, verdict}: behind, fenced or missing
local r = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch', 'cancel', 'end_id')
local mine, theirs = tonumber(ARGV[2]), tonumber(r[3] or 0)
if not r[1] or theirs < mine then return {0, 'missing'} end  -- Or made anew by who asked again.
if theirs > mine then return {0, 'fenced'} end
if r[5] then return {1, 'sealed', r[1]} end  -- The same command again.
if r[2] ~= ARGV[1] then return {0, 'fenced'} end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[3] then return {0, 'behind'} end
local state, id, count, frames = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
if r[4] then state, id, count, frames = ARGV[10], ARGV[11], ARGV[12], ARGV[13] end
redis.call('XADD', KEYS[2], id, count, frames, 'end', state)
redis.call('HSET', KEYS[1], 'state', state, 'end_id', id, 'result', ARGV[5])
if ARGV[14] ~= '' then redis.call('HSET', KEYS[1], 'bill', ARGV[14]) end
redis.call('HDEL', KEYS[1], 'request', 'body')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1, 'sealed', state}
