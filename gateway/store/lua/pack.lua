-- Writes the log of a stream that has ended compactly, if it still is the one that was packed; in
-- one step, so whoever reads finds one form or the other. Replicas that know one form only must
-- find neither: they would show packs as they are. So it gets another key, and the record is marked
-- as newer than they are.
-- KEYS: 1 record, 2 log, 3 the same once it was packed
-- ARGV: 1 id of the last entry, 2 how many there are, 3 version of the record, 4 id of the last
--       entry in a pack, 5 the pack, '' for an entry that stays as it is, 6 what it holds, in bytes;
--       more...
-- Returns 1, or 0 if the log is not that one, or was packed already
if redis.call('HGET', KEYS[1], 'end_id') ~= ARGV[1] then return 0 end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[1] or last[2][3] ~= 'end' then return 0 end
if redis.call('XLEN', KEYS[2]) ~= tonumber(ARGV[2]) then return 0 end
local packs = {}
for i = 4, #ARGV, 3 do
  local pack = {'packed', ARGV[i + 1], 'size', ARGV[i + 2]}
  if ARGV[i + 1] == '' then
    local same = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i], 'COUNT', 1)[1]
    if not same then return 0 end
    pack = same[2]
  end
  packs[#packs + 1] = {ARGV[i], pack}
end
local ttl = redis.call('PTTL', KEYS[2])
redis.call('DEL', KEYS[3])  -- First: after it a full Redis takes the rest, which frees more.
for _, each in ipairs(packs) do redis.call('XADD', KEYS[3], each[1], unpack(each[2])) end
redis.call('PEXPIRE', KEYS[3], ttl)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'version', ARGV[3])
return 1
