package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

const (
	// ackTimeout bounds a command that asynq sends with a cancelled context.
	ackTimeout = 3 * time.Second

	minBackoff = 250 * time.Millisecond
	maxBackoff = 2 * time.Second

	// unknownPace is the pause after an unknown script that found nothing: asynq's
	// loops are set to ask at once, because the fetcher makes them wait.
	unknownPace = 50 * time.Millisecond
)

// seam is the hook on the client of one asynq server.
type seam struct {
	pump     *pump
	slots    *slots
	beats    *beats
	quiet    func() bool // no job is anywhere, as of a second ago
	stopping <-chan struct{}
	log      zerolog.Logger

	scripts  recogniser
	fetches  atomic.Bool  // asynq's fetch was recognised
	failures atomic.Int32 // scripts that failed in a row
	unknown  sync.Map     // shapes that were logged
}

func (s *seam) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (s *seam) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *seam) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if errors.Is(ctx.Err(), context.Canceled) {
			alive, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
			defer cancel()
			ctx = alive
		}
		kind, shape := s.scripts.recognise(cmd)
		err := s.process(ctx, cmd, kind, shape, next)
		switch {
		case kind == notScript:
		case !outage(err):
			s.failures.Store(0)
		default:
			s.wait(ctx, backoff(int(s.failures.Add(1))))
		}
		return err
	}
}

// process does what asynq asks for with cmd, in the engine's way if it has one.
func (s *seam) process(ctx context.Context, cmd redis.Cmder, kind call, shape string, next redis.ProcessHook) error {
	script, ok := cmd.(*redis.Cmd)
	if !ok && kind != notScript {
		return next(ctx, cmd)
	}
	switch kind {
	case fetchCall:
		_, args, _ := parts(cmd)
		expiry, ok := args[0].(int64)
		if !ok {
			return next(ctx, cmd)
		}
		s.fetches.Store(true)
		return s.pump.answer(ctx, script, time.Unix(expiry, 0))
	case doneCall, completeCall, retryCall:
		e, err := newEnding(kind, cmd)
		if err != nil {
			return next(ctx, cmd)
		}
		if err := s.pump.finish(ctx, e); err != nil {
			cmd.SetErr(err)
			return err
		}
		script.SetVal("OK")
		return nil
	case otherAck:
		err := next(ctx, cmd)
		if keys, args, _ := parts(cmd); len(args) > 0 {
			id, _ := args[0].(string)
			s.slots.release([]*ending{{job: job{queue: queueOf(keys[0]), id: id}}})
			s.pump.freed()
		}
		return err
	case forwardCall, reclaimCall:
		// The watcher forwards. Groups are not ours: a server without an aggregator
		// has no aggregation sets to put back.
		script.SetVal(int64(0))
		return nil
	case expiredCall:
		if s.quiet() {
			script.SetVal([]any{})
			return nil
		}
		return next(ctx, cmd)
	case heartbeatCall:
		return s.beats.state(ctx, script, next)
	case unknownCall:
		if _, seen := s.unknown.LoadOrStore(shape, true); !seen {
			s.log.Warn().Str("shape", shape).Msg("asynq sends a script that this engine does not know: it goes through unchanged, which is correct and may be slow; the engine needs to learn it")
		}
		err := next(ctx, cmd)
		if errors.Is(err, redis.Nil) {
			s.wait(ctx, unknownPace)
		}
		return err
	default:
		if zadd, ok := cmd.(*redis.IntCmd); ok {
			return s.beats.listing(ctx, zadd, next)
		}
		return next(ctx, cmd)
	}
}

// outage tells an answer that scripts give in normal work from a Redis that is
// away, full, read-only or refuses us.
func outage(err error) bool {
	return err != nil && !errors.Is(err, redis.Nil) &&
		!redis.HasErrorPrefix(err, "NOSCRIPT") && !redis.HasErrorPrefix(err, "NOT FOUND") && !redis.HasErrorPrefix(err, "INTERNAL")
}

// backoff is 250 ms after the first failure in a row and up to 2 s later on, with
// half of it at random so that a fleet does not knock in step.
func backoff(failures int) time.Duration {
	d := min(minBackoff<<(min(failures, 8)-1), maxBackoff)
	return d/2 + rand.N(d/2+1)
}

// wait holds the caller up.
func (s *seam) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-s.stopping:
	}
}
