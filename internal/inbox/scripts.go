package inbox

import "github.com/redis/go-redis/v9"

// Every loop below runs over at most one user's entries (maxEntries) or the ids of one
// call (MaxRead). Ids of notifications are compared as text: they are UUIDs of version
// 7 in lower case, which sort by the time they were made.

// markLua moves an entry from the unread to the read ones.
const markLua = `
local function mark(id)
  if redis.call('ZREM', KEYS[2], id) == 0 then return false end
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local at = entry and redis.call('ZSCORE', KEYS[3], entry[2][2])
  if at then -- it was unread, so the half has not been added yet; the time to live stays
    redis.call('ZADD', KEYS[3], string.format('%.1f', at + 0.5), entry[2][2])
  end
  return true
end
`

// afterLua compares two ids of entries, whose parts are numbers.
const afterLua = `
local function after(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or am == bm and as > bs
end
`

// entriesLua appends id, notification, content and read (1 or 0) of each entry.
const entriesLua = `
local function append(reply, entries)
  if #entries == 0 then return end
  local unread = {}
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do unread[id] = true end
  for _, entry in ipairs(entries) do
    reply[#reply + 1] = entry[1]
    reply[#reply + 1] = entry[2][2]
    reply[#reply + 1] = entry[2][4]
    reply[#reply + 1] = unread[entry[1]] and 0 or 1
  end
end
local function last()
  local entry = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end
`

// KEYS: stream, unread, seen, collapse.
// ARGV: notification, content, user, channel, max entries, max age ms, max records,
// collapse (1 or 0). Returns {outcome, entry, unread, the entry it replaced or nothing}.
var deliverScript = redis.NewScript(`
local id, user, maxAge = ARGV[1], ARGV[3], tonumber(ARGV[6])
if redis.call('ZSCORE', KEYS[3], id) then return {'duplicate', '', redis.call('ZCARD', KEYS[2]), ''} end
local old
if ARGV[8] == '1' then
  local held = redis.call('HMGET', KEYS[4], 'newest', 'entry')
  if held[1] and held[1] > id then return {'superseded', '', redis.call('ZCARD', KEYS[2]), ''} end
  old = held[2]
end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local gone = string.format('%.0f', now - maxAge)
local tail = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev = tail and tail[1] or '0-0'

local function drop(entries)
  for _, entry in ipairs(entries) do
    redis.call('XDEL', KEYS[1], entry[1])
    redis.call('ZREM', KEYS[2], entry[1])
  end
end
local replaced = ''
if old and redis.call('ZREM', KEYS[2], old) == 1 then
  redis.call('XDEL', KEYS[1], old)
  replaced = old
end
drop(redis.call('XRANGE', KEYS[1], '-', gone))
local over = redis.call('XLEN', KEYS[1]) + 1 - ARGV[5]
if over > 0 then drop(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', over)) end

local entry = redis.call('XADD', KEYS[1], '*', 'n', id, 'c', ARGV[2])
redis.call('ZADD', KEYS[2], string.match(entry, '^%d+'), entry)
redis.call('ZADD', KEYS[3], string.format('%.0f', now), id)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', gone)
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -ARGV[7] - 1)
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], maxAge) end
if ARGV[8] == '1' then
  redis.call('HSET', KEYS[4], 'newest', id, 'entry', entry)
  redis.call('PEXPIRE', KEYS[4], math.max(redis.call('PTTL', KEYS[4]), maxAge))
end
local unread = redis.call('ZCARD', KEYS[2])
redis.call('PUBLISH', ARGV[4], '{"user":"' .. user .. '","id":"' .. entry .. '","prev":"' .. prev ..
  '","notification":"' .. id .. '","content":' .. ARGV[2] ..
  ',"replaces":"' .. replaced .. '","unread":' .. unread .. '}')
return {'accepted', entry, unread, replaced}`)

// KEYS: stream, unread, seen. ARGV: user, channel, ids. Returns unread.
var readScript = redis.NewScript(markLua + `
local read = {}
for i = 3, #ARGV do
  if mark(ARGV[i]) then read[#read + 1] = '"' .. ARGV[i] .. '"' end
end
local unread = redis.call('ZCARD', KEYS[2])
if #read > 0 then
  redis.call('PUBLISH', ARGV[2],
    '{"user":"' .. ARGV[1] .. '","read":[' .. table.concat(read, ',') .. '],"unread":' .. unread .. '}')
end
return unread`)

// KEYS: stream, unread, seen. ARGV: user, channel, up to. Returns unread.
var readAllScript = redis.NewScript(markLua + afterLua + `
local changed = false
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if not after(id, ARGV[3]) then changed = mark(id) or changed end
end
local unread = redis.call('ZCARD', KEYS[2])
if changed then
  redis.call('PUBLISH', ARGV[2],
    '{"user":"' .. ARGV[1] .. '","up_to":"' .. ARGV[3] .. '","unread":' .. unread .. '}')
end
return unread`)

// KEYS: stream, unread. ARGV: limit. Returns {gap, unread, last, entries…}.
var listScript = redis.NewScript(entriesLua + `
local reply = {0, redis.call('ZCARD', KEYS[2]), last()}
append(reply, redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1]))
return reply`)

// KEYS: stream, unread. ARGV: after. Returns {gap, unread, last, entries…}. Redis
// counts neither what XDEL removed nor what was lost in a failover, so the gap is found
// by looking: an id before the first entry was removed and others may have been with
// it, one behind the last is of a stream that is no more. 0-0 is who has seen nothing.
var sinceScript = redis.NewScript(entriesLua + afterLua + `
local from, newest = ARGV[1], last()
local reply = {0, redis.call('ZCARD', KEYS[2]), newest}
if from == newest then return reply end
if from ~= '0-0' then
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not first or after(first[1], from) or after(from, newest) then
    reply[1] = 1
    return reply
  end
end
append(reply, redis.call('XRANGE', KEYS[1], '(' .. from, '+'))
return reply`)

// KEYS: dedupe, collapse. ARGV: notification, dedupe for ms (0: none), keep ms (0: no
// collapse). Both are asked before either is taken: a superseded notification must not
// hold the dedupe key.
var claimScript = redis.NewScript(`
local id, dedupeFor, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local holder = dedupeFor > 0 and redis.call('GET', KEYS[1])
if holder and holder ~= id then return 'duplicate' end
if keep > 0 then
  local newest = redis.call('HGET', KEYS[2], 'newest')
  if newest and newest > id then return 'superseded' end
  redis.call('HSET', KEYS[2], 'newest', id)
  redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), keep))
end
if dedupeFor > 0 and not holder then redis.call('SET', KEYS[1], id, 'PX', dedupeFor) end
return 'accepted'`)
