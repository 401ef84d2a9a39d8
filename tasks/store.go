package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/wake"
)

// deliver settles jobs, in as few round trips as there are phases: claim the
// idempotency keys, enqueue, confirm the keys.
func (p *Producer) deliver(ctx context.Context, jobs []*job) {
	var keyed []*job
	for _, j := range jobs {
		if j.key != "" {
			keyed = append(keyed, j)
		}
	}
	p.claim(ctx, keyed)
	if taken := p.enqueue(ctx, jobs); len(taken) > 0 {
		p.resolve(ctx, jobs, taken)
	}
	p.confirm(ctx, keyed)
}

// enqueueMany does for each of many jobs of one queue exactly what asynq's own
// enqueue and schedule scripts do, in their order: with one EXISTS for all that are
// new, and one LPUSH for all that may run at once. Then it wakes a worker.
//
// KEYS: the queue's pending and scheduled jobs, its marker, its marker for
// delayed jobs, its exact due times; then the key of each job.
// ARGV: the horizon of wake.Horizon in milliseconds; then for each job the
// message, the id, the time as asynq notes it, and the due time in Unix
// milliseconds, which is empty for a job that may run at once.
//
// It returns the positions, from 0, of the jobs whose id was taken: those were
// left alone.
var enqueueMany = redis.NewScript(enqueueManyLua)

const enqueueManyLua = wake.Lua + `
local call, KEYS, ARGV = redis.call, KEYS, ARGV
local taken, ready, seen, soonest = {}, {}, {}, nil
local fresh = call("EXISTS", unpack(KEYS, 6)) == 0
for i = 6, #KEYS do
	local a, key = 4 * (i - 6) + 1, KEYS[i]
	local id, at, due = ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
	if seen[key] or not fresh and call("EXISTS", key) == 1 then
		taken[#taken + 1] = i - 6
	elseif due == "" then
		seen[key] = true
		call("HSET", key, "msg", ARGV[a + 1], "state", "pending", "pending_since", at)
		ready[#ready + 1] = id
	else
		seen[key] = true
		call("HSET", key, "msg", ARGV[a + 1], "state", "scheduled")
		call("ZADD", KEYS[2], at, id)
		due = tonumber(due)
		if due % 1000 ~= 0 then
			call("ZADD", KEYS[5], due, id)
		end
		if not soonest or due < soonest then
			soonest = due
		end
	end
end
if #ready > 0 then
	call("LPUSH", KEYS[1], unpack(ready))
	wake(KEYS[3])
end
if soonest then
	local now = call("TIME")
	if soonest <= now[1] * 1000 + now[2] / 1000 + ARGV[1] then
		wake(KEYS[4])
	end
end
return taken
`

// A group is the jobs of a batch that go into one queue, by one script call: on a
// cluster, queues live apart.
type group struct {
	queue string
	jobs  []*job
	cmd   *redis.Cmd
}

// enqueue puts the jobs that are not settled into Redis, in their order, and
// returns those whose id was taken by a job that was there before. The others are
// settled.
func (p *Producer) enqueue(ctx context.Context, jobs []*job) (taken []*job) {
	p.announce(ctx, jobs)
	var groups []*group
	for _, j := range jobs {
		switch {
		case j.settled:
			continue
		case ctx.Err() != nil:
			j.refuse(ctx.Err())
			continue
		case !j.fate.CompareAndSwap(fateOpen, fateSent):
			j.refuse(context.Canceled) // withdrawn: nobody asks for the result
			continue
		case j.frame == nil:
			if p.enqueueByAsynq(ctx, j) {
				taken = append(taken, j)
			}
			continue
		}
		g := (*group)(nil)
		for _, known := range groups {
			if known.queue == j.queue {
				g = known
			}
		}
		if g == nil {
			g = &group{queue: j.queue}
			groups = append(groups, g)
		}
		g.jobs = append(g.jobs, j)
	}
	if len(groups) > 0 {
		p.send(ctx, groups)
	}
	for _, g := range groups {
		taken = append(taken, g.settle()...)
	}
	return taken
}

