package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/wake"
)

// Gate sets and shows what holds the jobs of a queue back: pauses, and limits on
// how many run and start. The workers' fetch asks Redis for both before it takes
// a job, so a change holds from the next fetch on, in the whole fleet, and
// survives restarts.
//
// A pause is asynq's own key, so that asynq's workers, its inspector and asynqmon
// keep to it and show it; who paused, why and until when stands beside it. A limit
// is known to postroom's workers only.
type Gate struct{ rdb redis.UniversalClient }

// NewGate returns the gate of all queues in rdb.
func NewGate(rdb redis.UniversalClient) *Gate { return &Gate{rdb: rdb} }

// Pause says since when, until when and why no job of a queue starts.
type Pause struct {
	// Since is when the queue was paused, by Redis's clock. PauseUntil sets it.
	Since time.Time
	// Until is when the pause ends by itself, in whole milliseconds. The zero time
	// is a pause that lasts until Resume.
	Until time.Time
	// Reason and By are shown to whoever looks at the queue: what for, and who did
	// it. Printable, 200 bytes at most each; may be empty.
	Reason, By string
}

// Limits bound the jobs of a queue over all workers of the fleet. Zero is no limit.
type Limits struct {
	// Concurrency is how many jobs run at once. The slot of a worker that crashed is
	// free again when the lease of its job is over, 30 s at most.
	Concurrency int
	// Rate is how many jobs start per second, on average.
	Rate float64
	// Burst is how many may start at once after a lull. The default is a second's
	// worth, one at least. It needs a Rate.
	Burst int
}

// QueueState is what holds a queue back, and what waits and runs in it.
type QueueState struct {
	Queue  string
	Paused bool
	// Since is when the pause began; zero if the queue is not paused.
	Since time.Time
	// Pause tells of a pause by PauseUntil. It is nil for one by asynq's inspector
	// or asynqmon, of which only Since is known.
	Pause  *Pause
	Limits Limits
	// Tokens is how many jobs the rate would let start now; 0 without a rate.
	Tokens float64
	// Waiting counts the jobs that could start, Running those with a valid lease.
	Waiting, Running int
}

const (
	maxShown = 200 // bytes of a text or name that is shown on pages and in shells
	maxRate  = 1e9 // keeps the arithmetic of tokens exact in a float64
	maxNamed = 20  // queues that an error lists
)

// InvalidError is a request that the caller has to change. Its text never repeats
// a reason or name.
type InvalidError struct{ Problem string }

func (e *InvalidError) Error() string { return e.Problem }

func invalid(format string, args ...any) error {
	return &InvalidError{Problem: fmt.Sprintf(format, args...)}
}

// UnknownQueueError is a queue that Redis does not know: a misspelt one, or one
// that never had a job or a worker.
type UnknownQueueError struct {
	Queue string
	Known []string // sorted
}

func (e *UnknownQueueError) Error() string {
	if len(e.Known) == 0 {
		return fmt.Sprintf("queue %q is unknown; this Redis knows no queue yet: one appears with its first job or worker", e.Queue)
	}
	named := make([]string, min(len(e.Known), maxNamed))
	for i := range named {
		named[i] = strconv.Quote(e.Known[i])
	}
	more := ""
	if n := len(e.Known) - len(named); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("queue %q is unknown; known are %s%s", e.Queue, strings.Join(named, ", "), more)
}

func pausedKey(queue string) string  { return "asynq:{" + queue + "}:paused" }
func pauseKey(queue string) string   { return "postroom:pause:{" + queue + "}" }
func gateKey(queue string) string    { return "postroom:gate:{" + queue + "}" }
func pendingKey(queue string) string { return "asynq:{" + queue + "}:pending" }
func leaseKey(queue string) string   { return "asynq:{" + queue + "}:lease" }

// gateClock declares Redis's time: seconds as text, and now in milliseconds.
const gateClock = `
local seconds, micros = unpack(redis.call("TIME"))
local now = seconds * 1000 + math.floor(micros / 1000)
`

// pauseScript pauses unless the end is past. asynq writes whole seconds.
//
// KEYS: paused, pause. ARGV: end in Unix milliseconds or "", reason, by.
// Returns whether it paused, and the time.
var pauseScript = redis.NewScript(gateClock + `
local ends = ARGV[1]
if ends ~= "" and tonumber(ends) <= now then return {0, now} end
redis.call("DEL", KEYS[2])
redis.call("HSET", KEYS[2], "since", string.format("%.0f", now), "reason", ARGV[2], "by", ARGV[3])
if ends == "" then
	redis.call("SET", KEYS[1], seconds)
else
	redis.call("SET", KEYS[1], seconds, "PXAT", ends)
	redis.call("HSET", KEYS[2], "until", ends)
	redis.call("PEXPIREAT", KEYS[2], ends)
end
return {1, now}`)

