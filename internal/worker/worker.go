package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/medicalink/postroom/internal/audit"
	"github.com/medicalink/postroom/internal/digest"
	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/internal/inbox"
	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/preferences"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// Config says what a worker consumes and how. The zero value of a field is its
// documented default.
type Config struct {
	// Queues maps full queue names, namespace included, to weights. Required.
	Queues map[string]int
	// StrictPriority empties a heavier queue before a lighter one is looked at.
	StrictPriority bool
	// Concurrency is the number of jobs that run at once. Default 20.
	Concurrency int
	// ShutdownTimeout is how long Stop lets running jobs finish before it hands
	// them back. Default 30 s. The container's grace period must be longer.
	ShutdownTimeout time.Duration
	// Namespace is the part of the queue names in front of email: and notification:,
	// without the colon. Empty for none.
	Namespace string
	// From is the sender of a message that names none. Required.
	From string
	// AppURL is where the platform's pages are, such as https://app.medicalink.example:
	// in front of the paths that notifications lead to. Without it they carry no link
	// outside the app.
	AppURL string
	// ActionHosts are further hosts, with a port if it is not the usual one, that a
	// notification may lead to.
	ActionHosts []string
	// Channels are the ways out for notifications: push, sms, chat and webhook. A step
	// on one that is missing is archived. In-app and email need none.
	Channels map[tasks.Channel]notifier.Channel
	// Webhooks keeps the webhooks that went out, for replays. Nil keeps none.
	Webhooks *webhook.Log

	// Liveness is how long after its last sign of life a process counts as dead
	// and its jobs are handed to others. Default 15 s.
	Liveness time.Duration
	// DoubtWait is how long a job whose outcome is unknown waits before a class
	// that allows a second copy sends one. Default 1 min.
	DoubtWait time.Duration
}

const (
	defaultConcurrency     = 20
	defaultShutdownTimeout = 30 * time.Second
	defaultLiveness        = 15 * time.Second
	defaultDoubtWait       = time.Minute

	// handBack is the part of the shutdown timeout that is kept for handlers to
	// notice that they must give their job back.
	handBack = 2 * time.Second
)

func (c Config) withDefaults() Config {
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = defaultShutdownTimeout
	}
	if c.Liveness == 0 {
		c.Liveness = defaultLiveness
	}
	if c.DoubtWait == 0 {
		c.DoubtWait = defaultDoubtWait
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if len(c.Queues) == 0 {
		errs = append(errs, errors.New("worker: no queue to consume: set Queues"))
	}
	for name, weight := range c.Queues {
		if weight < 1 {
			errs = append(errs, fmt.Errorf("worker: queue %s has weight %d: give it 1 or more, or leave it out", name, weight))
		}
	}
	if c.Concurrency < 0 {
		errs = append(errs, fmt.Errorf("worker: concurrency %d: give it 1 or more", c.Concurrency))
	}
	if c.From == "" {
		errs = append(errs, errors.New("worker: no sender: set From (MAIL_FROM)"))
	}
	return errors.Join(errs...)
}

// Worker consumes the queues. Make one with New.
type Worker struct {
	cfg       Config
	name      string // of this process, unique
	rdb       redis.UniversalClient
	server    *engine.Server
	ledger    *ledger.Ledger
	rescuer   *rescuer
	templates *templates.Set
	mail      *mailer.Mailer
	log       zerolog.Logger
	now       func() time.Time

	// For notifications.
	producer    *tasks.Producer
	inbox       *inbox.Store
	preferences *preferences.Store
	digests     *digest.Store
	audit       *audit.Log
	push        lister

	handlers map[string]handlerFunc // by job type

	slots *semaphore.Weighted // real handlers; an isolated job takes all of them

	// giveUp ends handlers that are not yet past the point of no return;
	// cutOff ends the others.
	giveUp context.Context //nolint:containedctx // a signal shared by all handlers, not a request's context
	cutOff context.Context //nolint:containedctx // the same
	doGive context.CancelCauseFunc
	doCut  context.CancelCauseFunc

	state atomic.Int32
	rests atomic.Bool // no relay works, and the log says so
}

const (
	stateNew int32 = iota
	stateRunning
	stateStopping
)

// errShutdown is the cause of a handler's end at shutdown.
var errShutdown = errors.New("the worker is shutting down")

// New returns a worker over rdb. It starts nothing. The templates and the mailer
// are the caller's, who closes the mailer after Stop.
func New(cfg Config, rdb *rediskit.Client, set *templates.Set, mail *mailer.Mailer, log zerolog.Logger) (*Worker, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	name := uuid.NewString()
	records := rdb.Dedicated("ledger")
	book, err := ledger.New(records, name)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		cfg:       cfg,
		name:      name,
		rdb:       records,
		ledger:    book,
		templates: set,
		mail:      mail,
		log:       log,
		now:       time.Now,
		slots:     semaphore.NewWeighted(int64(cfg.Concurrency)),
	}
	if err := w.setUpNotifications(); err != nil {
		return nil, err
	}
	w.handlers = map[string]handlerFunc{
		tasks.TypeEmail:        w.sendEmail,
		tasks.TypeNotification: w.sendNotification,
		tasks.TypeDelivery:     w.deliver,
		tasks.TypeDigest:       w.closeDigest,
	}
	w.giveUp, w.doGive = context.WithCancelCause(context.Background())
	w.cutOff, w.doCut = context.WithCancelCause(context.Background())
	w.server, err = engine.NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), engine.Config{
		Queues:          cfg.Queues,
		StrictPriority:  cfg.StrictPriority,
		Concurrency:     cfg.Concurrency,
		ShutdownTimeout: cfg.ShutdownTimeout,
		Admit:           w.admit,
		RetryDelay:      retryDelay,
		IsFailure:       isFailure,
	}, log)
	if err != nil {
		return nil, err
	}
	w.rescuer = newRescuer(rdb, name, cfg, w.server.Quiet, log)
	return w, nil
}

