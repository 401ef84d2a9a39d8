package tasks

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Defaults of a job, for what its class does not set.
const (
	// DefaultTimeout bounds one try.
	DefaultTimeout = 2 * time.Minute
	// DefaultRetention is how long a finished job stays visible.
	DefaultRetention = 24 * time.Hour
)

// maxAhead bounds every time and duration of an option. A yearly recall fits;
// a time in the wrong unit does not, nor one that overflows a duration.
const maxAhead = 5 * 365 * 24 * time.Hour

// An Option changes one default of one job. Of two that contradict each other
// the later one counts; a bad value is reported by the call that it is given to,
// as a *ValidationError.
type Option func(*jobOptions)

type jobOptions struct {
	delay     time.Duration
	at        time.Time
	priority  PriorityLevel
	queue     string
	maxRetry  int // 0: the class decides
	timeout   time.Duration
	deadline  time.Time
	retention time.Duration
	key       string
	id        *string // nil: the job gets a new one
	problems  problems
}

// Delay makes the job wait for d before it runs. Workers keep to it within
// milliseconds; a stock asynq worker, which knows whole seconds only, is up to a
// second and its own five-second tick late. None is early.
func Delay(d time.Duration) Option {
	return func(o *jobOptions) {
		o.problems.duration("delay", d, 0)
		o.delay, o.at = d, time.Time{}
	}
}

// At makes the job wait until t, as Delay does. A time in the past means now.
func At(t time.Time) Option {
	return func(o *jobOptions) {
		if t.IsZero() {
			o.problems.add("at", "is the zero time: set it, or leave the option out")
		}
		o.delay, o.at = 0, t
	}
}

// Priority chooses the queue. The default is the class's.
func Priority(p PriorityLevel) Option {
	return func(o *jobOptions) {
		switch p {
		case Critical, Default, Bulk:
		default:
			o.problems.add("priority", "must be %s, %s or %s", Critical, Default, Bulk)
		}
		o.priority = p
	}
}

// MaxRetry bounds the tries after the first. The default is the class's. Zero is
// refused: asynq charges a crash or a lost lease as a retry, so a job without
// one would be archived without ever having run.
func MaxRetry(n int) Option {
	return func(o *jobOptions) {
		if n < 1 {
			o.problems.add("max_retry", "must be at least 1: a worker that crashes before the first try uses one up, and without any the job would be archived unrun")
		}
		o.maxRetry = n
	}
}

// Timeout bounds one try. It is rounded up to a second; the default is 2
// minutes.
func Timeout(d time.Duration) Option {
	return func(o *jobOptions) {
		o.problems.duration("timeout", d, 1)
		o.timeout = d
	}
}

// Deadline makes the message worthless from t on: a worker drops it unsent and
// counts it. The default is the class's: 10 minutes for a one-time code, none
// otherwise.
func Deadline(t time.Time) Option {
	return func(o *jobOptions) {
		if t.IsZero() {
			o.problems.add("deadline", "is the zero time: set it, or leave the option out")
		}
		o.deadline = t
	}
}

// Retention is how long the finished job stays visible. It is rounded up to a
// second; the default is 24 hours. Zero removes the job as soon as it is done.
func Retention(d time.Duration) Option {
	return func(o *jobOptions) {
		o.problems.duration("retention", d, 0)
		o.retention = d
	}
}

// IdempotencyKey makes the call safe to repeat: see the package comment. It has
// 1 to 256 bytes and should name the event, such as invoice-4711-paid, not the
// call. A call that takes over from one whose outcome is unknown keeps the queue
// of that one, because job ids are unique per queue only.
func IdempotencyKey(key string) Option {
	return func(o *jobOptions) {
		if key == "" || len(key) > 256 {
			o.problems.add("idempotency_key", "must have 1 to 256 bytes")
		}
		o.key = key
	}
}

// JobID sets the job's id, a UUID in lower case, in place of a new one, for a job that
// must exist once in its queue. If a job of that id is there, also a finished one within
// its retention, none is made, and the receipt is that of the one that is there, with
// Duplicate set. It cannot be combined with IdempotencyKey, which also holds across
// queues and after the job is gone.
func JobID(id string) Option {
	return func(o *jobOptions) {
		o.problems.uuid("job_id", id)
		o.id = &id
	}
}

// Queue puts the job into the named queue, behind the producer's namespace,
// whatever its class and Priority: email:critical, email:default, email:bulk, or
// another name that begins with email: and that a worker's QUEUES lists; for
// notifications the same with notification: in front. A job in a queue that nobody
// consumes would wait for ever.
func Queue(name string) Option {
	return func(o *jobOptions) {
		if !queueName.MatchString(name) {
			o.problems.add("queue", "must be email: or notification: followed by 1 to 24 lower-case letters, digits, - and _, such as email:bulk")
		}
		o.queue = name
	}
}