// PauseUntil lets no further job of queue start before p.Until, or before Resume
// if that is zero. Jobs that run are not touched. A queue that is paused already
// is paused anew, with the new end and reason.
//
// Errors are [InvalidError], also for an end that is past by Redis's clock,
// [UnknownQueueError], and those of Redis.
func (g *Gate) PauseUntil(ctx context.Context, queue string, p Pause) error {
	if err := errors.Join(printable("reason", p.Reason), printable("name of who pauses", p.By)); err != nil {
		return err
	}
	if err := g.known(ctx, queue); err != nil {
		return err
	}
	ends := ""
	if !p.Until.IsZero() {
		ends = strconv.FormatInt(p.Until.UnixMilli(), 10)
	}
	reply, err := pauseScript.Run(ctx, g.rdb, []string{pausedKey(queue), pauseKey(queue)}, ends, p.Reason, p.By).Int64Slice()
	if err != nil {
		return fmt.Errorf("pause queue %q: %w", queue, err)
	}
	if len(reply) != 2 {
		return fmt.Errorf("pause queue %q: the script's answer is cut short", queue)
	}
	if reply[0] == 0 {
		return invalid("the end of the pause, %s, is in the past: Redis's clock says %s; give a later time",
			p.Until.Format(time.RFC3339), time.UnixMilli(reply[1]).In(p.Until.Location()).Format(time.RFC3339))
	}
	return nil
}

// resumeScript wakes a worker for what has gathered meanwhile.
//
// KEYS: paused, pause, pending, wake marker. Returns whether it was paused.
var resumeScript = redis.NewScript(wake.Lua + `
local was = redis.call("DEL", KEYS[1])
redis.call("DEL", KEYS[2])
if redis.call("LLEN", KEYS[3]) > 0 then wake(KEYS[4]) end
return was`)

// Resume ends a pause, whoever made it, and says whether there was one. Errors are
// [InvalidError], [UnknownQueueError], and those of Redis.
func (g *Gate) Resume(ctx context.Context, queue string) (wasPaused bool, err error) {
	if err := printable("name of the queue", queue); err != nil {
		return false, err
	}
	keys := []string{pausedKey(queue), pauseKey(queue), pendingKey(queue), wake.Key(queue)}
	wasPaused, err = resumeScript.Run(ctx, g.rdb, keys).Bool()
	if err != nil {
		return false, fmt.Errorf("resume queue %q: %w", queue, err)
	}
	if wasPaused {
		return true, nil // even if the queue's name was lost, or it was misspelt when paused
	}
	return false, g.known(ctx, queue)
}

// limitsScript brings the bucket to the present at the old rate first, so that a
// new rate does not reach back; a bucket that is new is full.
//
// KEYS: gate, pending, wake marker. ARGV: concurrency, rate, burst.
var limitsScript = redis.NewScript(wake.Lua + gateClock + `
local gate, rate, burst = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if ARGV[1] == "0" then
	redis.call("HDEL", gate, "concurrency")
else
	redis.call("HSET", gate, "concurrency", ARGV[1])
end
if rate == 0 then
	redis.call("HDEL", gate, "rate", "burst", "tokens", "at")
else
	local was = redis.call("HMGET", gate, "rate", "burst", "tokens", "at")
	for i = 1, 4 do was[i] = tonumber(was[i]) end
	local tokens = burst
	if was[1] and was[2] and was[3] and was[4] then
		tokens = math.min(burst, was[2], was[3] + was[1] * math.max(0, now - was[4]) / 1000)
	end
	redis.call("HSET", gate, "rate", ARGV[2], "burst", ARGV[3], "tokens", string.format("%.17g", tokens), "at", string.format("%.0f", now))
end
if redis.call("LLEN", KEYS[2]) > 0 then wake(KEYS[3]) end
return 1`)

// SetLimits replaces the limits of queue. A raised one acts at once; a lowered one
// stops nothing that runs. Errors are [InvalidError], [UnknownQueueError], and
// those of Redis.
func (g *Gate) SetLimits(ctx context.Context, queue string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	if l.Rate > 0 && l.Burst == 0 {
		l.Burst = int(math.Ceil(l.Rate)) // 1 at least
	}
	if err := g.known(ctx, queue); err != nil {
		return err
	}
	keys := []string{gateKey(queue), pendingKey(queue), wake.Key(queue)}
	rate := strconv.FormatFloat(l.Rate, 'g', -1, 64)
	if err := limitsScript.Run(ctx, g.rdb, keys, l.Concurrency, rate, l.Burst).Err(); err != nil {
		return fmt.Errorf("set limits of queue %q: %w", queue, err)
	}
	return nil
}

func (l Limits) validate() error {
	var problems []error
	if l.Concurrency < 0 {
		problems = append(problems, invalid("the concurrency is %d: it must be 1 or more, or 0 for no limit", l.Concurrency))
	}
	if !(l.Rate >= 0 && l.Rate <= maxRate) { // NaN fails every comparison
		problems = append(problems, invalid("the rate is %v jobs per second: it must be above 0 and no more than %g, or 0 for no limit", l.Rate, maxRate))
	}
	switch {
	case l.Burst < 0 || l.Burst > maxRate:
		problems = append(problems, invalid("the burst is %d jobs: it must be between 1 and %g, or 0 for the default", l.Burst, maxRate))
	case l.Burst > 0 && l.Rate == 0:
		problems = append(problems, invalid("the burst is %d jobs without a rate: give a rate too, or no burst", l.Burst))
	}
	return errors.Join(problems...)
}

