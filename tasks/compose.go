package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

// A job is what goes into Redis, and what became of it.
type job struct {
	plan

	id      string
	payload []byte
	headers []header

	frame *frame // nil: asynq has to send the job itself
	msg   []byte // the job in asynq's form, if there is a frame

	weight    int    // about the bytes that it takes in memory and on the wire
	recordKey string // of its idempotency record, if it has a key
	place     int64  // of EnqueueMany's jobs, from 1, those left out that were never composed
	claimed   bool   // the record of its key is this job's own
	confirmed bool   // the record of its key was confirmed before

	settled bool // result is final
	result  Result

	// fate is decided once, by whoever comes first: the batch that sends the job,
	// or the call that no longer waits for it.
	fate atomic.Int32
}

const (
	fateOpen int32 = iota
	fateSent
	fateWithdrawn
)

type header struct{ key, value string }

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
	if j.key != "" {
		j.recordKey = p.recordKey(j.key)
	}
	p.put(j)
	j.weight = len(j.payload) + len(j.msg) + 256
	return j, nil
}

// put gives j asynq's form.
func (p *Producer) put(j *job) {
	j.frame = p.frame(shape{queue: j.queue, maxRetry: j.maxRetry, timeout: j.timeout, retention: j.retention, delayed: j.delayed()})
	if j.frame != nil {
		j.msg = j.frame.compose(j)
	}
}

// task returns what asynq needs to know of j.
func (j *job) task() (*asynq.Task, []asynq.Option) {
	opts := append(make([]asynq.Option, 0, 6),
		asynq.TaskID(j.id), asynq.Queue(j.queue), asynq.MaxRetry(j.maxRetry), asynq.Timeout(j.timeout), asynq.Retention(j.retention))
	if j.delayed() {
		opts = append(opts, asynq.ProcessAt(ceilSecond(j.processAt)))
	}
	headers := make(map[string]string, len(j.headers))
	for _, h := range j.headers {
		headers[h.key] = h.value
	}
	return asynq.NewTaskWithHeaders(TypeEmail, j.payload, headers), opts
}

// ceilSecond rounds t up to a whole second: asynq cuts the rest off, and would
// run the job up to a second early.
func ceilSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// ceilMilli returns t in Unix milliseconds, rounded up.
func ceilMilli(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }
