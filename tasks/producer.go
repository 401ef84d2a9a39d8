package tasks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// ErrUnconfirmed is wrapped by an error after which the job may or may not be in
// Redis: the connection failed and no answer came. Repeating the call with the
// same idempotency key is safe; without one it may send the message twice.
var ErrUnconfirmed = errors.New("outcome unknown: the job may have been accepted; repeat the call with the same idempotency key")

// States of a Receipt.
const (
	StatePending   = "pending"
	StateScheduled = "scheduled"
)

// A Receipt says what Redis accepted.
type Receipt struct {
	// ID is the job's id, a UUIDv7. It is also in the Message-ID of the mail.
	ID string `json:"id"`
	// Queue is the name of the queue, with the namespace.
	Queue string `json:"queue"`
	// State is the job's state when it was accepted: pending or scheduled.
	State string `json:"state"`
	// EnqueuedAt is the time of the call that enqueued the job.
	EnqueuedAt time.Time `json:"enqueued_at"`
	// ProcessAt is the time from which the job may run.
	ProcessAt time.Time `json:"process_at"`
	// Duplicate is true if an earlier call with the same idempotency key made
	// the job, and this one made none.
	Duplicate bool `json:"duplicate"`
}

// republish is how often a producer announces a queue that it uses. asynq does
// it once in a client's life, so that a queue stays invisible to dashboards
// after a flush or a failover that lost the announcement.
const republish = 30 * time.Second

// A Producer puts jobs into Redis. It is safe for use by many goroutines, and
// owns neither the connection nor any goroutine, so there is nothing to close.
type Producer struct {
	rdb       redis.UniversalClient
	client    *asynq.Client
	inspector *asynq.Inspector
	service   string
	namespace string
	trace     func(context.Context) (traceparent, tracestate string)
	now       func() time.Time

	mu        sync.Mutex           // guards announced
	announced map[string]time.Time // by queue
}

// A ProducerOption sets a property of a Producer.
type ProducerOption func(*Producer)

// FromService names the service, for logs, metrics and the scope of idempotency
// keys. Without it, jobs carry no service, and producers without a name share
// one scope.
func FromService(name string) ProducerOption {
	return func(p *Producer) { p.service = name }
}

// Namespace puts name and a colon in front of every queue, so that several
// environments can share a Redis. Workers need the same.
func Namespace(name string) ProducerOption {
	return func(p *Producer) { p.namespace = name }
}

// TraceFrom sets the function that finds the W3C trace context of a call.
// Malformed values are left out: a trace is never worth a message.
func TraceFrom(trace func(ctx context.Context) (traceparent, tracestate string)) ProducerOption {
	return func(p *Producer) { p.trace = trace }
}

// NewProducer returns a producer on rdb, which stays the caller's to close. For
// calls to end with their context even when Redis hangs, rdb needs
// ContextTimeoutEnabled, as rediskit sets it.
func NewProducer(rdb redis.UniversalClient, opts ...ProducerOption) (*Producer, error) {
	if rdb == nil {
		return nil, errors.New("create producer: the Redis client is nil")
	}
	p := &Producer{
		rdb:       rdb,
		client:    asynq.NewClientFromRedisClient(observedClient{rdb}),
		inspector: asynq.NewInspectorFromRedisClient(rdb),
		now:       time.Now,
		announced: make(map[string]time.Time),
	}
	for _, opt := range opts {
		opt(p)
	}
	var bad problems
	if p.namespace != "" && !namespaceName.MatchString(p.namespace) {
		bad.add("namespace", "must be lower-case letters, digits, - and _, begin with a letter, and have at most 31 characters")
	}
	bad.headerText("service", p.service, 64)
	if err := errors.Join(bad...); err != nil {
		return nil, fmt.Errorf("create producer: %w", err)
	}
	return p, nil
}

