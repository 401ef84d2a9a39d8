package engine

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/wake"
)

// fetcher knows what to take: which queues, how many jobs of each, and where to
// turn when one is empty.
type fetcher struct {
	queues   []queue // heaviest first
	strict   bool
	cluster  bool // keys of several queues cannot meet in one call
	reserved int  // slots that only the heaviest queues may use
	slots    *slots
	admit    func(queue string) (n int, again time.Duration)

	credit []int // smooth weighted round-robin; the pump's goroutine owns it
}

// queue is what a server knows of one of its queues.
type queue struct {
	name   string
	weight int
	limit  int  // jobs that this process runs at once
	rest   bool // may not use the reserved slots
}

// fetched is a job that was taken and not yet handed to asynq.
type fetched struct {
	job

	msg string
}

func newFetcher(cfg Config, s *slots, cluster bool) *fetcher {
	f := &fetcher{strict: cfg.StrictPriority, cluster: cluster, slots: s, admit: cfg.Admit}
	heaviest, lightest := 0, math.MaxInt
	for name, weight := range cfg.Queues {
		limit := s.total
		if n := cfg.Limits[name]; n > 0 {
			limit = min(n, limit)
		}
		f.queues = append(f.queues, queue{name: name, weight: weight, limit: limit})
		heaviest, lightest = max(heaviest, weight), min(lightest, weight)
	}
	slices.SortFunc(f.queues, func(a, b queue) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
	if heaviest > lightest && s.total > 1 {
		f.reserved = (s.total + reservedShare - 1) / reservedShare
		for i := range f.queues {
			f.queues[i].rest = f.queues[i].weight < heaviest
		}
	}
	f.credit = make([]int, len(f.queues))
	return f
}

// reservedShare is the part of the slots, one in so many and at least one, that
// is kept for the heaviest queues: a one-time code must not wait until one of
// many slow bulk mails is through.
const reservedShare = 10

// open returns the number of jobs that may be taken from q: that this process has
// slots for and that admit lets through. When admit lets none through it says in
// how long to ask again.
func (f *fetcher) open(q queue) (n int, again time.Duration) {
	n = q.limit - f.slots.running(q.name)
	if q.rest {
		n = min(n, f.roomForRest())
	}
	if n > 0 && f.admit != nil {
		admitted, in := f.admit(q.name)
		if admitted < n {
			n, again = admitted, in
		}
	}
	return max(0, n), again
}

// roomForRest is the number of jobs that may be taken from all queues that may
// not use the reserved slots.
func (f *fetcher) roomForRest() int {
	n := f.slots.total - f.reserved
	for _, q := range f.queues {
		if q.rest {
			n -= f.slots.running(q.name)
		}
	}
	return max(0, n)
}

// plan decides what to take for want free slots. If admit keeps a queue closed it
// says when to ask again.
func (f *fetcher) plan(want int, lease int64, woken bool) (t taking, again time.Time) {
	t = taking{lease: lease, want: want, rest: f.roomForRest(), woken: woken, share: f.shares(want), order: f.order()}
	for _, q := range f.queues {
		n, in := f.open(q)
		t.room = append(t.room, n)
		again = earliest(again, opens(in))
	}
	return t, again
}

// opens returns when to ask the gate again; zero: it does not say. The time is
// stretched at random, so that the replicas that wait for the same moment do not
// meet there.
func opens(in time.Duration) time.Time {
	if in <= 0 {
		return time.Time{}
	}
	return time.Now().Add(in + rand.N(in/4+time.Millisecond))
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// taking is what to take.
type taking struct {
	lease int64
	want  int   // jobs in all
	rest  int   // jobs of queues that may not use the reserved slots
	woken bool  // set the marker again if jobs are left behind
	share []int // jobs of each queue
	room  []int // the most of each queue
	order []int // the queues to turn to for what the shares leave
}

// open is whether there is a queue to take from.
func (t taking) open() bool { return slices.ContainsFunc(t.room, func(n int) bool { return n > 0 }) }

// found is what was taken.
type found struct {
	jobs  []fetched
	held  bool      // jobs were left behind that a slot of their queue could take
	opens time.Time // when the gate may open; zero: it does not say
}

// takeByQueue takes one queue a call: first the shares, then whoever has more.
func (f *fetcher) takeByQueue(ctx context.Context, rdb redis.Scripter, t taking) (all found, err error) {
	short := make([]bool, len(f.queues))
	for round := range 2 {
		for _, i := range t.order {
			n := min(t.want-len(all.jobs), t.room[i])
			if f.queues[i].rest {
				n = min(n, t.rest)
			}
			if round == 0 {
				n = min(n, t.share[i])
			}
			// The last call of a woken worker may take nothing and set the marker.
			last := round == 1 && t.woken
			if short[i] || n <= 0 && !last {
				continue
			}
			one := taking{lease: t.lease, want: n, rest: t.rest, woken: last, share: []int{n}, room: t.room[i : i+1], order: []int{0}}
			some, err := f.read(one.call(f.queues[i:i+1]).run(ctx, rdb), f.queues[i:i+1])
			if err != nil {
				return all, err
			}
			got := len(some.jobs)
			short[i] = got < n
			t.room[i] -= got
			if f.queues[i].rest {
				t.rest -= got
			}
			all.jobs = append(all.jobs, some.jobs...)
			all.held = all.held || some.held
			all.opens = earliest(all.opens, some.opens)
		}
	}
	return all, nil
}

// takeScript does to each job exactly what asynq's dequeueCmd does, and asks the
// gate first.
//
// KEYS, for each queue: pending, paused, active, lease, gate, wake marker.
// ARGV: lease expiry, number of queues, whether to set the marker of a queue in
// which jobs are left, number of jobs, number of jobs of queues without reserved
// slots; for each queue the task key prefix, its share, the most that may be
// taken, whether it has no reserved slots; the queues to turn to for what the
// shares leave.
// Returns whether jobs were left behind that wait for a slot of their queue, in
// how many ms the gate may open (-1: it does not say), and queue, id and message
// of each job.
//
// The bucket of a rate holds at most burst tokens and fills with rate tokens a
// second, by Redis' clock.
var takeScript = redis.NewScript(wake.Lua + `
local queues, woken, want, rest = tonumber(ARGV[2]), ARGV[3] == "1", tonumber(ARGV[4]), tonumber(ARGV[5])
local out = {0, -1}
local admitted, refused, dry, bucket, spent, opens, got = {}, {}, {}, {}, {}, {}, 0
local now
local function clock()
	if not now then
		local t = redis.call("TIME")
		now = t[1] * 1000 + math.floor(t[2] / 1000)
	end
	return now
end
local function arg(q, i) return ARGV[5 + 4 * (q - 1) + i] end
local function gate(q)
	local k = 6 * (q - 1)
	if redis.call("EXISTS", KEYS[k + 2]) == 1 then
		opens[q] = redis.call("PTTL", KEYS[k + 2])
		return 0
	end
	local n = math.huge
	local g = redis.call("HMGET", KEYS[k + 5], "concurrency", "rate", "burst", "tokens", "at")
	local most = tonumber(g[1] or "")
	if most then
		n = math.max(0, most - redis.call("ZCOUNT", KEYS[k + 4], "(" .. math.floor(clock() / 1000), "+inf"))
	end
	local rate, burst = tonumber(g[2] or ""), tonumber(g[3] or "")
	if rate and burst then
		local tokens = math.min(burst, (tonumber(g[4]) or burst) + math.max(0, clock() - (tonumber(g[5]) or 0)) * rate / 1000)
		bucket[q] = tokens
		if tokens < 1 and n > 0 then opens[q] = math.ceil((1 - tokens) / rate * 1000) end
		n = math.min(n, math.floor(tokens))
	end
	return n
end
local function take(q, n)
	if not admitted[q] then
		local open = gate(q)
		refused[q] = open < n
		admitted[q] = math.min(tonumber(arg(q, 3)), open)
	end
	local k, prefix, scarce = 6 * (q - 1), arg(q, 1), arg(q, 4) == "1"
	n = math.min(n, admitted[q])
	if scarce then n = math.min(n, rest) end
	while n > 0 and not dry[q] do
		local asked = math.min(n, 1000)
		local ids = redis.call("RPOP", KEYS[k + 1], asked) or {}
		dry[q] = #ids < asked
		if #ids == 0 then return end
		redis.call("LPUSH", KEYS[k + 3], unpack(ids))
		local leases, taken = {}, 0
		for _, id in ipairs(ids) do
			local key = prefix .. id
			-- A key of the wrong type is one job's misfortune, and not the batch's.
			if type(redis.pcall("HSET", key, "state", "active")) ~= "table" then
				redis.call("HDEL", key, "pending_since")
				leases[#leases + 1] = ARGV[1]
				leases[#leases + 1] = id
				local msg = redis.call("HGET", key, "msg")
				if msg then
					out[#out + 1] = q
					out[#out + 1] = id
					out[#out + 1] = msg
					taken = taken + 1
				end
			end
		end
		if #leases > 0 then redis.call("ZADD", KEYS[k + 4], unpack(leases)) end
		n, got, admitted[q] = n - taken, got + taken, admitted[q] - taken
		if scarce then rest = rest - taken end
		if bucket[q] and taken > 0 then
			bucket[q] = bucket[q] - taken
			spent[q] = bucket[q]
		end
	end
end
for q = 1, queues do
	local share = tonumber(arg(q, 2))
	if share > 0 then take(q, share) end
end
for i = 6 + 4 * queues, #ARGV do
	if got >= want then break end
	take(tonumber(ARGV[i]), want - got)
end
for q, tokens in pairs(spent) do
	redis.call("HSET", KEYS[6 * (q - 1) + 5], "tokens", string.format("%.17g", tokens), "at", clock())
end
if woken or got < want then
	for q = 1, queues do
		local k = 6 * (q - 1)
		if not dry[q] and redis.call("EXISTS", KEYS[k + 1]) == 1 then
			if opens[q] then
				if opens[q] >= 0 and (out[2] < 0 or opens[q] < out[2]) then out[2] = opens[q] end
			elseif got < want then
				out[1] = 1
			end
			-- Nobody else could take what the gate refused.
			if woken and not refused[q] then wake(KEYS[k + 6]) end
		end
	end
end
return out`)

// call returns the call that takes t from queues.
func (t taking) call(queues []queue) scriptCall {
	keys := make([]string, 0, 6*len(queues))
	args := make([]any, 0, 5+5*len(queues))
	args = append(args, t.lease, len(queues), t.woken, t.want, t.rest)
	for i, q := range queues {
		p := prefixOf(q.name)
		keys = append(keys, p+"pending", p+"paused", p+"active", p+"lease", gateKey(q.name), wake.Key(q.name))
		args = append(args, p+"t:", t.share[i], t.room[i], q.rest)
	}
	for _, i := range t.order {
		args = append(args, i+1)
	}
	return scriptCall{takeScript, keys, args}
}

// read takes the script's reply apart.
func (f *fetcher) read(cmd *redis.Cmd, queues []queue) (found, error) {
	reply, err := cmd.Slice()
	if err != nil {
		return found{}, err
	}
	if len(reply) < 2 || len(reply)%3 != 2 {
		return found{}, fmt.Errorf("fetch jobs: %w", errCutShort)
	}
	held, _ := reply[0].(int64)
	in, _ := reply[1].(int64)
	some := found{held: held == 1, jobs: make([]fetched, 0, len(reply)/3)}
	if in >= 0 {
		some.opens = opens(time.Duration(in+1) * time.Millisecond)
	}
	for r := range slices.Chunk(reply[2:], 3) {
		q, _ := r[0].(int64)
		id, _ := r[1].(string)
		msg, _ := r[2].(string)
		if q < 1 || int(q) > len(queues) {
			return some, fmt.Errorf("fetch jobs: the script answered for queue %d of %d", q, len(queues))
		}
		some.jobs = append(some.jobs, fetched{job: job{queue: queues[q-1].name, id: id}, msg: msg})
	}
	return some, nil
}

// shares spreads n slots over the queues: smooth weighted round-robin, which keeps
// the shares exact over any stretch of picks; strict order gives all to the
// heaviest, and the rest is the others' when it runs dry.
func (f *fetcher) shares(n int) []int {
	shares := make([]int, len(f.queues))
	if f.strict || len(f.queues) == 1 {
		shares[0] = n
		return shares
	}
	total := 0
	for _, q := range f.queues {
		total += q.weight
	}
	for range n {
		best := 0
		for i, q := range f.queues {
			f.credit[i] += q.weight
			if f.credit[i] > f.credit[best] {
				best = i
			}
		}
		f.credit[best] -= total
		shares[best]++
	}
	return shares
}

// order is where to turn for what the shares leave: by weight at random, or
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
	for i, q := range f.queues {
		key[i] = rand.ExpFloat64() / float64(q.weight)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(key[a], key[b]) })
	return order
}

