-- Puts a stream on a list, in one step with the list's TTL: who died between the two would leave a
-- list for ever.
-- KEYS: 1 list
-- ARGV: 1 TTL (ms), 2 stream
-- Returns 1
redis.call('SADD', KEYS[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
