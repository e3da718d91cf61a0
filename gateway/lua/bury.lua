-- Forgets a dead replica. One that beats again is none, and while its list names a stream its name
-- must stay: else nobody would find that stream.
-- KEYS: 1 beats, 2 its list of streams, 3 its list of cancels
-- ARGV: 1 replica, 2 its counter as it stood still, "" for none
-- Returns 1 if it is forgotten, else 0
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