// A lister is a channel with several targets for one user.
type lister interface {
	Targets(ctx context.Context, user string) ([]string, error)
}

func (w *Worker) setUpNotifications() error {
	producer, err := tasks.NewProducer(w.rdb, tasks.FromService("postroom"), tasks.Namespace(w.cfg.Namespace), tasks.TraceFrom(traceOf))
	if err != nil {
		return fmt.Errorf("set up notifications: %w", err)
	}
	w.inbox, err = inbox.New(w.rdb, inbox.Config{Namespace: w.cfg.Namespace})
	if err != nil {
		return fmt.Errorf("set up notifications: %w", err)
	}
	w.producer = producer
	w.preferences = preferences.NewStore(w.rdb, w.cfg.Namespace)
	w.digests = digest.NewStore(w.rdb, w.cfg.Namespace)
	w.audit = audit.NewLog(w.rdb)
	w.push, _ = w.cfg.Channels[tasks.ChannelPush].(lister)
	return nil
}

// traceKey is the key of a job's headers in its context.
type traceKey struct{}

// traceOf finds the trace of the job that ctx is of, for the jobs that come of it.
func traceOf(ctx context.Context) (traceparent, tracestate string) {
	headers, _ := ctx.Value(traceKey{}).(map[string]string)
	return headers[tasks.HeaderTraceParent], headers[tasks.HeaderTraceState]
}

// bare returns a queue's name without the namespace.
func (w *Worker) bare(queue string) string {
	if w.cfg.Namespace == "" {
		return queue
	}
	return strings.TrimPrefix(queue, w.cfg.Namespace+":")
}

// admit keeps mail in its queue while no relay works: a job that is fetched only
// to be deferred costs its place in the line.
func (w *Worker) admit(queue string) (n int, again time.Duration) {
	if !strings.HasPrefix(w.bare(queue), "email:") {
		return math.MaxInt, 0
	}
	n, again = w.mail.Admit()
	switch {
	case n == 0 && w.rests.CompareAndSwap(false, true):
		w.log.Warn().Dur("again", again).Msg("no relay works: mail waits in its queue until one does")
	case n > 1 && w.rests.CompareAndSwap(true, false): // one is a probe
		w.log.Info().Msg("a relay works again: mail goes out")
	}
	return n, again
}

// Start begins to consume. It fails if Redis does not answer, for a worker that
// cannot show a sign of life must not take jobs.
func (w *Worker) Start(ctx context.Context) error {
	if !w.state.CompareAndSwap(stateNew, stateRunning) {
		return errors.New("start the worker: it was started before")
	}
	if err := w.rescuer.start(ctx); err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	w.ledger.Start()
	if err := w.server.Start(asynq.HandlerFunc(w.handle)); err != nil {
		return errors.Join(err, w.ledger.Stop(ctx), w.rescuer.stop(ctx))
	}
	w.log.Info().Str("worker", w.name).Int("concurrency", w.cfg.Concurrency).Interface("queues", w.cfg.Queues).Msg("worker started")
	return nil
}

// Ready is nil while the worker takes jobs.
func (w *Worker) Ready() error {
	switch w.state.Load() {
	case stateNew:
		return errors.New("not started")
	case stateRunning:
		return w.rescuer.healthy()
	default:
		return errShutdown
	}
}

// Stop fetches no more and lets running jobs finish for up to ShutdownTimeout.
// Two seconds before its end, jobs that have not reached the point of no return
// are given back; those that have may take the rest, or until ctx ends. Nothing
// that was given back costs an attempt.
func (w *Worker) Stop(ctx context.Context) error {
	if !w.state.CompareAndSwap(stateRunning, stateStopping) {
		return nil
	}
	w.log.Info().Str("worker", w.name).Dur("timeout", w.cfg.ShutdownTimeout).Msg("worker stops: no new jobs, running ones finish")

	give := time.AfterFunc(max(w.cfg.ShutdownTimeout-handBack, w.cfg.ShutdownTimeout/2), func() { w.doGive(errShutdown) })
	defer give.Stop()
	cut := context.AfterFunc(ctx, func() {
		w.doGive(errShutdown)
		w.doCut(errShutdown)
	})
	defer cut()

	w.server.Stop() // returns after ShutdownTimeout at the latest
	w.doGive(errShutdown)
	w.doCut(errShutdown)

	// asynq may have let go of handlers that still wait for a relay's verdict:
	// they end now, and the ledger must hear of it before it closes.
	var errs []error
	if err := w.slots.Acquire(ctx, int64(w.cfg.Concurrency)); err != nil {
		errs = append(errs, errors.New("stop the worker: handlers still ran at the deadline"))
	}
	errs = append(errs, w.ledger.Stop(ctx), w.rescuer.stop(ctx))
	w.log.Info().Str("worker", w.name).Msg("worker stopped")
	return errors.Join(errs...)
}
