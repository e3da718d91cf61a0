-- Reads a log from a position on, as far as a number of bytes goes, but one entry at least: how
-- large an entry is, nobody knows before.
-- KEYS: 1 log, 2 the same once it was packed
-- ARGV: 1 position, '' for the start, 2 bytes, 3 bytes that count for each entry beside its own
-- Of a pack, what it holds counts, which is that of one page at most.
-- Returns {entries, 0}, or {entries, 1, the log's last two entries, the former without frames} if
-- there may be more. First, without frames, comes the last entry that is not after the position, if
-- there is one: it tells whether the log knows the position. Of a message that has run out only the
-- id is told.
local now
local function shown(each)
  if each[2][3] ~= 'until' then return each end
  if not now then
    local t = redis.call('TIME')
    now = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  if tonumber(each[2][4]) <= now then each[2][2] = '' end
  return each
end
local log = redis.call('EXISTS', KEYS[1]) == 1 and KEYS[1] or KEYS[2]
local limit, extra = tonumber(ARGV[2]), tonumber(ARGV[3])
local entries, size, from, count = {}, 0, '-', 1
if ARGV[1] ~= '' then
  local at = redis.call('XREVRANGE', log, ARGV[1], '-', 'COUNT', 1)[1]
  if at then
    at[2][2] = ''
    entries[1], from = at, '(' .. at[1]
  end
end
while size < limit do
  local batch = redis.call('XRANGE', log, from, '+', 'COUNT', count)
  local before, taken = size, 0
  for _, each in ipairs(batch) do
    if size >= limit then break end
    local held = each[2][3] == 'size' and tonumber(each[2][4])
    if held and size > 0 and size + held > limit then break end
    entries[#entries + 1] = shown(each)
    size, taken = size + (held or #each[2][2] + extra), taken + 1
  end
  if taken == #batch and taken < count then return {entries, 0} end
  if taken < #batch then break end
  from = '(' .. entries[#entries][1]
  -- As many as will fit if they are like these, but few: they are all in memory for a moment.
  count = math.max(1, math.min(16, math.floor((limit - size) * taken / (size - before))))
end
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 2)
shown(last[1])
if last[2] then last[2][2][2] = '' end
return {entries, 1, last}
