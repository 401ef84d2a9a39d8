package engine

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/wake"
)

// finding is what a look at the delayed jobs found.
type finding struct {
	due     time.Duration // until the next delayed job that is ours to forward; negative: none
	waiting bool          // a queue has pending jobs
}

// claimKey holds the due time, in Unix milliseconds, of the job that one process
// of the fleet has undertaken to forward, and the name of that process, so that
// not all of them come at once.
func claimKey(queue string) string { return wake.DueKey(queue) + ":claim" }

// maxForward bounds the jobs that one call moves out of one set; asynq's bound.
const maxForward = 100

// forwardScript moves the delayed jobs that are due into their queues: to each job
// it does what asynq's forwardCmd does. It goes by Redis' clock.
//
// asynq's due times are whole seconds; a job that is due within a second has its
// true time in a set beside, and is moved at that time if it still waits for it.
//
// KEYS, for each queue: scheduled, retry, pending, due, claim, wake marker.
// ARGV: number of queues, the most jobs, the horizon of claims in ms, the name of
// the caller; for each queue the task key prefix and the group key prefix.
// Returns the ms until the next due job that the caller is to forward (-1: none)
// and whether a queue has pending jobs.
var forwardScript = redis.NewScript(wake.Lua + `
local seconds, micros = unpack(redis.call("TIME"))
local now = seconds * 1000 + math.floor(micros / 1000)
local nanos = seconds .. string.format("%06d000", micros)
local queues, most, horizon, caller = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wait, waiting = -1, 0
local function sooner(ms)
	if wait < 0 or ms < wait then wait = ms end
end
for q = 1, queues do
	local k, prefix, groups = 6 * (q - 1), ARGV[2 * q + 3], ARGV[2 * q + 4]
	local moved = false
	local function move(source, id)
		local key = prefix .. id
		local group = redis.pcall("HGET", key, "group")
		if type(group) == "table" then return end -- damaged: it must not stop the others
		if group and group ~= "" then
			redis.call("ZADD", groups .. group, seconds, id)
			redis.call("ZREM", source, id)
			redis.call("HSET", key, "state", "aggregating")
		else
			redis.call("LPUSH", KEYS[k + 3], id)
			redis.call("ZREM", source, id)
			redis.call("HSET", key, "state", "pending", "pending_since", nanos)
			moved = true
		end
	end
	local exact = redis.call("ZRANGEBYSCORE", KEYS[k + 4], "-inf", now, "WITHSCORES", "LIMIT", 0, most)
	for i = 1, #exact, 2 do
		redis.call("ZREM", KEYS[k + 4], exact[i])
		local score = redis.call("ZSCORE", KEYS[k + 1], exact[i])
		if score and tonumber(score) == math.ceil(tonumber(exact[i + 1]) / 1000) then move(KEYS[k + 1], exact[i]) end
	end
	for source = 1, 2 do
		local ids = redis.call("ZRANGEBYSCORE", KEYS[k + source], "-inf", seconds, "LIMIT", 0, most)
		for _, id in ipairs(ids) do move(KEYS[k + source], id) end
		if #ids == most then sooner(0) end
	end
	if #exact == 2 * most then sooner(0) end
	if moved then wake(KEYS[k + 6]) end
	if redis.call("EXISTS", KEYS[k + 3]) == 1 then waiting = 1 end

	local due
	for i, scale in pairs({[1] = 1000, [2] = 1000, [4] = 1}) do
		local first = redis.call("ZRANGE", KEYS[k + i], 0, 0, "WITHSCORES")
		if first[2] and (not due or first[2] * scale < due) then due = first[2] * scale end
	end
	if due and due > now and due - now <= horizon then
		local at, owner = string.match(redis.call("GET", KEYS[k + 5]) or "", "^(%d+) (.*)$")
		if tonumber(at) ~= due then -- a claim of another time is out of date
			owner = caller
			redis.call("SET", KEYS[k + 5], string.format("%.0f %s", due, caller), "PX", due - now + 250)
		end
		if owner == caller then sooner(due - now) end
	end
end
return {wait, waiting}`)

// forward moves due jobs and says when the next is due.
func (w *watcher) forward(ctx context.Context) (finding, error) {
	if !w.cluster {
		return w.forwardIn(ctx, w.queues)
	}
	all := finding{due: -1}
	for i := range w.queues {
		found, err := w.forwardIn(ctx, w.queues[i:i+1])
		if err != nil {
			return all, err
		}
		if found.due >= 0 && (all.due < 0 || found.due < all.due) {
			all.due = found.due
		}
		all.waiting = all.waiting || found.waiting
	}
	return all, nil
}

func (w *watcher) forwardIn(ctx context.Context, queues []queue) (finding, error) {
	keys := make([]string, 0, 6*len(queues))
	args := []any{len(queues), maxForward, wake.Horizon.Milliseconds(), w.name}
	for _, q := range queues {
		p := prefixOf(q.name)
		keys = append(keys, p+"scheduled", p+"retry", p+"pending", wake.DueKey(q.name), claimKey(q.name), wake.Key(q.name))
		args = append(args, p+"t:", p+"g:")
	}
	reply, err := forwardScript.Run(ctx, w.rdb, keys, args...).Int64Slice()
	if err != nil {
		return finding{due: -1}, err
	}
	if len(reply) != 2 {
		return finding{due: -1}, errors.New("forward delayed jobs: the script's answer is cut short")
	}
	found := finding{due: -1, waiting: reply[1] == 1}
	if reply[0] >= 0 {
		// Redis' answer is cut off to the millisecond: too early would be in vain.
		found.due = time.Duration(reply[0]+1) * time.Millisecond
	}
	return found, nil
}
