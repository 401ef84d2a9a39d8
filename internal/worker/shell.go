package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/tasks"
)

// Log field names.
const (
	fieldTask     = "task_id"
	fieldType     = "type"
	fieldQueue    = "queue"
	fieldAttempt  = "attempt"
	fieldDuration = "duration"
	fieldOutcome  = "outcome"
	fieldReason   = "reason"
	fieldProvider = "provider"
	fieldCode     = "code"
)

// job is what a handler is told of the job it runs.
type job struct {
	id       string
	queue    string
	kind     string
	payload  []byte
	headers  map[string]string
	policy   tasks.Policy
	expires  time.Time // zero: never
	enqueued time.Time
	record   ledger.Record

	// Set by the handler for the log line.
	provider string
	queueID  string
	code     int
}

// handlerFunc delivers one job. It ends the attempt, returns nil or a *failure,
// and gives up when ctx ends unless it has committed.
type handlerFunc func(ctx context.Context, j *job, a *ledger.Attempt) *failure

// handle is what asynq calls.
func (w *Worker) handle(ctx context.Context, t *asynq.Task) error {
	start := time.Now()
	j := newJob(ctx, t)
	f := w.shell(ctx, j, w.handlers[t.Type()])
	w.report(j, f, time.Since(start))
	if f == nil || f.outcome == OutcomeSkipped {
		return nil // not f: a nil *failure is not a nil error
	}
	return f
}

func newJob(ctx context.Context, t *asynq.Task) *job {
	j := &job{kind: t.Type(), payload: t.Payload(), headers: t.Headers()}
	j.id, _ = asynq.GetTaskID(ctx)
	j.queue, _ = asynq.GetQueueName(ctx)
	j.policy = tasks.Class(j.headers[tasks.HeaderClass]).Policy()
	j.expires, _ = time.Parse(time.RFC3339Nano, j.headers[tasks.HeaderExpiresAt])
	j.enqueued, _ = time.Parse(time.RFC3339Nano, j.headers[tasks.HeaderEnqueuedAt])
	return j
}