// send runs the script for each group, for several in one round trip.
func (p *Producer) send(ctx context.Context, groups []*group) {
	if len(groups) == 1 {
		keys, args := groups[0].call()
		groups[0].cmd = enqueueMany.Run(ctx, p.rdb, keys, args...)
		return
	}
	pipe := p.rdb.Pipeline()
	for _, g := range groups {
		keys, args := g.call()
		g.cmd = enqueueMany.EvalSha(ctx, pipe, keys, args...)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for _, g := range groups {
		if redis.HasErrorPrefix(g.cmd.Err(), "NOSCRIPT") {
			keys, args := g.call()
			g.cmd = enqueueMany.Eval(ctx, p.rdb, keys, args...)
		}
	}
}

// call returns the keys and arguments of the script.
func (g *group) call() (keys []string, args []any) {
	prefix := "asynq:{" + g.queue + "}:"
	keys = append(make([]string, 0, 5+len(g.jobs)),
		prefix+"pending", prefix+"scheduled", wake.Key(g.queue), wake.DelayedKey(g.queue), wake.DueKey(g.queue))
	args = append(make([]any, 0, 1+4*len(g.jobs)), wake.Horizon.Milliseconds())
	for _, j := range g.jobs {
		keys = append(keys, j.frame.taskKey+j.id)
		if j.delayed() {
			due := ceilMilli(j.processAt)
			args = append(args, j.msg, j.id, (due+999)/1000, due)
		} else {
			args = append(args, j.msg, j.id, j.enqueuedAt.UnixNano(), "")
		}
	}
	return keys, args
}

// settle gives each job of g its part of the answer, and returns those whose id
// was taken.
func (g *group) settle() (taken []*job) {
	positions, err := g.cmd.Int64Slice()
	if err != nil {
		err = doubted(err)
		for _, j := range g.jobs {
			j.refuse(err)
		}
		return nil
	}
	for _, i := range positions {
		if i < 0 || i >= int64(len(g.jobs)) {
			continue
		}
		taken = append(taken, g.jobs[i])
	}
	next := 0
	for i, j := range g.jobs {
		if next < len(positions) && positions[next] == int64(i) {
			next++
			continue
		}
		j.accept(j.receipt())
	}
	return taken
}

// doubted wraps an error of a call that enqueues: only an answer of Redis tells
// that nothing was enqueued.
func doubted(err error) error {
	if _, refused := errors.AsType[redis.Error](err); refused {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
}

// enqueueByAsynq lets asynq send j, and reports whether j's id was taken.
func (p *Producer) enqueueByAsynq(ctx context.Context, j *job) (taken bool) {
	task, opts := j.task()
	var seen observation
	_, err := p.client.EnqueueContext(context.WithValue(ctx, observationKey{}, &seen), task, opts...)
	switch {
	case err == nil:
		j.accept(j.receipt())
	case errors.Is(err, asynq.ErrTaskIDConflict):
		return true
	case seen.err == nil:
		j.refuse(err)
	default:
		j.refuse(doubted(seen.err))
	}
	return false
}

// An observation holds the error of asynq's script as go-redis returned it: asynq
// keeps only its text, which does not tell a refusal from a lost answer.
type observation struct{ err error }

type observationKey struct{}

// observedClient notes the outcome of scripts for calls that carry an
// observation.
type observedClient struct{ redis.UniversalClient }

func (c observedClient) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return observe(ctx, c.UniversalClient.EvalSha(ctx, sha, keys, args...))
}

func (c observedClient) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return observe(ctx, c.UniversalClient.Eval(ctx, script, keys, args...))
}

func observe(ctx context.Context, cmd *redis.Cmd) *redis.Cmd {
	if seen, ok := ctx.Value(observationKey{}).(*observation); ok {
		seen.err = cmd.Err()
	}
	return cmd
}

// republish is how often a producer announces a queue that it uses. asynq does
// it once in a client's life, so that a queue stays invisible to dashboards
// after a flush or a failover that lost the announcement.
const republish = 30 * time.Second

// announce adds the queues of jobs to the set of all queues if that was long ago.
// Where it fails, the queue's jobs are refused.
func (p *Producer) announce(ctx context.Context, jobs []*job) {
	now := p.now()
	var due []any
	p.mu.Lock()
	last := ""
	for _, j := range jobs {
		if j.settled || j.queue == last {
			continue
		}
		last = j.queue
		if at, known := p.announced[j.queue]; !known || now.Sub(at) >= republish {
			p.announced[j.queue] = now
			due = append(due, j.queue)
		}
	}
	p.mu.Unlock()
	if len(due) == 0 {
		return
	}
	err := p.rdb.SAdd(ctx, "asynq:queues", due...).Err()
	if err == nil {
		return
	}
	err = fmt.Errorf("announce queue: %w", err)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, queue := range due {
		delete(p.announced, queue.(string))
		for _, j := range jobs {
			if !j.settled && j.queue == queue {
				j.refuse(err)
			}
		}
	}
}