// SendEmail validates email and enqueues it. A bad message or option is reported
// as *ValidationError values, all at once, before Redis is asked. After an error
// the job was not accepted, unless the error wraps ErrUnconfirmed.
func (p *Producer) SendEmail(ctx context.Context, email Email, opts ...Option) (Receipt, error) {
	if err := ctx.Err(); err != nil {
		return Receipt{}, fmt.Errorf("enqueue email: %w", err)
	}
	plan, bad := makePlan(opts, email.Class, p.namespace, p.now().UTC().Round(0))
	if err := errors.Join(append(bad, email.check())...); err != nil {
		return Receipt{}, fmt.Errorf("validate email: %w", err)
	}
	if email.Class == "" {
		email.Class = ClassTransactional
	}
	payload, err := email.encode()
	if err != nil {
		return Receipt{}, fmt.Errorf("validate email: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Receipt{}, fmt.Errorf("make job id: %w", err)
	}
	j := job{plan: plan, id: id.String(), payload: payload, headers: p.headers(ctx, email, plan)}
	if plan.key == "" {
		receipt, _, err := p.enqueue(ctx, j)
		return receipt, err
	}
	return p.enqueueOnce(ctx, j)
}

// A job is what goes into Redis.
type job struct {
	plan

	id      string
	payload []byte
	headers map[string]string
}

// receipt returns the receipt of j, made by this call.
func (j job) receipt() Receipt {
	r := Receipt{ID: j.id, Queue: j.queue, State: StatePending, EnqueuedAt: j.enqueuedAt, ProcessAt: j.processAt}
	if j.delayed() {
		r.State = StateScheduled
	}
	return r
}

var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func (p *Producer) headers(ctx context.Context, email Email, plan plan) map[string]string {
	h := map[string]string{
		HeaderEnqueuedAt: stamp(plan.enqueuedAt),
		HeaderClass:      string(email.Class),
	}
	set := func(key, value string, ok bool) {
		if ok && value != "" {
			h[key] = value
		}
	}
	set(HeaderService, p.service, true)
	set(HeaderTemplate, email.Template, true)
	set(HeaderProcessAt, stamp(plan.processAt), plan.delayed())
	set(HeaderExpiresAt, stamp(plan.expiresAt), !plan.expiresAt.IsZero())
	set(HeaderIdempotencyKey, hashKey(plan.key), plan.key != "")
	if p.trace != nil {
		parent, state := p.trace(ctx)
		var bad problems
		bad.headerText(HeaderTraceState, state, 512)
		valid := traceParent.MatchString(parent)
		set(HeaderTraceParent, parent, valid)
		set(HeaderTraceState, state, valid && len(bad) == 0)
	}
	return h
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func hashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// enqueue puts j into Redis. taken reports that a job with j's id was there
// already.
func (p *Producer) enqueue(ctx context.Context, j job) (receipt Receipt, taken bool, err error) {
	if err := p.announce(ctx, j.queue); err != nil {
		return Receipt{}, false, fmt.Errorf("enqueue email: announce queue: %w", err)
	}
	opts := []asynq.Option{
		asynq.TaskID(j.id), asynq.Queue(j.queue), asynq.MaxRetry(j.maxRetry),
		asynq.Timeout(j.timeout), asynq.Retention(j.retention),
	}
	if j.delayed() {
		opts = append(opts, asynq.ProcessAt(j.processAt))
	}
	var seen observation
	_, err = p.client.EnqueueContext(context.WithValue(ctx, observationKey{}, &seen), asynq.NewTaskWithHeaders(TypeEmail, j.payload, j.headers), opts...)
	switch {
	case err == nil:
		return j.receipt(), false, nil
	case errors.Is(err, asynq.ErrTaskIDConflict):
		// go-redis repeats a script whose reply was lost, and the repetition
		// finds the job of the first.
		return j.receipt(), true, nil
	case seen.err == nil:
		return Receipt{}, false, fmt.Errorf("enqueue email: %w", err)
	}
	if _, refused := errors.AsType[redis.Error](seen.err); refused {
		return Receipt{}, false, fmt.Errorf("enqueue email: %w", seen.err)
	}
	return Receipt{}, false, fmt.Errorf("enqueue email: %w: %w", ErrUnconfirmed, seen.err)
}

// announce adds queue to the set of all queues if that was long ago.
func (p *Producer) announce(ctx context.Context, queue string) error {
	now := p.now()
	p.mu.Lock()
	last, known := p.announced[queue]
	due := !known || now.Sub(last) >= republish
	if due {
		p.announced[queue] = now
	}
	p.mu.Unlock()
	if !due {
		return nil
	}
	err := p.rdb.SAdd(ctx, "asynq:queues", queue).Err()
	if err != nil {
		p.mu.Lock()
		delete(p.announced, queue)
		p.mu.Unlock()
	}
	return err
}

// An observation holds the error of the enqueue script as go-redis returned it:
// asynq keeps only its text, which does not tell a refusal from a lost answer.
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
