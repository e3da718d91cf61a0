-- Asserts that a stream is still its owner's, and writes the record again if Redis forgot it, or
-- forgot who owns it. A log that is gone gets its fence back. What a younger claim, drawn by a clock
-- set back, has ended or logged meanwhile goes: one log must not hold two answers.
-- KEYS: 1 record, 2 log
-- ARGV: 1 owner, 2 epoch, 3 TTL (ms), 4 whether the owner began the log, 5... field, value
-- Returns {verdict, id of the last entry}; verdict: ours, sealed or fenced
local r = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch', 'end_id')
local mine, theirs = tonumber(ARGV[2]), tonumber(r[3] or 0)
if theirs > mine or (theirs == mine and r[2] ~= ARGV[1]) then return {'fenced', ''} end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local tail = last and last[1] or ''
local epoch = last and tonumber(string.match(tail, '^%d+')) or 0
if epoch > mine then return {'fenced', ''} end
if r[4] and theirs == mine then return {'sealed', tail} end
-- Redis forgot a takeover, and the old owner lived to end the stream: it has its end.
if r[4] and ARGV[4] ~= '1' then return {'fenced', ''} end
redis.call('HSET', KEYS[1], 'state', 'starting', 'owner', ARGV[1], 'epoch', ARGV[2],
  unpack(ARGV, 5))
redis.call('HDEL', KEYS[1], 'end_id', 'result')
if epoch < mine then
  if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
  tail = ARGV[2] .. '-0'
  redis.call('XADD', KEYS[2], tail, '0', '')
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'ours', tail}
