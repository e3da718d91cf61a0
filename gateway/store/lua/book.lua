-- Books what an ended stream took, once: the same command again, or another end that a replica wrote
-- for it, finds it booked.
-- KEYS: 1 what was booked lately, 2 what was spent today, 3... usage of a day, one for each day on
--       which it may have ended
-- ARGV: 1 stream, 2 when it was made, 3 for how long it is known as booked (ms), 4 TTL of a day's
--       usage (ms), 5 preset, 6 model, 7 tokens of prompts, 8 completions, 9 caches, 10 estimated,
--       11 cost (billionths), 12 the first of these days since 1970
-- Returns {1}, {0} if it was booked before, {-1, why} if it cannot be: a stream must end all the same
local KINDS = {'prompt', 'completion', 'cached', 'estimated', 'cost'}
local ROWS = 200 * 6  -- Fields of a day: whoever makes up models must not fill Redis with them.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A key of another kind, whoever wrote it, would take no booking ever.
for i, key in ipairs(KEYS) do
  if type(redis.pcall(i == 1 and 'ZCARD' or 'HLEN', key)) == 'table' then redis.call('DEL', key) end
end
local keep, born = tonumber(ARGV[3]), ARGV[1] .. ':' .. ARGV[2]
if redis.call('ZSCORE', KEYS[1], born) then return {0} end
-- A Redis that is full, or may not write, says so here: then it is not booked yet.
redis.call('ZADD', KEYS[1], string.format('%.0f', now), born)
local function book()
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - keep))
  redis.call('PEXPIRE', KEYS[1], keep)
  local today = math.floor(now / 86400000)
  local nth = math.max(0, math.min(#KEYS - 3, today - tonumber(ARGV[12])))
  local usage, preset, model = KEYS[3 + nth], ARGV[5], ARGV[6]
  local function row(kind) return preset .. '\n' .. model .. '\n' .. kind end
  if redis.call('HLEN', usage) >= ROWS and redis.call('HEXISTS', usage, row('streams')) == 0 then
    model = '*'
  end
  redis.call('HINCRBY', usage, row('streams'), 1)
  for i, kind in ipairs(KINDS) do
    if ARGV[6 + i] ~= '0' then redis.call('HINCRBY', usage, row(kind), ARGV[6 + i]) end
  end
  redis.call('PEXPIRE', usage, ARGV[4])
  local tokens = string.format('%.0f', tonumber(ARGV[7]) + tonumber(ARGV[8]))
  if redis.call('HGET', KEYS[2], 'day') ~= tostring(today) then
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[2], 'day', today)
  end
  for name, amount in pairs({tokens = tokens, cost = ARGV[11]}) do
    if amount ~= '0' then
      redis.call('HINCRBY', KEYS[2], name, amount)
      redis.call('HINCRBY', KEYS[2], name .. '\n' .. preset, amount)
    end
  end
  redis.call('PEXPIRE', KEYS[2], 2 * 86400000)
  return {1}
end
local sound, reply = pcall(book)
if sound then return reply end
return {-1, type(reply) == 'table' and reply.err or tostring(reply)}
