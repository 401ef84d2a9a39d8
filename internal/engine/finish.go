package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/wake"
)

// An ending is one of asynq's calls, taken apart.
type ending struct {
	kind   call
	job    job
	day    string // of the statistics
	expiry any    // of the statistics
	score  any    // of the completed or the retry set
	msg    any
	failed bool // the attempt counts

	err  error
	done chan struct{}
}

// newEnding takes cmd apart; its shape has been recognised.
func newEnding(c call, cmd redis.Cmder) (*ending, error) {
	keys, args, _ := parts(cmd)
	id, ok := args[0].(string)
	if !ok {
		return nil, errors.New("finish a job: its id is not a string")
	}
	e := &ending{kind: c, job: job{id: id}, done: make(chan struct{})}
	var day any
	switch c {
	case doneCall:
		e.expiry, day = args[1], keys[3]
	case completeCall:
		e.expiry, e.score, e.msg, day = args[1], args[2], args[3], keys[4]
	case retryCall:
		e.msg, e.score, e.expiry, day = args[1], args[2], args[3], keys[4]
		e.failed, _ = args[4].(bool)
	default:
		return nil, fmt.Errorf("finish a job: call %d is not an end", c)
	}
	e.day, _ = day.(string)
	e.job.queue = queueOf(e.day)
	return e, nil
}

func byQueue(batch []*ending) [][]*ending {
	var groups [][]*ending
	index := map[string]int{}
	for _, e := range batch {
		i, ok := index[e.job.queue]
		if !ok {
			i = len(groups)
			index[e.job.queue] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], e)
	}
	return groups
}

// finishScript ends many jobs: to each it does what asynq's doneCmd,
// markAsCompleteCmd or retryCmd does.
//
// KEYS, for each queue and day: active, lease, completed, retry, processed,
// failed, processed on the day, failed on the day, pending, gate, wake marker.
// ARGV: number of queues and days, the highest value of a counter; for each of
// them the task key prefix and the expiry of its statistics; for each job its
// queue and day (from 1), id and kind, and but for kind done, the score of its set
// and its message. Kinds are done, complete, retry, and failed: a retry that
// counts.
// Returns OK, NOT FOUND, INTERNAL or an error of Redis for each job.
//
// asynq looks for the id in the whole active list; here the search ends where it
// is found, and begins with the oldest.
var finishScript = redis.NewScript(wake.Lua + `
local out, processed, failed = {}, {}, {}
local groups = tonumber(ARGV[1])
for g = 1, groups do processed[g], failed[g] = 0, 0 end
-- A key of the wrong type is one job's misfortune, and not the batch's.
local function store(key, msg, state)
	local reply = redis.pcall("HSET", key, "msg", msg, "state", state)
	return type(reply) == "table" and reply.err or "OK"
end
local i = 2 * groups + 3
while i <= #ARGV do
	local g, id, kind, score, msg = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
	i = i + (kind == "done" and 3 or 5)
	local k, status = 11 * (g - 1), "OK"
	if redis.call("LREM", KEYS[k + 1], -1, id) == 0 or redis.call("ZREM", KEYS[k + 2], id) == 0 then
		status = "NOT FOUND"
	else
		local key = ARGV[2 * g + 1] .. id
		if kind == "done" then
			if redis.call("DEL", key) == 0 then
				status = "NOT FOUND"
			else
				processed[g] = processed[g] + 1
			end
		elseif kind == "complete" then
			if redis.call("ZADD", KEYS[k + 3], score, id) ~= 1 then
				status = "INTERNAL"
			else
				status = store(key, msg, "completed")
				if status == "OK" then processed[g] = processed[g] + 1 end
			end
		else
			redis.call("ZADD", KEYS[k + 4], score, id)
			status = store(key, msg, "retry")
			if status == "OK" and kind == "failed" then
				processed[g] = processed[g] + 1
				failed[g] = failed[g] + 1
			end
		end
	end
	out[#out + 1] = status
end
local function count(key, n, expiry)
	if redis.call("INCRBY", key, n) == n then redis.call("EXPIREAT", key, expiry) end
end
for g = 1, groups do
	local k, p, f = 11 * (g - 1), processed[g], failed[g]
	if p > 0 then count(KEYS[k + 7], p, ARGV[2 * g + 2]) end
	if f > 0 then count(KEYS[k + 8], f, ARGV[2 * g + 2]) end
	-- asynq starts both totals anew when the number of processed jobs is full.
	local total = p > 0 and tonumber(redis.call("GET", KEYS[k + 5]) or 0)
	if p > 0 and total + p <= tonumber(ARGV[2]) - 4096 then
		redis.call("INCRBY", KEYS[k + 5], p)
		if f > 0 then redis.call("INCRBY", KEYS[k + 6], f) end
	else
		for n = 1, p do
			local fails = n > p - f
			if tonumber(redis.call("GET", KEYS[k + 5]) or 0) == tonumber(ARGV[2]) then
				redis.call("SET", KEYS[k + 5], 1)
				if fails then redis.call("SET", KEYS[k + 6], 1) end
			else
				redis.call("INCR", KEYS[k + 5])
				if fails then redis.call("INCR", KEYS[k + 6]) end
			end
		end
	end
	-- The next job of a queue with a limit can start now, on any worker.
	if redis.call("HEXISTS", KEYS[k + 10], "concurrency") == 1 and redis.call("EXISTS", KEYS[k + 9]) == 1 then
		wake(KEYS[k + 11])
	end
end
return out`)

