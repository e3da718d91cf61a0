-- Appends a message to a channel, once for each message id, and lets go of what is too old or too
-- much. Ids go on without a hole as long as the same server writes them; another one may lack what
-- the one before had shown, and one that forgot all may have a clock that was set back. So each
-- begins an epoch of its own, above all that it knows.
-- KEYS: 1 log, 2 channel, 3 watchers, 4 that of the message id
-- ARGV: 1 lines of the event, 2 for how long it is shown (ms), 3 most messages, 4 most bytes, 5 for
--       how long the log is kept (ms), 6 digest of the message, 7 for how long its id is known (ms)
-- Returns {1, id, the replicas that watch...}, or {0, id} if the message id has another message
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
local watchers = redis.call('ZRANGE', KEYS[3], 0, -1)
local id, digest = string.match(redis.call('GET', KEYS[4]) or '', '^(%S+) (%S+)$')
if id and digest ~= ARGV[6] then return {0, id} end
if id then return {1, id, unpack(watchers)} end
local info = redis.pcall('INFO', 'replication')
local server = type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '-'
local was = redis.call('HMGET', KEYS[2], 'id', 'server', 'bytes')
local count, bytes = redis.call('XLEN', KEYS[1]), tonumber(was[3] or 0)
if count == 0 then bytes = 0 end
local epoch, seq = string.match(was[1] or '0-0', '^(%d+)-(%d+)$')
if was[1] and was[2] == server then
  seq = tonumber(seq) + 1
else
  local last = count > 0 and redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1] or '0-0'
  local known = math.max(tonumber(epoch), tonumber(string.match(last, '^%d+')))
  epoch, seq = string.format('%.0f', math.max(now, known + 1)), 1
end
id = epoch .. '-' .. string.format('%.0f', seq)
local frames = ARGV[1] .. 'id: ' .. id .. '\n\n'
redis.call('XADD', KEYS[1], id, '1', frames, 'until', string.format('%.0f', now + ARGV[2]))
count, bytes = count + 1, bytes + #frames
while count > 1 do
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local over = tonumber(first[2][4]) <= now
  if not over and count <= tonumber(ARGV[3]) and bytes <= tonumber(ARGV[4]) then break end
  redis.call('XDEL', KEYS[1], first[1])
  count, bytes = count - 1, bytes - #first[2][2]
end
redis.call('HSET', KEYS[2], 'id', id, 'server', server, 'bytes', string.format('%.0f', bytes))
-- Longer than the log: who comes back after all has run out has missed nothing else.
redis.call('PEXPIRE', KEYS[2], 2592000000 + ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SET', KEYS[4], id .. ' ' .. ARGV[6], 'PX', ARGV[7])
return {1, id, unpack(watchers)}