// shell is everything that surrounds a handler.
func (w *Worker) shell(ctx context.Context, j *job, deliver handlerFunc) *failure {
	if deliver == nil {
		return fail(OutcomeRejected, reasonUnknownType, fmt.Errorf("no handler for jobs of type %q: is this worker older than its producer?", j.kind))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(w.giveUp, func() { cancel(errShutdown) })
	defer stop()

	if err := w.slots.Acquire(ctx, 1); err != nil {
		return ended(ctx)
	}
	held := int64(1)
	defer func() { w.slots.Release(held) }()

	opts := ledger.Options{}
	for {
		if j.expired() {
			return w.expire(ctx, j)
		}
		attempt, rec, err := w.ledger.Begin(ctx, j.id, opts)
		if err != nil {
			if ctx.Err() != nil {
				return ended(ctx)
			}
			f := fail(OutcomeDeferred, reasonLedger, errors.New("Redis did not say whether this job was sent before, so it waits"))
			f.after = w.pause(j, rec)
			return f
		}
		j.record = rec
		switch rec.Verdict {
		case ledger.Go:
			return w.judge(j, w.guard(ctx, j, attempt, deliver))
		case ledger.Sent:
			return nil
		case ledger.Poison:
			if err := w.ledger.Pardon(ctx, j.id); err != nil {
				return fail(OutcomeDeferred, reasonLedger, errors.New("Redis did not answer"))
			}
			return fail(OutcomePoison, reasonPoison, fmt.Errorf("this job ended the worker process %d times; run it again only when the cause is found", rec.Crashes))
		case ledger.Busy:
			f := fail(OutcomeDeferred, reasonInDoubt, errors.New("another attempt waits for the relay's answer"))
			f.after = w.cfg.DoubtWait
			return f
		case ledger.Doubtful:
			switch {
			case !j.policy.ResendInDoubt:
				if err := w.ledger.Park(ctx, j.id); err != nil {
					return fail(OutcomeDeferred, reasonLedger, errors.New("Redis did not answer"))
				}
				return fail(OutcomeUnknown, reasonInDoubt, errors.New("an earlier attempt ended before the relay's answer came; this class allows no second copy; run the job again to send it"))
			case rec.Age < w.cfg.DoubtWait:
				f := fail(OutcomeDeferred, reasonInDoubt, errors.New("an earlier attempt ended before the relay's answer came"))
				f.after = w.cfg.DoubtWait - rec.Age
				return f
			}
			opts.Resend = true
		case ledger.Isolate:
			w.slots.Release(held)
			held = 0
			if err := w.slots.Acquire(ctx, int64(w.cfg.Concurrency)); err != nil {
				return ended(ctx)
			}
			held = int64(w.cfg.Concurrency)
			opts.Alone = true
		}
	}
}

// guard runs the handler and turns a panic into a rejection. asynq would store
// the panic's value with the job, and a value may be a payload.
func (w *Worker) guard(ctx context.Context, j *job, a *ledger.Attempt, deliver handlerFunc) (f *failure) {
	defer func() {
		if x := recover(); x != nil {
			w.log.Error().Str(fieldTask, j.id).Str(fieldType, j.kind).Str("panic_type", fmt.Sprintf("%T", x)).Bytes("stack", debug.Stack()).Msg("handler panicked")
			a.Doubt(ctx)
			f = fail(OutcomeRetry, reasonPanic, errors.New("the handler panicked; the worker's log has the stack"))
		}
	}()
	return deliver(context.WithValue(ctx, traceKey{}, j.headers), j, a)
}

// judge gives up on a job that has failed for longer than its class allows.
func (w *Worker) judge(j *job, f *failure) *failure {
	if f == nil || (f.outcome != OutcomeRetry && f.outcome != OutcomeDeferred) {
		return f
	}
	if j.policy.GiveUp > 0 && j.record.Since > j.policy.GiveUp {
		return fail(OutcomeRejected, reasonGaveUp, fmt.Errorf("no success for %v; the last failure was %w", j.policy.GiveUp, f))
	}
	if f.outcome == OutcomeDeferred && f.after == 0 && f.until.IsZero() {
		f.after = w.pause(j, j.record)
	}
	return f
}

// maxPause bounds the wait for somebody else's fault to be mended.
const maxPause = time.Minute

// pause is the delay of a job that is not to blame: by the number of its starts
// along its class's schedule, a minute at most.
func (w *Worker) pause(j *job, rec ledger.Record) time.Duration {
	return min(j.policy.Backoff(rec.Attempts-1), maxPause)
}

func (j *job) expired() bool { return !j.expires.IsZero() && !time.Now().Before(j.expires) }

// expiredKey counts expired jobs by queue, in one hash.
const expiredKey = "postroom:expired"

func (w *Worker) expire(ctx context.Context, j *job) *failure {
	if err := w.rdb.HIncrBy(ctx, expiredKey, j.queue, 1).Err(); err != nil {
		w.log.Warn().Err(err).Str(fieldTask, j.id).Msg("expired job not counted")
	}
	return fail(OutcomeExpired, reasonExpired, errors.New("past its deadline"))
}

// ended is the failure of a handler whose context is over.
func ended(ctx context.Context) *failure {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errShutdown):
		f := fail(OutcomeDeferred, reasonShutdown, cause)
		f.after = leaseDelay
		return f
	case errors.Is(cause, context.DeadlineExceeded):
		return fail(OutcomeRetry, reasonTimeout, errors.New("the job's timeout ran out before the message was sent"))
	default:
		f := fail(OutcomeDeferred, reasonShutdown, errors.New("the job was taken away"))
		f.after = leaseDelay
		return f
	}
}

// report writes the one line of an attempt. No address, no payload.
func (w *Worker) report(j *job, f *failure, took time.Duration) {
	var e *zerolog.Event
	outcome := OutcomeSent
	switch {
	case f == nil:
		e = w.log.Info()
	case f.outcome == OutcomeSkipped:
		outcome, e = f.outcome, w.log.Info()
	case f.outcome == OutcomeRejected || f.outcome == OutcomeUnknown || f.outcome == OutcomePoison:
		outcome, e = f.outcome, w.log.Error()
	default:
		outcome, e = f.outcome, w.log.Warn()
	}
	e = e.Str(fieldTask, j.id).Str(fieldType, j.kind).Str(fieldQueue, j.queue).
		Int(fieldAttempt, max(j.record.Attempts, 1)).Dur(fieldDuration, took).Str(fieldOutcome, string(outcome))
	if f != nil {
		e = e.Str(fieldReason, f.reason)
	}
	if f != nil && f.outcome != OutcomeSkipped {
		e = e.Str("error", f.Error())
	}
	if j.provider != "" {
		e = e.Str(fieldProvider, j.provider)
	}
	if j.code != 0 {
		e = e.Int(fieldCode, j.code)
	}
	e.Msg("job")
}
