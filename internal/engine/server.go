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
)

const (
	// fetchInterval is how often an idle server looks for work, give or take half.
	fetchInterval = 100 * time.Millisecond

	// forwardInterval is how often delayed and retried jobs that are due are put
	// into their queue; asynq's own default of five seconds is too coarse for a
	// one-time code.
	forwardInterval = 250 * time.Millisecond
)

// Config is what postroom decides about an asynq server.
type Config struct {
	// Queues maps full queue names to their weights.
	Queues map[string]int
	// StrictPriority empties a heavier queue before a lighter one is looked at.
	StrictPriority bool
	// Concurrency is the number of jobs that run at once.
	Concurrency int
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
	stopping chan struct{}
	stopOnce sync.Once
	log      zerolog.Logger
}

// NewServer returns a server on two clients of its own: asynq's, which gets the
// hook, and plain, through which the hook does its work. It starts nothing.
func NewServer(rdb, plain redis.UniversalClient, cfg Config, log zerolog.Logger) (*Server, error) {
	// Acknowledgements of many handlers share round trips.
	acks, err := plain.AutoPipeline()
	if err != nil {
		return nil, fmt.Errorf("pipeline acknowledgements: %w", err)
	}
	_, cluster := plain.(*redis.ClusterClient)
	s := &Server{stopping: make(chan struct{}), log: log}
	s.seam = &seam{
		plain:    plain,
		acks:     acks,
		fetch:    newFetcher(cfg.Queues, cfg.StrictPriority, cfg.Concurrency, cluster),
		stopping: s.stopping,
	}
	rdb.AddHook(s.seam)
	s.asynq = asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Queues:                   cfg.Queues,
		StrictPriority:           cfg.StrictPriority,
		Concurrency:              cfg.Concurrency,
		ShutdownTimeout:          cfg.ShutdownTimeout,
		TaskCheckInterval:        fetchInterval,
		DelayedTaskCheckInterval: forwardInterval,
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
	counted := asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
		defer s.seam.fetch.returned.Add(1)
		return h.ProcessTask(ctx, t)
	})
	if err := s.asynq.Start(counted); err != nil {
		return fmt.Errorf("start the asynq server: %w", err)
	}
	return nil
}

// Stop fetches no more, waits for what runs, for as long as the configured
// timeout, and hands the rest back to the queues. It bears a second call.
func (s *Server) Stop() {
	s.stopOnce.Do(func() { close(s.stopping) })
	s.asynq.Shutdown()
	if err := handBack(context.Background(), s.seam.plain, s.seam.fetch.close()); err != nil {
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
		return f(n, e, t)
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
