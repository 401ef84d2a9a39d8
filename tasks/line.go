package tasks

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// batchJobs and batchBytes bound what goes to Redis at once. Redis serves nobody
// else while it runs a script: 256 jobs take it about a millisecond.
const (
	batchJobs  = 256
	batchBytes = 1 << 20
)

// batchOf returns how many of n jobs make a batch, and their weight.
func batchOf(n int, weight func(int) int) (jobs, bytes int) {
	for jobs < n && jobs < batchJobs && bytes < batchBytes {
		bytes += weight(jobs)
		jobs++
	}
	return jobs, bytes
}

// flights is how many batches of concurrent calls are on their way to Redis at the
// same time. One more than one hides the way to Redis and back; each further one
// only makes the batches smaller.
const flights = 2

// A line is where the calls of the Send methods queue up while others are on their way to
// Redis, to share the next script call. A call that finds room goes at once and
// alone, in its own goroutine and context.
type line struct {
	mu      sync.Mutex // guards what follows
	flying  int        // at most flights
	waiting []*ticket
}

// A ticket is a call's place in the line.
type ticket struct {
	job  *job
	ctx  context.Context //nolint:containedctx // the batch that takes the job needs the call's deadline
	done chan struct{}   // closed when the job is settled
}

// commit settles j, together with the jobs of other calls if there are any.
func (p *Producer) commit(ctx context.Context, j *job) Result {
	l := &p.line
	l.mu.Lock()
	if l.flying < flights && len(l.waiting) == 0 {
		l.flying++
		l.mu.Unlock()
		defer p.land()
		p.deliver(ctx, []*job{j})
		return j.result
	}
	t := &ticket{job: j, ctx: ctx, done: make(chan struct{})}
	l.waiting = append(l.waiting, t)
	l.mu.Unlock()

	select {
	case <-t.done:
		return j.result
	case <-ctx.Done():
	}
	if j.fate.CompareAndSwap(fateOpen, fateWithdrawn) {
		l.leave(t)
		return Result{Err: fmt.Errorf("enqueue %s: %w", j.typ.noun(), ctx.Err())}
	}
	select {
	case <-t.done:
		return j.result
	default: // The batch goes on without us: j is its own from here on.
		return Result{Err: fmt.Errorf("enqueue %s: %w: %w", j.typ.noun(), ErrUnconfirmed, ctx.Err())}
	}
}

// land ends a flight. If calls wait, a goroutine takes its place, and ends when
// nobody waits any more.
func (p *Producer) land() {
	l := &p.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		go p.drain()
		return
	}
	l.flying--
}

// drain flies with all that wait, batch by batch.
func (p *Producer) drain() {
	for {
		// The calls that have just got their results, and others that are ready to
		// run, may join: batches grow by half, and nobody waits.
		runtime.Gosched()
		batch := p.line.board()
		if len(batch) == 0 {
			return
		}
		jobs := make([]*job, len(batch))
		for i, t := range batch {
			jobs[i] = t.job
		}
		ctx, cancel := together(batch)
		p.deliver(ctx, jobs)
		cancel()
		for _, t := range batch {
			close(t.done)
		}
	}
}

// board takes the next batch out of the line. If there is none, the flight ends.
func (l *line) board() []*ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, _ := batchOf(len(l.waiting), func(i int) int { return l.waiting[i].job.weight })
	if n == 0 {
		l.waiting = nil
		l.flying--
		return nil
	}
	batch := slices.Clone(l.waiting[:n])
	l.waiting = slices.Delete(l.waiting, 0, n)
	return batch
}

// leave takes t out of the line, unless a batch has it.
func (l *line) leave(t *ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, t); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
}

// together returns the context of a batch. It ends when the last of the calls
// must have returned: an earlier one that ends does not wait for it.
func together(batch []*ticket) (context.Context, context.CancelFunc) {
	if len(batch) == 1 {
		return batch[0].ctx, func() {}
	}
	ctx := context.WithoutCancel(batch[0].ctx)
	var last time.Time
	for _, t := range batch {
		deadline, ok := t.ctx.Deadline()
		if !ok {
			return ctx, func() {}
		}
		if deadline.After(last) {
			last = deadline
		}
	}
	return context.WithDeadline(ctx, last)
}