// handBackTimeout bounds the return of jobs that were taken and not started.
const handBackTimeout = 3 * time.Second

// handBackScript is asynq's requeueCmd: to the head of the queue, at no cost.
//
// KEYS: active, lease, pending, task, wake marker. ARGV: id.
var handBackScript = redis.NewScript(wake.Lua + `
if redis.call("LREM", KEYS[1], 0, ARGV[1]) == 0 then
  return redis.error_reply("NOT FOUND")
end
if redis.call("ZREM", KEYS[2], ARGV[1]) == 0 then
  return redis.error_reply("NOT FOUND")
end
redis.call("RPUSH", KEYS[3], ARGV[1])
redis.call("HSET", KEYS[4], "state", "pending")
wake(KEYS[5])
return redis.status_reply("OK")`)

// handBack puts jobs back at the head of their queues, in their order.
func handBack(ctx context.Context, rdb redis.Scripter, jobs []fetched) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handBackTimeout)
	defer cancel()
	for _, j := range slices.Backward(jobs) {
		p := prefixOf(j.queue)
		if err := handBackScript.Run(ctx, rdb, []string{p + "active", p + "lease", p + "pending", p + "t:" + j.id, wake.Key(j.queue)}, j.id).Err(); err != nil {
			return fmt.Errorf("hand back a job that was not started: %w", err)
		}
	}
	return nil
}
