package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// fetcher answers asynq's fetches. asynq asks for one job at a time, queue by
// queue; the fetcher takes as many as there are free slots with one script call
// and answers the following fetches from memory, so that a busy worker does not
// wait a round trip for each job.
//
// It takes no more than the free slots: a job in its memory is about to start.
type fetcher struct {
	queues  []string // heaviest first
	weights []int
	strict  bool
	slots   int
	cluster bool // keys of several queues cannot meet in one call

	returned atomic.Int64 // handlers that came back
	acking   atomic.Int64 // acknowledgements under way: their slots are not free yet

	mu     sync.Mutex // owns the fields below; contended only at shutdown
	ready  []fetched
	handed int64     // jobs given to asynq
	last   time.Time // when the last one was
	credit []int     // smooth weighted round-robin
	empty  int       // calls of the current round that are known to find nothing
	closed bool
}

// fetched is a job that was taken and not yet handed to asynq.
type fetched struct{ queue, id, msg string }

func newFetcher(weights map[string]int, strict bool, slots int, cluster bool) *fetcher {
	f := &fetcher{strict: strict, slots: slots, cluster: cluster}
	for q := range weights {
		f.queues = append(f.queues, q)
	}
	slices.SortFunc(f.queues, func(a, b string) int {
		return cmp.Or(cmp.Compare(weights[b], weights[a]), cmp.Compare(a, b))
	})
	for _, q := range f.queues {
		f.weights = append(f.weights, weights[q])
	}
	f.credit = make([]int, len(f.queues))
	return f
}

// isFetch recognises asynq's fetch by the shape of its keys rather than by the
// hash of its script, which changes with every comment in it.
func isFetch(cmd redis.Cmder) bool {
	args := cmd.Args()
	if len(args) != 9 || (cmd.Name() != "evalsha" && cmd.Name() != "eval") || fmt.Sprint(args[2]) != "4" {
		return false
	}
	for i, suffix := range []string{"}:pending", "}:paused", "}:active", "}:lease"} {
		key, ok := args[3+i].(string)
		if !ok || !strings.HasPrefix(key, "asynq:{") || !strings.HasSuffix(key, suffix) {
			return false
		}
	}
	_, ok := cmd.(*redis.Cmd)
	return ok
}

// isAck recognises the scripts that end a job's activation: done, complete,
// retry, archive and requeue all name the queue's active list and lease set.
func isAck(cmd redis.Cmder) bool {
	if cmd.Name() != "evalsha" && cmd.Name() != "eval" {
		return false
	}
	var active, lease, paused bool
	for _, a := range cmd.Args()[2:] {
		if s, ok := a.(string); ok && strings.HasPrefix(s, "asynq:{") {
			active = active || strings.HasSuffix(s, "}:active")
			lease = lease || strings.HasSuffix(s, "}:lease")
			paused = paused || strings.HasSuffix(s, "}:paused") // a fetch
		}
	}
	return active && lease && !paused
}

// answer fills in the result of one fetch of asynq's. asynq asks for one queue
// after the other until it gets a job; the answer may be of any queue, for a job
// says itself where it belongs.
func (f *fetcher) answer(ctx context.Context, cmd *redis.Cmd, rdb redis.Scripter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.ready) == 0 && f.empty > 0 {
		f.empty--
		return nothing(cmd)
	}
	if len(f.ready) == 0 {
		if err := f.fill(ctx, rdb, cmd.Args()[7]); err != nil {
			cmd.SetErr(err)
			return err
		}
	}
	if len(f.ready) == 0 {
		f.empty = len(f.queues) - 1
		return nothing(cmd)
	}
	job := f.ready[0]
	f.ready = f.ready[1:]
	f.empty = 0
	f.handed++
	f.last = time.Now()
	cmd.SetVal(job.msg)
	return nil
}

func nothing(cmd *redis.Cmd) error {
	cmd.SetErr(redis.Nil)
	return redis.Nil
}

// fill takes jobs for the free slots, one at least: asynq holds a slot as it asks.
func (f *fetcher) fill(ctx context.Context, rdb redis.Scripter, lease any) error {
	if f.closed {
		return nil
	}
	want := f.free()
	picks, order := f.pick(want), f.order()
	if !f.cluster {
		return f.take(ctx, rdb, lease, f.queues, picks, order)
	}
	// One queue a call: first the shares, then whoever has more.
	share := make([]int, len(f.queues))
	for _, i := range picks {
		share[i]++
	}
	for round := range 2 {
		for _, i := range order {
			n := share[i]
			if round == 1 {
				n = want - len(f.ready)
			}
			if n <= 0 {
				continue
			}
			if err := f.take(ctx, rdb, lease, f.queues[i:i+1], make([]int, n), []int{0}); err != nil {
				if len(f.ready) > 0 {
					return nil // what was taken must run
				}
				return err
			}
		}
	}
	return nil
}

// settleAfter is how long after it was handed over a job has certainly begun.
const settleAfter = time.Second

// free counts the slots that asynq can fill at once, its own question included.
func (f *fetcher) free() int {
	returned := f.returned.Load()
	if busy := f.handed - returned; busy < 0 || busy > int64(f.slots) && time.Since(f.last) > settleAfter {
		// A job that asynq could not decode is handed over and never begins.
		f.handed = returned + min(max(busy, 0), int64(f.slots))
	}
	return max(1, f.slots-int(f.handed-returned)-int(f.acking.Load()))
}

