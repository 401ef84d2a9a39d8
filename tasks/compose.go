package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// A job is what goes into Redis, and what became of it.
type job struct {
	plan

	id      string
	payload []byte
	headers map[string]string
	order   order

	claimed   bool // the record of its key is this job's own
	confirmed bool // the record of its key was confirmed before

	settled bool // result is final
	result  Result
}

// An order is what asynq would send to Redis for a job: a call of one of its two
// scripts, caught before it was sent. The zero order is one that was not
// understood.
type order struct {
	key       string // of the job in Redis
	msg       any    // []byte: the job in asynq's form
	id        any    // string
	at        any    // int64: Unix time, in nanoseconds of a pending job, and in seconds of a scheduled one
	scheduled bool
}

// accept and refuse settle j.
func (j *job) accept(r Receipt) { j.settled, j.result = true, Result{Receipt: r} }

func (j *job) refuse(err error) {
	j.settled, j.result = true, Result{Err: fmt.Errorf("enqueue email: %w", err)}
}

// receipt returns the receipt of j, made by this call.
func (j *job) receipt() Receipt {
	r := Receipt{ID: j.id, Queue: j.queue, State: StatePending, EnqueuedAt: j.enqueuedAt, ProcessAt: j.processAt}
	if j.delayed() {
		r.State = StateScheduled
	}
	return r
}

// size is about what j takes in memory and on the wire.
func (j *job) size() int { return len(j.payload) + 512 }

// compose validates email and makes the job of it, without asking Redis.
func (p *Producer) compose(ctx context.Context, email Email, opts []Option) (*job, error) {
	plan, bad := makePlan(opts, email.Class, p.namespace, p.now().UTC().Round(0))
	if err := errors.Join(append(bad, email.check())...); err != nil {
		return nil, fmt.Errorf("validate email: %w", err)
	}
	if email.Class == "" {
		email.Class = ClassTransactional
	}
	payload, err := email.encode()
	if err != nil {
		return nil, fmt.Errorf("validate email: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make job id: %w", err)
	}
	j := &job{plan: plan, id: id.String(), payload: payload, headers: p.headers(ctx, email, plan)}
	if err := p.catch(j); err != nil {
		return nil, fmt.Errorf("enqueue email: %w", err)
	}
	return j, nil
}

// task returns what asynq needs to know of j.
func (j *job) task() (*asynq.Task, []asynq.Option) {
	opts := make([]asynq.Option, 0, 6)
	opts = append(opts, asynq.TaskID(j.id), asynq.Queue(j.queue), asynq.MaxRetry(j.maxRetry),
		asynq.Timeout(j.timeout), asynq.Retention(j.retention))
	if j.delayed() {
		opts = append(opts, asynq.ProcessAt(ceilSecond(j.processAt)))
	}
	return asynq.NewTaskWithHeaders(TypeEmail, j.payload, j.headers), opts
}

// ceilSecond rounds t up to a whole second: asynq cuts the rest off, and would
// run the job up to a second early.
func ceilSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// The scripts of asynq 0.26 whose work enqueueMany does, by their SHA-1. A script
// that an asynq of another version changed has another sum, and is left to asynq.
const (
	asynqEnqueue  = "98d28b42650870a743450ffda9791e9e19c6991b"
	asynqSchedule = "8ce6b38a99b73194585c251eb3c2a89559f37a87"
)

// catch lets asynq put j into its own form, and keeps the call of its script
// instead of sending it. j's order stays zero if the call is not one of the two
// that are known: asynq sends that job itself then. An error is asynq's refusal
// of the job.
func (p *Producer) catch(j *job) (err error) {
	net := catcher{queue: j.queue, id: j.id}
	defer func() {
		// An asynq that asks for more than a script finds nothing to ask.
		if recover() != nil {
			net.order, err = order{}, nil
		}
		j.order = net.order
	}()
	task, opts := j.task()
	_, err = p.composer.EnqueueContext(context.WithValue(context.Background(), catcherKey{}, &net), task, opts...)
	if net.missed {
		return nil
	}
	return err
}

// A catcher waits for the order of one job.
type catcher struct {
	queue, id string
	order     order
	missed    bool // what came was not known
}

type catcherKey struct{}

var errMissed = errors.New("asynq's call is not known")

// composing is the Redis of the asynq client that composes orders: there is none.
type composing struct{ redis.UniversalClient }

// EvalSha keeps the order, and answers as a Redis that took the job.
func (composing) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	net, ok := ctx.Value(catcherKey{}).(*catcher)
	if ok && net.take(sha, keys, args) {
		cmd.SetVal(int64(1))
		return cmd
	}
	if ok {
		net.missed = true
	}
	cmd.SetErr(errMissed)
	return cmd
}

// SAdd takes the announcement of a queue, which the producer makes itself.
func (composing) SAdd(ctx context.Context, _ string, _ ...any) *redis.IntCmd {
	cmd := redis.NewIntCmd(ctx)
	cmd.SetVal(1)
	return cmd
}

// take keeps the order if it is exactly what is known.
func (c *catcher) take(sha string, keys []string, args []any) bool {
	if len(keys) != 2 || len(args) != 3 || c.order.key != "" {
		return false
	}
	prefix := "asynq:{" + c.queue + "}:"
	if keys[0] != prefix+"t:"+c.id {
		return false
	}
	id, at, scheduled := args[1], args[2], false
	switch {
	case sha == asynqEnqueue && keys[1] == prefix+"pending":
	case sha == asynqSchedule && keys[1] == prefix+"scheduled":
		id, at, scheduled = args[2], args[1], true
	default:
		return false
	}
	_, isMessage := args[0].([]byte)
	_, isTime := at.(int64)
	if id != c.id || !isMessage || !isTime {
		return false
	}
	c.order = order{key: keys[0], msg: args[0], id: id, at: at, scheduled: scheduled}
	return true
}
