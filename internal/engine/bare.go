package engine

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bare is the engine's scripts without asynq, for benchmarks: what this Redis can
// do with them. It takes jobs and says that they ended, and nothing else: no
// leases are extended, nothing waits for work. It is for one goroutine.
type Bare struct {
	fetch *fetcher
	rdb   redis.UniversalClient
	jobs  int
}

// BareJob is a job that was taken.
type BareJob struct {
	job

	// Message is what asynq keeps of the job, with the payload in it.
	Message string
}

// NewBare returns the scripts for a worker of queues, with their weights, and so
// many jobs at once.
func NewBare(rdb redis.UniversalClient, queues map[string]int, jobs int) *Bare {
	return &Bare{fetch: newFetcher(Config{Queues: queues}, newSlots(jobs), false), rdb: rdb, jobs: jobs}
}

// Take takes as many jobs as there are, up to the number given to NewBare, with a
// lease of half a minute.
func (b *Bare) Take(ctx context.Context) ([]BareJob, error) {
	t, _ := b.fetch.plan(b.jobs, time.Now().Add(30*time.Second).Unix(), false)
	some, err := b.fetch.read(t.call(b.fetch.queues).run(ctx, b.rdb), b.fetch.queues)
	if err != nil {
		return nil, err
	}
	jobs := make([]BareJob, len(some.jobs))
	for i, f := range some.jobs {
		jobs[i] = BareJob{f.job, f.msg}
	}
	return jobs, nil
}

// Finish says that jobs succeeded and need not be kept.
func (b *Bare) Finish(ctx context.Context, jobs []BareJob) error {
	now := time.Now()
	batch := make([]*ending, len(jobs))
	for i, j := range jobs {
		batch[i] = &ending{
			kind: doneCall, job: j.job, expiry: now.Add(90 * 24 * time.Hour).Unix(),
			day: prefixOf(j.queue) + "processed:" + now.UTC().Format(time.DateOnly),
		}
	}
	settle(batch, finishing(batch).run(ctx, b.rdb))
	var errs []error
	for _, e := range batch {
		errs = append(errs, e.err)
	}
	return errors.Join(errs...)
}
