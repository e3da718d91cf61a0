-- Appends what a log misses, if it still ends where it was seen to end: another server may have
-- taken over since, and know less. All of it or nothing.
-- KEYS: 1 log
-- ARGV: 1 id of the last entry, 2... id, number of events, frames
-- Returns 1, or 0 if the log ends elsewhere
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[1] ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 3 do
  redis.call('XADD', KEYS[1], ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
return 1
