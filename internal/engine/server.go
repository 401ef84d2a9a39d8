package engine

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/rediskit"
)

const (
	// fetchInterval is asynq's pause after a fetch that found nothing. Its fetches
	// wait inside the fetcher, so the pause is as short as can be.
	fetchInterval = time.Millisecond

	// forwardInterval is how often asynq asks to forward delayed jobs; the watcher
	// does that, and asynq's question goes to Redis only if it is not recognised.
	forwardInterval = time.Second

	// janitorInterval is how often finished jobs whose retention is over are
	// deleted.
	janitorInterval = time.Minute

	// recogniseTimeout is how soon after its start asynq's first fetch is expected.
	recogniseTimeout = 10 * time.Second
)

// Config is what postroom decides about an asynq server.
type Config struct {
	// Queues maps full queue names to their weights.
	Queues map[string]int
	// StrictPriority empties a heavier queue before a lighter one is looked at.
	StrictPriority bool
	// Concurrency is the number of jobs that run at once. A tenth of it, one at
	// least, is kept for the queues with the highest weight if there are others.
	Concurrency int
	// Limits bounds the jobs of a queue that this process runs at once. Limits of
	// the whole fleet are set with [Gate.SetLimits].
	Limits map[string]int
	// Admit says how many jobs of a queue may be fetched now, and if fewer than
	// the server has slots for, in how long to ask again; zero leaves that to the
	// regular look, once a second. It is for circuit breakers: a job behind an open
	// one stays in its queue. It is called often, from several goroutines, and must
	// not block. Nil admits all.
	Admit func(queue string) (n int, again time.Duration)
	// ShutdownTimeout is how long Stop waits for running jobs before it hands them back.
	ShutdownTimeout time.Duration
	// RetryDelay says when a failed job is tried again.
	RetryDelay func(retried int, err error, t *asynq.Task) time.Duration
	// IsFailure says whether an error costs the job an attempt.
	IsFailure func(err error) bool
}

// Server is one asynq server behind the seam.
type Server struct {
	asynq    *asynq.Server
	seam     *seam
	watcher  *watcher
	plain    redis.UniversalClient
	stopping chan struct{}
	stopOnce sync.Once
	log      zerolog.Logger
}

// NewServer returns a server on two clients of its own: asynq's, which gets the
// hook, and plain, through which the engine does its work. It starts nothing.
func NewServer(rdb, plain redis.UniversalClient, cfg Config, log zerolog.Logger) (*Server, error) {
	for q := range cfg.Limits {
		if _, ok := cfg.Queues[q]; !ok {
			return nil, fmt.Errorf("set up the engine: a limit is set for queue %s, which is not consumed", q)
		}
	}
	if rc, ok := plain.(*rediskit.Client); ok {
		plain = rc.UniversalClient
	}
	_, cluster := plain.(*redis.ClusterClient)
	stopping := make(chan struct{})
	jobs := newSlots(cfg.Concurrency)
	pump := newPump(plain, newFetcher(cfg, jobs, cluster), jobs, stopping)
	s := &Server{plain: plain, watcher: newWatcher(plain, pump, log), stopping: stopping, log: log}
	s.seam = &seam{
		pump:     pump,
		slots:    jobs,
		beats:    &beats{slots: jobs, now: time.Now, stopping: stopping},
		quiet:    s.Quiet,
		stopping: stopping,
		log:      log,
	}
	rdb.AddHook(s.seam)
	s.asynq = asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Queues:                   cfg.Queues,
		StrictPriority:           cfg.StrictPriority,
		Concurrency:              cfg.Concurrency,
		ShutdownTimeout:          cfg.ShutdownTimeout,
		TaskCheckInterval:        fetchInterval,
		DelayedTaskCheckInterval: forwardInterval,
		JanitorInterval:          janitorInterval,
		RetryDelayFunc:           s.retryDelay(cfg.RetryDelay),
		IsFailure:                s.isFailure(cfg.IsFailure),
		Logger:                   logger{log},
		LogLevel:                 asynq.InfoLevel,
	})
	return s, nil
}

// Start begins to fetch. The handler is called on as many goroutines as the
// concurrency allows.
func (s *Server) Start(h asynq.Handler) error {
	s.seam.pump.start()
	if err := s.asynq.Start(h); err != nil {
		s.seam.pump.close()
		return fmt.Errorf("start the asynq server: %w", err)
	}
	s.watcher.start()
	time.AfterFunc(recogniseTimeout, func() {
		if !s.seam.fetches.Load() && !s.watcher.stopped() {
			s.log.Warn().Msg("asynq asks for jobs in a way that this engine does not know: jobs are fetched one by one, which is correct and slow; the engine needs to learn the new way")
		}
	})
	return nil
}

// Quiet is true when, as of about a second ago, Redis held no job for this server
// to run or rescue: none pending, delayed or running.
func (s *Server) Quiet() bool { return s.watcher.quiet.Load() }

// Stop fetches no more, waits for what runs, for as long as the configured
// timeout, and hands the rest back to the queues. It bears a second call.
func (s *Server) Stop() {
	s.stopOnce.Do(func() { close(s.stopping) })
	s.asynq.Shutdown()
	s.watcher.stop()
	if err := handBack(context.Background(), s.plain, s.seam.pump.close()); err != nil {
		s.log.Warn().Err(err).Msg("a job that was not started comes back when its lease is over")
	}
}

// fallbackDelay is the pause before the next attempt when the callback that
// should have said so panicked.
const fallbackDelay = time.Minute

// asynq calls RetryDelayFunc and IsFailure on goroutines without a recover: a
// panic there would end the process and every job in it.

func (s *Server) retryDelay(f func(int, error, *asynq.Task) time.Duration) asynq.RetryDelayFunc {
	return func(n int, e error, t *asynq.Task) (d time.Duration) {
		defer s.contain("retry delay", func() { d = fallbackDelay })
		// asynq cuts the time off to a whole second, and a relay that asked for
		// patience must not be asked too early.
		return f(n, e, t) + time.Second - 1
	}
}

func (s *Server) isFailure(f func(error) bool) func(error) bool {
	return func(err error) (failed bool) {
		defer s.contain("failure predicate", func() { failed = true })
		return f(err)
	}
}

func (s *Server) contain(what string, then func()) {
	if x := recover(); x != nil {
		// The panic's value may hold a payload; its type and the stack do not.
		s.log.Error().Str("callback", what).Str("panic_type", fmt.Sprintf("%T", x)).Bytes("stack", debug.Stack()).Msg("callback panicked")
		then()
	}
}

// logger hands asynq's lines to zerolog. What asynq calls info is our debug:
// each job already has a line of its own.
type logger struct{ log zerolog.Logger }

func (l logger) Debug(args ...any) { l.log.Trace().Msg(fmt.Sprint(args...)) }
func (l logger) Info(args ...any)  { l.log.Debug().Msg(fmt.Sprint(args...)) }
func (l logger) Warn(args ...any)  { l.log.Debug().Msg(fmt.Sprint(args...)) }
func (l logger) Error(args ...any) { l.log.Warn().Msg(fmt.Sprint(args...)) }

// Fatal must end the process by asynq's contract; asynq 0.26 never calls it.
func (l logger) Fatal(args ...any) { l.log.Fatal().Msg(fmt.Sprint(args...)) }
