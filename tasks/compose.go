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

	typ     jobType
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
	j.settled, j.result = true, Result{Err: fmt.Errorf("enqueue %s: %w", j.typ.noun(), err)}
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
	plan, bad := makePlan(opts, jobEmail, email.Class, p.namespace, p.now().UTC().Round(0))
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
	return p.assemble(ctx, jobEmail, &plan, payload, header{HeaderClass, string(email.Class)}, header{HeaderTemplate, email.Template})
}

// composeNotification is compose for a notification.
func (p *Producer) composeNotification(ctx context.Context, n Notification, opts []Option) (*job, error) {
	plan, bad := makePlan(opts, jobNotification, n.Class, p.namespace, p.now().UTC().Round(0))
	bad = append(bad, plan.tooLate(n)...)
	if err := errors.Join(append(bad, n.Validate())...); err != nil {
		return nil, fmt.Errorf("validate notification: %w", err)
	}
	if n.Class == "" {
		n.Class = ClassTransactional
	}
	payload, err := n.encode()
	if err != nil {
		return nil, fmt.Errorf("validate notification: %w", err)
	}
	return p.assemble(ctx, jobNotification, &plan, payload,
		header{HeaderClass, string(n.Class)}, header{HeaderTemplate, n.Template}, header{HeaderKind, n.Kind})
}

// composeDelivery is compose for a delivery.
func (p *Producer) composeDelivery(ctx context.Context, d Delivery, opts []Option) (*job, error) {
	plan, bad := makePlan(opts, jobDelivery, d.Class, p.namespace, p.now().UTC().Round(0))
	bad = append(bad, plan.giveID(d.ID())...)
	if err := errors.Join(append(bad, d.check())...); err != nil {
		return nil, fmt.Errorf("validate delivery: %w", err)
	}
	if d.Class == "" {
		d.Class = ClassTransactional
	}
	payload, err := d.encode()
	if err != nil {
		return nil, fmt.Errorf("validate delivery: %w", err)
	}
	return p.assemble(ctx, jobDelivery, &plan, payload,
		header{HeaderClass, string(d.Class)}, header{HeaderKind, d.Kind}, header{HeaderChannel, string(d.Channel)})
}

// composeDigestClose is compose for the end of a digest.
func (p *Producer) composeDigestClose(ctx context.Context, c DigestClose, opts []Option) (*job, error) {
	plan, bad := makePlan(opts, jobDigest, ClassTransactional, p.namespace, p.now().UTC().Round(0))
	bad = append(bad, plan.giveID(c.ID())...)
	if err := errors.Join(append(bad, c.Validate())...); err != nil {
		return nil, fmt.Errorf("validate digest: %w", err)
	}
	payload, err := c.encode()
	if err != nil {
		return nil, fmt.Errorf("encode digest: %w", err)
	}
	return p.assemble(ctx, jobDigest, &plan, payload, header{HeaderClass, string(ClassTransactional)})
}

// assemble makes the job of what compose has found. Of own, headers without a value
// are left out.
func (p *Producer) assemble(ctx context.Context, typ jobType, plan *plan, payload []byte, own ...header) (*job, error) {
	id := plan.givenID
	if id == "" {
		made, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make job id: %w", err)
		}
		id = made.String()
	} else {
		p.mark(plan)
	}
	j := &job{plan: *plan, typ: typ, id: id, payload: payload, headers: p.headers(ctx, plan, own)}
	if j.key != "" {
		j.recordKey = p.recordKey(typ, j.key)
	}
	p.put(j)
	j.weight = len(j.payload) + len(j.msg) + 256
	return j, nil
}

// mark makes the time of the enqueue one that no other job of p with a given id has:
// look tells by it whose job it has found. The last three digits of a nanosecond
// tell 1000 jobs apart that meet in a microsecond.
func (p *Producer) mark(plan *plan) {
	delayed := plan.delayed()
	plan.enqueuedAt = plan.enqueuedAt.Truncate(time.Microsecond).Add(time.Duration(p.marks.Add(1) % 1000))
	if !delayed {
		plan.processAt = plan.enqueuedAt
	}
}

// put gives j asynq's form.
func (p *Producer) put(j *job) {
	j.frame = p.frame(shape{typ: j.typ, queue: j.queue, maxRetry: j.maxRetry, timeout: j.timeout, retention: j.retention, delayed: j.delayed()})
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
	return asynq.NewTaskWithHeaders(j.typ.task(), j.payload, headers), opts
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
