package engine

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// asynq writes its server's state every five seconds with a life of ten. An
	// idle server's state does not change, so most of that is left out, and what
	// is written lives longer.
	idleBeat = 20 * time.Second
	idleLife = 45 * time.Second
)

// beats thins out the heartbeat of a server that has nothing to do, and learns
// from that of a busy one which jobs asynq runs. asynq's heartbeat comes from one
// goroutine: two listings, then the state.
type beats struct {
	slots    *slots
	now      func() time.Time
	stopping <-chan struct{}

	written time.Time // when the idle state was; zero: the server was busy
}

// fresh is true while the idle state in Redis can stand. At shutdown the state
// changes.
func (b *beats) fresh() bool {
	select {
	case <-b.stopping:
		return false
	default:
		return b.now().Sub(b.written) < idleBeat
	}
}

// state passes asynq's state on, unless it is that of an idle server and stands.
func (b *beats) state(ctx context.Context, cmd *redis.Cmd, next redis.ProcessHook) error {
	_, args, _ := parts(cmd)
	running := make(map[string]bool, len(args)/2)
	for i := 2; i < len(args); i += 2 {
		if id, ok := args[i].(string); ok {
			running[id] = true
		}
	}
	b.slots.reconcile(running, b.now())
	if len(running) > 0 {
		b.written = time.Time{}
		return next(ctx, cmd)
	}
	if b.fresh() {
		cmd.SetVal("OK")
		return nil
	}
	args[0] = idleLife.Seconds()
	err := next(ctx, cmd)
	if err == nil {
		b.written = b.now()
	}
	return err
}

// listing passes asynq's entry in the set of servers or workers on, unless it
// belongs to a state that stands.
func (b *beats) listing(ctx context.Context, cmd *redis.IntCmd, next redis.ProcessHook) error {
	args := cmd.Args()
	if cmd.Name() != "zadd" || len(args) != 4 || (args[1] != "asynq:servers" && args[1] != "asynq:workers") {
		return next(ctx, cmd)
	}
	score, ok := args[2].(float64)
	if !ok {
		return next(ctx, cmd)
	}
	if b.fresh() {
		return nil
	}
	args[2] = max(score, float64(b.now().Add(idleLife).Unix()))
	return next(ctx, cmd)
}