// stateScript reads a queue at one instant.
//
// KEYS: paused, pause, gate, lease, pending. A lease that ends this second is over.
var stateScript = redis.NewScript(gateClock + `
return {
	now,
	redis.call("GET", KEYS[1]),
	redis.call("PTTL", KEYS[1]),
	redis.call("HMGET", KEYS[2], "since", "until", "reason", "by"),
	redis.call("HMGET", KEYS[3], "concurrency", "rate", "burst", "tokens", "at"),
	redis.call("ZCOUNT", KEYS[4], "(" .. seconds, "+inf"),
	redis.call("LLEN", KEYS[5]),
}`)

// State tells of the queues, of all that Redis knows if none is named, sorted by
// name. A queue that cannot be read is named in the error and does not keep the
// others from being returned. Other errors are [InvalidError], [UnknownQueueError],
// and those of Redis.
func (g *Gate) State(ctx context.Context, queues ...string) ([]QueueState, error) {
	if len(queues) == 0 {
		all, err := g.queues(ctx)
		if err != nil {
			return nil, err
		}
		queues = all
	} else if err := g.known(ctx, queues...); err != nil {
		return nil, err
	}
	queues = slices.Compact(slices.Sorted(slices.Values(queues)))
	// The script's text rather than its hash: a pipeline cannot send it afterwards.
	pipe := g.rdb.Pipeline()
	replies := make([]*redis.Cmd, len(queues))
	for i, q := range queues {
		replies[i] = stateScript.Eval(ctx, pipe, []string{pausedKey(q), pauseKey(q), gateKey(q), leaseKey(q), pendingKey(q)})
	}
	_, _ = pipe.Exec(ctx) // each command has its error
	states := make([]QueueState, 0, len(queues))
	var problems []error
	for i, q := range queues {
		reply, err := replies[i].Slice()
		if err == nil && len(reply) != 7 {
			err = errors.New("the script's answer is cut short")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("read state of queue %q: %w", q, err))
			continue
		}
		states = append(states, stateOf(q, reply))
	}
	return states, errors.Join(problems...)
}

func stateOf(queue string, reply []any) QueueState {
	s := QueueState{Queue: queue, Running: int(number(reply[5])), Waiting: int(number(reply[6]))}
	pause, limits := fields(reply[3], 4), fields(reply[4], 5)
	if reply[1] != nil {
		s.Paused = true
		s.Since = time.Unix(int64(number(reply[1])), 0)
		// What PauseUntil wrote outlives a pause that asynq ended, and must not be
		// taken for the reason of one that asynq began later.
		timed := number(reply[2]) >= 0
		if since := number(pause[0]); pause[0] != nil && time.UnixMilli(int64(since)).Unix() == s.Since.Unix() && timed == (pause[1] != nil) {
			s.Since = time.UnixMilli(int64(since))
			s.Pause = &Pause{Since: s.Since, Reason: text(pause[2]), By: text(pause[3])}
			if timed {
				s.Pause.Until = time.UnixMilli(int64(number(pause[1])))
			}
		}
	}
	s.Limits = Limits{Concurrency: int(number(limits[0])), Rate: number(limits[1]), Burst: int(number(limits[2]))}
	if burst := float64(s.Limits.Burst); s.Limits.Rate > 0 {
		s.Tokens = burst
		if limits[3] != nil && limits[4] != nil {
			elapsed := max(0, number(reply[0])-number(limits[4])) / 1000
			s.Tokens = min(burst, number(limits[3])+s.Limits.Rate*elapsed)
		}
	}
	return s
}

// fields returns a list of n values, nil for those that Redis does not have.
func fields(v any, n int) []any {
	list, _ := v.([]any)
	return append(list, make([]any, max(0, n-len(list)))...)
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// number reads what may be missing, or written by hand, as 0.
func number(v any) float64 {
	if n, ok := v.(int64); ok {
		return float64(n)
	}
	f, err := strconv.ParseFloat(text(v), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// known refuses queues that are not in asynq's list.
func (g *Gate) known(ctx context.Context, queues ...string) error {
	for _, q := range queues {
		if err := printable("name of the queue", q); err != nil {
			return err
		}
	}
	all, err := g.queues(ctx)
	if err != nil {
		return err
	}
	for _, q := range queues {
		if _, found := slices.BinarySearch(all, q); !found {
			return &UnknownQueueError{Queue: q, Known: all}
		}
	}
	return nil
}

// queues returns asynq's list, sorted.
func (g *Gate) queues(ctx context.Context) ([]string, error) {
	all, err := g.rdb.SMembers(ctx, "asynq:queues").Result()
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	slices.Sort(all)
	return all, nil
}

// printable refuses what would garble the page or terminal that shows it: control
// characters, line separators, marks that turn the direction of writing.
func printable(what, s string) error {
	if len(s) > maxShown {
		return invalid("the %s has %d bytes: %d at most", what, len(s), maxShown)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return invalid("the %s must be printable text on one line", what)
	}
	return nil
}
