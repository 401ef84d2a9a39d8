package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/wake"
	"github.com/medicalink/postroom/rediskit"
)

// rescuer shows that this process lives and hands back the jobs of those that
// no longer do.
//
// asynq leaves a dead worker's job alone for its lease of 30 s, 30 s more in
// case of clock skew, and up to a minute until somebody looks; then it costs an
// attempt. The ledger knows who runs each job, and Redis' own clock ends the
// sign of life, so neither allowance is needed here. A job that was fetched and
// not begun has no owner in the ledger; it comes back when its lease is over.
//
// A process that is frozen, not dead, loses its jobs too. That is safe: the
// ledger refuses it the final dot.
type rescuer struct {
	rdb    redis.UniversalClient
	worker string
	queues []string
	ttl    time.Duration
	quiet  func() bool // no job is running anywhere
	log    zerolog.Logger

	named time.Time // when the queues were last announced

	mu      sync.Mutex
	lastOK  time.Time // of the last sign of life that Redis took
	okSince time.Time // since when it took them without a gap

	quit chan struct{}
	done chan struct{}
}

func newRescuer(kit *rediskit.Client, worker string, cfg Config, quiet func() bool, log zerolog.Logger) *rescuer {
	r := &rescuer{
		rdb:    kit.Dedicated("rescue"),
		worker: worker,
		ttl:    cfg.Liveness,
		quiet:  quiet,
		log:    log,
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	for q := range cfg.Queues {
		r.queues = append(r.queues, q)
	}
	slices.Sort(r.queues)
	return r
}

func (r *rescuer) start(ctx context.Context) error {
	if err := r.beat(ctx); err != nil {
		return fmt.Errorf("show a sign of life in Redis: %w", err)
	}
	go r.run()
	return nil
}

// stop withdraws the sign of life, so that whatever is left can be rescued at once.
func (r *rescuer) stop(ctx context.Context) error {
	close(r.quit)
	<-r.done
	if err := r.rdb.Del(ctx, ledger.WorkerKey(r.worker)).Err(); err != nil {
		return fmt.Errorf("withdraw the sign of life: %w", err)
	}
	return nil
}

// beats is the number of signs of life in the time after which one has run out.
const beats = 3

// republish is how often the names of the queues are announced.
const republish = 30 * time.Second

func (r *rescuer) run() {
	defer close(r.done)
	period := r.ttl / beats
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-r.quit:
			return
		case <-tick.C:
			r.tick(period)
		}
	}
}

// tick is one round. A panic costs the round and not the process.
func (r *rescuer) tick(period time.Duration) {
	defer func() {
		if x := recover(); x != nil {
			r.log.Error().Str("panic_type", fmt.Sprintf("%T", x)).Bytes("stack", debug.Stack()).Msg("rescue panicked")
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), period)
	defer cancel()
	if err := r.beat(ctx); err != nil {
		r.log.Warn().Err(err).Msg("no sign of life: Redis does not answer")
		return
	}
	if !r.settled() || r.quiet() {
		return
	}
	if err := r.sweep(); err != nil {
		r.log.Warn().Err(err).Msg("could not look for jobs of dead workers")
	}
}

// beat renews the sign of life and the names of the queues: asynq's producers
// publish a queue once in their life, and after a FLUSHALL or a failover it
// would stay invisible to every tool.
func (r *rescuer) beat(ctx context.Context) error {
	names := make([]any, len(r.queues))
	for i, q := range r.queues {
		names[i] = q
	}
	_, err := r.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, ledger.WorkerKey(r.worker), time.Now().UTC().Format(time.RFC3339), r.ttl)
		if time.Since(r.named) >= republish {
			p.SAdd(ctx, "asynq:queues", names...)
		}
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if err != nil {
		r.okSince = time.Time{}
		return err
	}
	if r.okSince.IsZero() {
		r.okSince = now
	}
	if now.Sub(r.named) >= republish {
		r.named = now
	}
	r.lastOK = now
	return nil
}

// settled is true once Redis has been there for longer than a sign of life
// lasts: right after an outage everybody looks dead.
func (r *rescuer) settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.okSince.IsZero() && time.Since(r.okSince) > r.ttl
}

func (r *rescuer) healthy() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if since := time.Since(r.lastOK); since > r.ttl {
		return fmt.Errorf("redis has taken no sign of life for %v", since.Round(time.Second))
	}
	return nil
}

// sweepKey is held by the one replica that sweeps.
const sweepKey = "postroom:rescue"

// maxSweep bounds the jobs looked at per queue and sweep.
const maxSweep = 5000

func (r *rescuer) sweep() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.ttl)
	defer cancel()
	// One replica sweeps per period; the lock is only thrift, requeueScript is
	// what makes two sweeps at once harmless.
	ok, err := r.rdb.SetNX(ctx, sweepKey, r.worker, r.ttl/beats+rand.N(r.ttl/10+1)).Result()
	if err != nil {
		return fmt.Errorf("take the turn to sweep: %w", err)
	}
	if !ok {
		return nil
	}
	var errs []error
	for _, q := range r.queues {
		if err := r.sweepQueue(ctx, q); err != nil {
			errs = append(errs, fmt.Errorf("sweep queue %s: %w", q, err))
		}
	}
	return errors.Join(errs...)
}

func (r *rescuer) sweepQueue(ctx context.Context, queue string) error {
	// The oldest first: a process that lives renews its leases.
	leases, err := r.rdb.ZRangeWithScores(ctx, "asynq:{"+queue+"}:lease", 0, maxSweep-1).Result()
	if err != nil || len(leases) == 0 {
		return err
	}
	owners := make([]*redis.StringCmd, len(leases))
	if _, err := r.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, z := range leases {
			owners[i] = p.HGet(ctx, ledger.JobKey(z.Member.(string)), ledger.OwnerField)
		}
		return nil
	}); err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	now, err := r.rdb.Time(ctx).Result()
	if err != nil {
		return err
	}
	alive := make(map[string]bool)
	for i, z := range leases {
		owner := owners[i].Val()
		lives, known := alive[owner]
		switch {
		case owner == "":
			// Fetched and not begun, or a stock asynq worker's: whoever has it
			// renews the lease every five seconds.
			lives = z.Score >= float64(now.Unix())
		case !known:
			n, err := r.rdb.Exists(ctx, ledger.WorkerKey(owner)).Result()
			if err != nil {
				return err
			}
			lives = n == 1
			alive[owner] = lives
		}
		if lives {
			continue
		}
		if err := r.requeue(ctx, queue, z); err != nil {
			return err
		}
	}
	return nil
}

// requeueScript is asynq's requeue, on the condition that the lease is still the
// one of the dead worker: a later activation has a later lease.
//
// KEYS: lease, active, pending, task, wake marker. ARGV: id, score.
var requeueScript = redis.NewScript(wake.Lua + `
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('LREM', KEYS[2], 0, ARGV[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[4]) == 0 then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[4], 'state', 'pending')
wake(KEYS[5])
return 1`)

func (r *rescuer) requeue(ctx context.Context, queue string, z redis.Z) error {
	id := z.Member.(string)
	prefix := "asynq:{" + queue + "}:"
	n, err := requeueScript.Run(ctx, r.rdb, []string{prefix + "lease", prefix + "active", prefix + "pending", prefix + "t:" + id, wake.Key(queue)}, id, z.Score).Int()
	if err != nil {
		return fmt.Errorf("hand back a dead worker's job: %w", err)
	}
	if n == 1 {
		r.log.Warn().Str(fieldTask, id).Str(fieldQueue, queue).Msg("job handed back: its worker is dead")
	}
	return nil
}
