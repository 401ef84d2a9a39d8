package devbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// runner is the worker. A worker's templates never change, so an edit ends it as
// a deployment would and starts the next: jobs wait in Redis meanwhile.
type runner struct {
	cfg   worker.Config
	redis rediskit.Config
	mail  *mailer.Mailer
	// channels makes those of cfg over the connection of a worker.
	channels func(rdb redis.UniversalClient, namespace string) (map[tasks.Channel]notifier.Channel, error)
	log      zerolog.Logger

	mu   sync.Mutex // held while one replaces the other
	now  *worker.Worker
	conn *rediskit.Client // of now, and closed with it
}

// start runs a worker with set, in the place of the one that runs now.
func (r *runner) start(ctx context.Context, set *templates.Set) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.end(ctx); err != nil {
		return err
	}
	conn, err := rediskit.Open(ctx, r.redis)
	if err != nil {
		return err
	}
	w, err := r.worker(conn, set)
	if err == nil {
		err = w.Start(ctx)
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	r.now, r.conn = w, conn
	return nil
}

func (r *runner) worker(conn *rediskit.Client, set *templates.Set) (*worker.Worker, error) {
	channels, err := r.channels(conn, r.cfg.Namespace)
	if err != nil {
		return nil, fmt.Errorf("set up the channels: %w", err)
	}
	cfg := r.cfg
	cfg.Channels, cfg.Webhooks = channels, webhook.NewLog(conn, cfg.Namespace)
	return worker.New(cfg, conn, set, r.mail, r.log)
}

func (r *runner) stop(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.end(ctx)
}

// end is stop for callers that hold mu.
func (r *runner) end(ctx context.Context) error {
	if r.now == nil {
		return nil
	}
	err := errors.Join(r.now.Stop(ctx), r.conn.Close())
	r.now, r.conn = nil, nil
	return err
}

// ready is the check "worker" of /readyz.
func (r *runner) ready(context.Context) error {
	if !r.mu.TryLock() {
		return errors.New("the worker is being replaced")
	}
	defer r.mu.Unlock()
	if r.now == nil {
		return errors.New("the worker does not run")
	}
	return r.now.Ready()
}
