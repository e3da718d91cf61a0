-- Remembers a stream by what was asked, so that a repeat of the request finds it. A repeat names an
-- epoch, and no two streams of one request may have the same: they are claimed, and taken over, in
-- one millisecond. So each gets epochs of its own, above all that Redis's clock can give meanwhile:
-- from the one returned on, a millisecond each, as the time from its request to a claim is long.
-- KEYS: 1 the streams of this request, by epoch
-- ARGV: 1 TTL (ms), 2 stream, 3 how many streams are kept
-- Returns the epoch that its first one is to follow
local between = 600000
local epoch = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not epoch then
  local t = redis.call('TIME')
  local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  epoch = math.max(now + ARGV[1], (tonumber(last) or 0) + between)
  redis.call('ZADD', KEYS[1], string.format('%.0f', epoch), ARGV[2])
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return string.format('%.0f', epoch)