// finishing returns the call that ends the jobs of batch.
func finishing(batch []*ending) scriptCall {
	type group struct{ queue, day string }
	index := map[group]int{}
	var keys []string
	heads := make([]any, 0, 8)
	items := make([]any, 0, 5*len(batch))
	for _, e := range batch {
		g := group{e.job.queue, e.day}
		i, ok := index[g]
		if !ok {
			i = len(index) + 1
			index[g] = i
			p := prefixOf(g.queue)
			// asynq's day key is …:processed:2026-01-31.
			day := g.day[len(p+"processed"):]
			keys = append(keys, p+"active", p+"lease", p+"completed", p+"retry", p+"processed", p+"failed",
				g.day, p+"failed"+day, p+"pending", gateKey(g.queue), wake.Key(g.queue))
			heads = append(heads, p+"t:", e.expiry)
		}
		items = append(items, i, e.job.id)
		switch {
		case e.kind == doneCall:
			items = append(items, "done")
		case e.kind == completeCall:
			items = append(items, "complete", e.score, e.msg)
		case e.failed:
			items = append(items, "failed", e.score, e.msg)
		default:
			items = append(items, "retry", e.score, e.msg)
		}
	}
	args := append([]any{len(index), maxCount}, heads...)
	return scriptCall{finishScript, keys, append(args, items...)}
}

// finishByQueue ends the jobs of batch with a call for each queue: on a cluster
// their keys cannot meet.
func finishByQueue(ctx context.Context, rdb redis.Scripter, batch []*ending) {
	for _, group := range byQueue(batch) {
		settle(group, finishing(group).run(ctx, rdb))
	}
}

// settle tells each ending what became of it.
func settle(batch []*ending, cmd *redis.Cmd) {
	reply, err := cmd.StringSlice()
	if err == nil && len(reply) != len(batch) {
		err = fmt.Errorf("finish jobs: %w", errCutShort)
	}
	for i, e := range batch {
		switch {
		case err != nil:
			e.err = err
		case reply[i] != "OK":
			e.err = scriptError(reply[i])
		}
	}
}

// maxCount is where asynq starts its totals anew.
const maxCount = int64(1<<63 - 1)

// scriptError is an error that asynq's script answers with.
type scriptError string

func (e scriptError) Error() string { return string(e) }

// RedisError marks e as an answer, as go-redis marks its own.
func (scriptError) RedisError() {}
