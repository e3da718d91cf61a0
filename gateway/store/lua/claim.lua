-- Makes one replica the owner of a cached stream; the log begins with the fence <epoch>-0.
-- KEYS: 1 record, 2 log
-- ARGV: 1 owner, 2 nonce of this attempt, 3 TTL (ms), 4 evictions before it was named
-- Returns {verdict, epoch, request}; verdict: claimed, attach, expired, missing, or unnamed: who was
-- seen to be dead since is on no list any more, and must name the stream again
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'state', 'start_by', 'owner', 'nonce', 'epoch', 'request',
  'buried', 'ahead')
if not r[1] then return {'missing'} end
if r[1] == 'starting' and r[3] == ARGV[1] and r[4] == ARGV[2] then
  return {'claimed', r[5], r[6]}  -- The same command again: its first reply was lost.
end
if r[1] ~= 'cached' then return {'attach'} end
if now > tonumber(r[2]) then return {'expired'} end
if (r[7] or '0') ~= ARGV[4] then return {'unnamed'} end
local epoch = math.max(now + (tonumber(r[8]) or 0), (tonumber(r[5]) or 0) + 1)
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then epoch = math.max(epoch, tonumber(string.match(last[1], '^%d+')) + 1) end
local name = string.format('%.0f', epoch)
redis.call('HSET', KEYS[1], 'state', 'starting', 'owner', ARGV[1], 'nonce', ARGV[2],
  'epoch', name, 'attempts', 1)
redis.call('XADD', KEYS[2], name .. '-0', '0', '')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'claimed', name, r[6]}