// takeScript does to each job exactly what asynq's dequeueCmd does.
//
// KEYS: pending, paused, active, lease of each queue.
// ARGV: lease expiry, number of queues, task key prefix of each queue, the queue
// of each pick (from 1), the queues to turn to when a pick finds nothing.
// Returns queue, id and message of each.
var takeScript = redis.NewScript(`
local queues = tonumber(ARGV[2])
local first = 3 + queues
local picks = #ARGV - first - queues + 1
local open, out = {}, {}
for q = 1, queues do open[q] = redis.call("EXISTS", KEYS[4 * q - 2]) == 0 end
local function take(q)
	while open[q] do
		local k = 4 * q - 3
		local id = redis.call("RPOPLPUSH", KEYS[k], KEYS[k + 2])
		if not id then
			open[q] = false
			return false
		end
		local key = ARGV[2 + q] .. id
		redis.call("HSET", key, "state", "active")
		redis.call("HDEL", key, "pending_since")
		redis.call("ZADD", KEYS[k + 3], ARGV[1], id)
		local msg = redis.call("HGET", key, "msg")
		if msg then
			out[#out + 1] = q
			out[#out + 1] = id
			out[#out + 1] = msg
			return true
		end
	end
	return false
end
for i = first, first + picks - 1 do
	if not take(tonumber(ARGV[i])) then
		local found = false
		for j = first + picks, #ARGV do
			if take(tonumber(ARGV[j])) then found = true break end
		end
		if not found then break end
	end
end
return out`)

func (f *fetcher) take(ctx context.Context, rdb redis.Scripter, lease any, queues []string, picks, order []int) error {
	keys := make([]string, 0, 4*len(queues))
	args := make([]any, 0, 2+2*len(queues)+len(picks))
	args = append(args, lease, len(queues))
	for _, q := range queues {
		prefix := "asynq:{" + q + "}:"
		keys = append(keys, prefix+"pending", prefix+"paused", prefix+"active", prefix+"lease")
		args = append(args, prefix+"t:")
	}
	for _, i := range slices.Concat(picks, order) {
		args = append(args, i+1)
	}
	reply, err := takeScript.Run(ctx, rdb, keys, args...).Slice()
	if err != nil {
		return err
	}
	for r := range slices.Chunk(reply, 3) {
		if len(r) < 3 {
			return errors.New("fetch jobs: the script's answer is cut short")
		}
		q, _ := r[0].(int64)
		id, _ := r[1].(string)
		msg, _ := r[2].(string)
		if q < 1 || int(q) > len(queues) {
			return fmt.Errorf("fetch jobs: the script answered for queue %d of %d", q, len(queues))
		}
		f.ready = append(f.ready, fetched{queue: queues[q-1], id: id, msg: msg})
	}
	return nil
}

// pick spreads n slots over the queues: smooth weighted round-robin, which keeps
// the shares exact over any stretch of picks; strict order gives all to the
// heaviest, and the rest is the others' when it runs dry.
func (f *fetcher) pick(n int) []int {
	picks := make([]int, n)
	if f.strict || len(f.queues) == 1 {
		return picks
	}
	total := 0
	for _, w := range f.weights {
		total += w
	}
	for i := range picks {
		best := 0
		for q, w := range f.weights {
			f.credit[q] += w
			if f.credit[q] > f.credit[best] {
				best = q
			}
		}
		f.credit[best] -= total
		picks[i] = best
	}
	return picks
}

// order is where to turn when a pick's queue is empty: by weight at random, or
// strictly.
func (f *fetcher) order() []int {
	order := make([]int, len(f.queues))
	for i := range order {
		order[i] = i
	}
	if f.strict || len(order) == 1 {
		return order
	}
	// Weighted shuffle by exponential keys (Efraimidis and Spirakis, 2006).
	key := make([]float64, len(order))
	for i, w := range f.weights {
		key[i] = rand.ExpFloat64() / float64(w)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(key[a], key[b]) })
	return order
}

// handBackTimeout bounds the return of jobs that were taken and not started.
const handBackTimeout = 3 * time.Second

// handBackScript is asynq's requeueCmd: to the head of the queue, at no cost.
var handBackScript = redis.NewScript(`
if redis.call("LREM", KEYS[1], 0, ARGV[1]) == 0 then
  return redis.error_reply("NOT FOUND")
end
if redis.call("ZREM", KEYS[2], ARGV[1]) == 0 then
  return redis.error_reply("NOT FOUND")
end
redis.call("RPUSH", KEYS[3], ARGV[1])
redis.call("HSET", KEYS[4], "state", "pending")
return redis.status_reply("OK")`)

// close takes nothing more and returns what asynq has not started.
func (f *fetcher) close() []fetched {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	left := f.ready
	f.ready = nil
	return left
}

// handBack puts jobs back at the head of their queues, in their order.
func handBack(ctx context.Context, rdb redis.Scripter, jobs []fetched) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handBackTimeout)
	defer cancel()
	for _, job := range slices.Backward(jobs) {
		prefix := "asynq:{" + job.queue + "}:"
		if err := handBackScript.Run(ctx, rdb, []string{prefix + "active", prefix + "lease", prefix + "pending", prefix + "t:" + job.id}, job.id).Err(); err != nil {
			return fmt.Errorf("hand back a job that was not started: %w", err)
		}
	}
	return nil
}
