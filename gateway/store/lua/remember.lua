-- Remembers a stream by what was asked, so that a repeat of the request finds it. A repeat names an
-- epoch, and no two streams of one request may have the same: they are claimed, and taken over, in
-- one millisecond. So each has a clock of its own, as far ahead of Redis's that what it draws is
-- above all that the ones before can draw. It goes on: an epoch must be another at each claim, also
-- at one that a failover lost the first of.
-- KEYS: 1 the streams of this request, by when each one's clock began
-- ARGV: 1 TTL (ms), 2 stream, 3 how many streams are kept
-- Returns by how many milliseconds its clock is ahead
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local began = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not began then
  local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  began = last and math.max(now, tonumber(last) + tonumber(ARGV[1])) or now
  redis.call('ZADD', KEYS[1], string.format('%.0f', began), ARGV[2])
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return string.format('%.0f', math.max(0, began - now))
