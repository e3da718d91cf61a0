-- Takes streams off a dead replica's list, and forgets it once that is empty: while it names a stream
-- somebody must find it. One that beats again is not dead, and keeps everything.
-- KEYS: 1 beats, 2 its list of streams, 3 its list of cancels
-- ARGV: 1 replica, 2 its counter as it stood still, "" for none, 3 whether to forget it, "" for no,
--       4... streams that were taken over
-- Returns the streams left if it was to be forgotten, else {}; nil if it beats again
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return false end
for from = 4, #ARGV, 1000 do
  redis.call('SREM', KEYS[2], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
if ARGV[3] == '' then return {} end
local left = redis.call('SMEMBERS', KEYS[2])
if #left == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
end
return left
