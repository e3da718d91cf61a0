-- Asserts that a stream is still its owner's, and writes the record again if Redis forgot it, or
-- forgot who owns it. A log without the owner's fence may have gained what is none of its own: what
-- a younger claim, drawn by a clock set back, has logged or ended meanwhile, or what a dead owner
-- appended that came back. One log must not hold two answers, so all that is there goes, and it
-- begins anew with what preceded the fence, in one step. The owner appends what follows.
-- KEYS: 1 record, 2 log
-- ARGV: 1 owner, 2 epoch, 3 TTL (ms), 4 how many entries precede the fence, or -1 if there are any
--       that were not given, 5 "" or how a log that lacks something is to be found ("<id of its last
--       entry> <how many>"), so that it begins anew, too; for each that precedes id, events in it,
--       frames; then field, value...
-- Returns {verdict, id of the last entry}; verdict: ours, sealed, fenced, or behind: give them
local r = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch', 'end_id')
local mine, theirs = tonumber(ARGV[2]), tonumber(r[3] or 0)
if theirs > mine or (theirs == mine and r[2] ~= ARGV[1]) then return {'fenced', ''} end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local tail = last and last[1] or ''
local epoch = last and tonumber(string.match(tail, '^%d+')) or 0
if epoch > mine then return {'fenced', ''} end
if r[4] and theirs == mine then return {'sealed', tail} end
local before = tonumber(ARGV[4])
-- Redis forgot a takeover, and the old owner lived to end the stream: it has its end.
if r[4] and before ~= 0 then return {'fenced', ''} end
-- So exactly, as this may come late: when it has been written again.
local torn = ARGV[5] ~= '' and tail .. ' ' .. redis.call('XLEN', KEYS[2]) == ARGV[5]
if (epoch < mine or torn) and before < 0 then return {'behind', tail} end
local was = redis.call('HMGET', KEYS[1], 'issued', 'attempts')
redis.call('HSET', KEYS[1], 'state', 'starting', 'owner', ARGV[1], 'epoch', ARGV[2],
  unpack(ARGV, 6 + 3 * math.max(0, before)))
local is = redis.call('HMGET', KEYS[1], 'issued', 'attempts')
-- By a clock set back, whoever asked again has a ticket that is older than the stream.
if was[1] and is[1] and tonumber(was[1]) < tonumber(is[1]) then
  redis.call('HSET', KEYS[1], 'issued', was[1])
end
-- This may be a late one, that knows of fewer attempts.
if theirs == mine and was[2] and is[2] and tonumber(was[2]) > tonumber(is[2]) then
  redis.call('HSET', KEYS[1], 'attempts', was[2])
end
redis.call('HDEL', KEYS[1], 'end_id', 'result', 'owed')
if epoch < mine or torn then
  redis.call('DEL', KEYS[2])
  for at = 6, 5 + 3 * before, 3 do
    redis.call('XADD', KEYS[2], ARGV[at], ARGV[at + 1], ARGV[at + 2])
  end
  tail = ARGV[2] .. '-0'
  redis.call('XADD', KEYS[2], tail, '0', '')
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'ours', tail}
