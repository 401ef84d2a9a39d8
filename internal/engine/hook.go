package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// ackTimeout bounds a command that asynq sends with a cancelled context.
	ackTimeout = 3 * time.Second

	minBackoff = 250 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// seam is the hook on the client of one asynq server.
type seam struct {
	plain    redis.Scripter // a client without this hook, for the engine's own scripts
	fetch    *fetcher
	acks     *redis.AutoPipeliner
	stopping <-chan struct{} // closed at shutdown: nobody waits any more
	failures atomic.Int32    // scripts that failed in a row
}

// batches is false in tests of the hook alone.
func (s *seam) batches() bool { return s.fetch != nil }

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
		var err error
		switch {
		case s.batches() && isFetch(cmd):
			err = s.fetch.answer(ctx, cmd.(*redis.Cmd), s.plain)
		case s.batches() && isAck(cmd):
			s.fetch.acking.Add(1)
			err = s.acks.Process(ctx, cmd)
			s.fetch.acking.Add(-1)
		default:
			err = next(ctx, cmd)
		}
		switch {
		case cmd.Name() != "evalsha" && cmd.Name() != "eval":
		case !outage(err):
			s.failures.Store(0)
		default:
			s.wait(ctx)
		}
		return err
	}
}

// outage tells an answer that scripts give in normal work from a Redis that is
// away, full, read-only or refuses us.
func outage(err error) bool {
	return err != nil && !errors.Is(err, redis.Nil) &&
		!redis.HasErrorPrefix(err, "NOSCRIPT") && !redis.HasErrorPrefix(err, "NOT FOUND") && !redis.HasErrorPrefix(err, "INTERNAL")
}

// wait holds the caller up for 250 ms after the first failure in a row and up to
// 2 s later on, with half of it at random so that a fleet does not knock in step.
func (s *seam) wait(ctx context.Context) {
	n := min(s.failures.Add(1), 8)
	d := min(minBackoff<<(n-1), maxBackoff)
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-s.stopping:
	}
}
