package ratelimit

import "github.com/redis/go-redis/v9"

// Both scripts take KEYS[1] and limit, window in µs, n, burst, and return
// admitted (1 or 0), remaining, reset and retry in µs, and the server's time in
// µs. Times are whole numbers of microseconds, which a double holds exactly
// until the year 2255; '%.0f' because Lua would print 14 digits only.

const clock = `
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local limit, window, n, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local key = KEYS[1]
`

// A list of the times of the admitted calls, oldest first. A list of numbers
// takes 11 bytes an entry, a tenth of a sorted set, and is cut at its ends only.
const slidingWindowSource = clock + `
local function append(count)
  local entry = string.format('%.0f', now)
  while count > 0 do
    local part = {}
    for i = 1, math.min(count, 1000) do part[i] = entry end
    redis.call('RPUSH', key, unpack(part))
    count = count - #part
  end
end

-- Times after now: the clock was set back. They are counted as of now, which is
-- later than they really were.
local ahead = 0
local newest = redis.call('LINDEX', key, -1)
while newest and tonumber(newest) > now do
  redis.call('RPOP', key)
  ahead = ahead + 1
  newest = redis.call('LINDEX', key, -1)
end
append(ahead)

-- Times that no window ending now contains: a window is open at its old end.
local oldest = redis.call('LINDEX', key, 0)
while oldest and tonumber(oldest) <= now - window do
  local page = redis.call('LRANGE', key, 0, 99)
  local expired = 0
  while page[expired + 1] and tonumber(page[expired + 1]) <= now - window do expired = expired + 1 end
  redis.call('LTRIM', key, expired, -1)
  oldest = redis.call('LINDEX', key, 0)
end

local used = redis.call('LLEN', key)
local admitted, retry = 0, 0
if used + n <= limit then
  admitted = 1
  append(n)
  used = used + n
else
  -- the call fits when so many of the oldest have left
  retry = redis.call('LINDEX', key, used + n - limit - 1) + window - now
end
if admitted == 1 or ahead > 0 then
  redis.call('PEXPIRE', key, math.ceil(window / 1000) + 1)
end
local reset = redis.call('LINDEX', key, -1) + window - now
return {admitted, math.max(limit - used, 0), reset, retry, now}
`

// The theoretical arrival time: when the next call would be due if all came
// evenly spaced. A call may come early by what the burst allows. The spacing is
// rounded up, so that rounding never admits more.
const gcraSource = clock + `
local spacing = math.ceil(window / limit)
local tolerance = burst * spacing
local due = math.max(tonumber(redis.call('GET', key) or 0), now)
-- Further ahead than any admitted call puts it: the clock was set back.
local ahead = due > now + tolerance
if ahead then due = now + tolerance end

local admitted, retry = 0, 0
local after = due + n * spacing
if after - tolerance <= now then
  admitted = 1
  due = after
else
  retry = after - tolerance - now
end
if admitted == 1 or ahead then
  redis.call('SET', key, string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1)
end
return {admitted, math.floor((tolerance - (due - now)) / spacing), due - now, retry, now}
`

func slidingWindow() *redis.Script { return redis.NewScript(slidingWindowSource) }

func gcra() *redis.Script { return redis.NewScript(gcraSource) }
