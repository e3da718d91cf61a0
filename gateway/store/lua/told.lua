-- Notes that an end was heard, or is told no more: another replica may still have it on its list.
-- KEYS: 1 webhook
-- ARGV: 1 TTL (ms)
-- Returns {1}
redis.call('DEL', KEYS[1])  -- First: it frees, so a full Redis lets the rest be written.
redis.call('HSET', KEYS[1], 'heard', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {1}
