-- Takes a stream from an owner that was seen to be dead, and fences it: from the fence entry on,
-- Redis refuses the old owner's ids. A stream that nobody owns yet may have been named for a claim
-- that is still under way: it is counted, as that claim is not valid any more.
-- KEYS: 1 record, 2 log
-- ARGV: 1 old owner, 2 new owner, 3 nonce of this attempt, 4 TTL (ms)
-- Returns {verdict, epoch}; verdict: taken or no
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch', 'nonce', 'ahead')
if r[1] == 'cached' then redis.call('HINCRBY', KEYS[1], 'buried', 1) end
if r[1] ~= 'starting' then return {'no'} end
if r[2] == ARGV[2] and r[4] == ARGV[3] then return {'taken', r[3]} end
if r[2] ~= ARGV[1] then return {'no'} end
local epoch = math.max(now + (tonumber(r[5]) or 0), tonumber(r[3]) + 1)
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then epoch = math.max(epoch, tonumber(string.match(last[1], '^%d+')) + 1) end
local name = string.format('%.0f', epoch)
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'epoch', name, 'nonce', ARGV[3])
redis.call('XADD', KEYS[2], name .. '-0', '0', '')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'taken', name}
