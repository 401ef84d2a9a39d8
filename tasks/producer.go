package tasks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

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
	// ID is the job's id, a UUIDv7 unless JobID or the job itself sets another UUID.
	// For an email it is also in the Message-ID of the mail.
	ID string `json:"id"`
	// Queue is the name of the queue, with the namespace.
	Queue string `json:"queue"`
	// State is the job's state when it was accepted: pending or scheduled.
	State string `json:"state"`
	// EnqueuedAt is the time of the call that enqueued the job.
	EnqueuedAt time.Time `json:"enqueued_at"`
	// ProcessAt is the time from which the job may run.
	ProcessAt time.Time `json:"process_at"`
	// Duplicate is true if an earlier call with the same idempotency key or job id
	// made the job, and this one made none.
	Duplicate bool `json:"duplicate"`
}

// A Producer puts jobs into Redis. It is safe for use by many goroutines, and
// owns neither the connection nor, while no call is under way, any goroutine, so
// there is nothing to close. Concurrent calls share round trips.
type Producer struct {
	rdb       redis.UniversalClient
	composer  *asynq.Client // has no Redis: see probe
	client    *asynq.Client // for jobs that asynq has to send itself
	inspector *asynq.Inspector
	service   string
	namespace string
	trace     func(context.Context) (traceparent, tracestate string)
	now       func() time.Time

	mu        sync.Mutex           // guards what follows
	announced map[string]time.Time // by queue
	frames    map[shape]*frame

	line  line
	marks atomic.Uint64 // how often mark was called
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
		composer:  asynq.NewClientFromRedisClient(composing{}),
		client:    asynq.NewClientFromRedisClient(observedClient{rdb}),
		inspector: asynq.NewInspectorFromRedisClient(rdb),
		now:       time.Now,
		announced: make(map[string]time.Time),
		frames:    make(map[shape]*frame),
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
	j, err := p.compose(ctx, email, opts)
	return p.finish(ctx, j, err)
}

// SendNotification validates n and enqueues it, as SendEmail does. Its queue is
// notification: and the priority of its class.
func (p *Producer) SendNotification(ctx context.Context, n Notification, opts ...Option) (Receipt, error) {
	j, err := p.composeNotification(ctx, n, opts)
	return p.finish(ctx, j, err)
}

// SendDelivery validates d and enqueues it, as SendNotification does; workers call it.
// The id of the job is d.ID(), so neither JobID nor IdempotencyKey can be given: a
// delivery that its queue has already is left alone, and the receipt is that of the
// first call, with Duplicate set.
func (p *Producer) SendDelivery(ctx context.Context, d Delivery, opts ...Option) (Receipt, error) {
	j, err := p.composeDelivery(ctx, d, opts)
	return p.finish(ctx, j, err)
}

// SendDigestClose validates c and enqueues it, as SendDelivery does; workers call it.
// The id of the job is c.ID().
func (p *Producer) SendDigestClose(ctx context.Context, c DigestClose, opts ...Option) (Receipt, error) {
	j, err := p.composeDigestClose(ctx, c, opts)
	return p.finish(ctx, j, err)
}

// finish enqueues j, unless it could not be composed.
func (p *Producer) finish(ctx context.Context, j *job, err error) (Receipt, error) {
	if err != nil {
		return Receipt{}, err
	}
	if err := ctx.Err(); err != nil {
		return Receipt{}, fmt.Errorf("enqueue %s: %w", j.typ.noun(), err)
	}
	r := p.commit(ctx, j)
	return r.Receipt, r.Err
}

var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// headers returns those that every job has, and own.
func (p *Producer) headers(ctx context.Context, plan *plan, own []header) []header {
	const common = 7
	h := append(make([]header, 0, common+len(own)), header{HeaderEnqueuedAt, stamp(plan.enqueuedAt)})
	set := func(key, value string) {
		if value != "" {
			h = append(h, header{key, value})
		}
	}
	for _, o := range own {
		set(o.key, o.value)
	}
	set(HeaderService, p.service)
	if plan.delayed() {
		set(HeaderProcessAt, stamp(plan.processAt))
	}
	if !plan.expiresAt.IsZero() {
		set(HeaderExpiresAt, stamp(plan.expiresAt))
	}
	if plan.key != "" {
		set(HeaderIdempotencyKey, hashKey(plan.key))
	}
	if p.trace != nil {
		parent, state := p.trace(ctx)
		var bad problems
		bad.headerText(HeaderTraceState, state, 512)
		if traceParent.MatchString(parent) {
			set(HeaderTraceParent, parent)
			if len(bad) == 0 {
				set(HeaderTraceState, state)
			}
		}
	}
	return h
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func hashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}