// EmailQueue returns the name of the email queue with the given priority, such
// as email:critical, or staging:email:critical in the namespace staging.
func EmailQueue(namespace string, p PriorityLevel) string {
	return inNamespace(namespace, "email:"+string(p))
}

// NotificationQueue returns the name of the queue of notifications with the given
// priority, such as notification:critical, as EmailQueue does. It also holds the jobs
// that workers make of notifications.
func NotificationQueue(namespace string, p PriorityLevel) string {
	return inNamespace(namespace, "notification:"+string(p))
}

func inNamespace(namespace, queue string) string {
	if namespace == "" {
		return queue
	}
	return namespace + ":" + queue
}

// The braces of a cluster's hash tag, white space and slashes would be accepted
// by asynq and break it, or its dashboard, later.
var (
	queueName     = regexp.MustCompile(`^(email|notification):[a-z0-9_-]{1,24}$`)
	namespaceName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)
)

func (p *problems) duration(field string, d, least time.Duration) {
	switch {
	case d < least && least > 0:
		p.add(field, "must be more than zero")
	case d < least:
		p.add(field, "must not be negative")
	case d > maxAhead:
		p.add(field, "must be at most %d days", maxAhead/(24*time.Hour))
	}
}

// wholeSeconds rounds up: asynq cuts off what is below a second, and takes a
// timeout of zero for its own default of half an hour.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// A plan is the outcome of options, class and clock.
type plan struct {
	queue      string
	enqueuedAt time.Time
	processAt  time.Time // not before enqueuedAt
	expiresAt  time.Time // zero: never
	maxRetry   int
	timeout    time.Duration
	retention  time.Duration
	key        string
	givenID    string // empty: the job gets a new one
}

// shared reports whether other calls may enqueue the same job.
func (p *plan) shared() bool { return p.key != "" || p.givenID != "" }

// giveID sets the id of a job whose fields make it.
func (p *plan) giveID(id string) (bad problems) {
	const problem = "is refused for jobs whose id follows from what they are"
	if p.givenID != "" {
		bad.add("job_id", problem)
	}
	if p.key != "" {
		bad.add("idempotency_key", problem)
	}
	p.givenID = id
	return bad
}

// tooLate reports what of n would be dropped unsent for sure.
func (p *plan) tooLate(n Notification) (bad problems) {
	if p.expiresAt.IsZero() {
		return nil
	}
	const problem = "ends when the deadline has passed: give a later deadline, or another class"
	left := Duration(p.expiresAt.Sub(p.processAt))
	for i, step := range n.Plan {
		if step.After >= left {
			bad.add(fmt.Sprintf("plan[%d].after", i), problem)
		}
	}
	if n.Digest != nil && n.Digest.Window >= left {
		bad.add("digest.window", problem)
	}
	return bad
}

// delayed reports whether the job waits before it may run.
func (p plan) delayed() bool { return p.processAt.After(p.enqueuedAt) }

// window is how long the job's idempotency record has to live.
func (p plan) window() time.Duration {
	from := p.processAt
	if p.expiresAt.After(from) {
		from = p.expiresAt
	}
	return max(24*time.Hour, p.retention) + from.Sub(p.enqueuedAt)
}

func makePlan(opts []Option, typ jobType, class Class, namespace string, now time.Time) (plan, []error) {
	policy := class.policy()
	o := jobOptions{priority: policy.Priority, maxRetry: policy.MaxRetry, timeout: DefaultTimeout, retention: DefaultRetention}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	p := plan{
		enqueuedAt: now, processAt: now, maxRetry: o.maxRetry, key: o.key,
		timeout: wholeSeconds(o.timeout), retention: wholeSeconds(o.retention),
	}
	if o.queue != "" {
		p.queue = inNamespace(namespace, o.queue)
		if family, _, _ := strings.Cut(o.queue, ":"); queueName.MatchString(o.queue) && family != typ.family() {
			o.problems.add("queue", "is one for another type of job: it must begin with %s:", typ.family())
		}
	} else {
		p.queue = inNamespace(namespace, typ.family()+":"+string(o.priority))
	}
	if o.id != nil {
		p.givenID = *o.id
		if o.key != "" {
			o.problems.add("job_id", "cannot be combined with an idempotency key")
		}
	}
	if o.at.After(now) {
		o.problems.duration("at", o.at.Sub(now), 0)
		p.processAt = o.at.UTC().Round(0)
	} else if o.delay > 0 {
		p.processAt = now.Add(o.delay)
	}
	switch {
	case !o.deadline.IsZero():
		if !o.deadline.After(p.processAt) {
			o.problems.add("deadline", "must be later than now and than the time at which the job may run: it would be dropped unsent")
		}
		o.problems.duration("deadline", max(0, o.deadline.Sub(now)), 0)
		p.expiresAt = o.deadline
	case policy.Expiry > 0:
		p.expiresAt = p.processAt.Add(policy.Expiry)
	}
	return p, o.problems
}
