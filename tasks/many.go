package tasks

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of EnqueueMany: items that have been read but not yet reported, and about
// how many bytes their jobs may have. One job may be larger than that.
const (
	manyWindow = 1024
	manyBytes  = 8 << 20
)

// A batch of EnqueueMany leaves when it has manyBatch jobs, or when no more can
// join it: the input has ended, the window is full, or manyLinger is over.
const (
	manyBatch  = 128
	manyLinger = time.Millisecond
)

// An Item is one message of EnqueueMany: Email or Notification, not both.
type Item struct {
	Email        Email
	Notification *Notification
	// Options come after those of the call, so they win.
	Options []Option
}

// A Result is what became of an Item: a receipt or an error.
type Result struct {
	Receipt Receipt
	Err     error
}

// EnqueueMany enqueues items, many at a time, as the returned sequence is
// consumed, and yields every item's position and result in the order of the
// input. A failing item does not stop the others. Jobs that may run at once lie in
// their queue in the order of the input. Of items with one idempotency key, the
// first makes the job.
//
// At most 1024 items are in memory, with about 8 MiB of jobs or a single larger
// one, so items can be endless. It is read in the caller's goroutine: a result
// waits while items waits for its next one. An item waits up to a millisecond
// for others to share its script call, of which one is on its way at a time.
// When ctx ends, reading stops, and what has been read is still reported. After
// the loop, also one left by break, no goroutine remains; items that were read
// but not yet reported may or may not have been enqueued.
func (p *Producer) EnqueueMany(ctx context.Context, items iter.Seq[Item], opts ...Option) iter.Seq2[int, Result] {
	return func(yield func(int, Result) bool) {
		ctx, cancel := context.WithCancel(ctx)
		b := &belt{changed: make(chan struct{}, 1), landed: make(chan struct{}, 1)}
		var wg sync.WaitGroup
		wg.Go(func() { p.ship(ctx, b) })
		defer wg.Wait()
		defer b.close()
		defer cancel()

		var window []*job // read and not reported, oldest first
		index, bytes := 0, 0
		// report yields what is settled, and waits for the oldest first if it has to.
		report := func(wait bool) (more bool) {
			for len(window) > 0 && (wait || b.done(window[0])) {
				j := window[0]
				b.await(j)
				window[0] = nil // the job is large, and the array outlives it
				window = window[1:]
				bytes -= j.weight
				index++
				if !yield(index-1, j.result) {
					return false
				}
				wait = wait && (len(window) >= manyWindow || bytes >= manyBytes)
			}
			return true
		}
		for item := range items {
			all := opts
			if len(item.Options) > 0 {
				all = slices.Concat(opts, item.Options)
			}
			j, err := p.composeItem(ctx, &item, all)
			if err != nil {
				j = &job{settled: true, result: Result{Err: err}}
			} else {
				b.add(j)
			}
			window = append(window, j)
			bytes += j.weight
			if !report(len(window) >= manyWindow || bytes >= manyBytes) {
				return
			}
			if ctx.Err() != nil {
				break
			}
		}
		b.close()
		for len(window) > 0 {
			if !report(true) {
				return
			}
		}
	}
}

func (p *Producer) composeItem(ctx context.Context, item *Item, opts []Option) (*job, error) {
	if item.Notification == nil {
		return p.compose(ctx, item.Email, opts)
	}
	if !reflect.ValueOf(&item.Email).Elem().IsZero() {
		return nil, fmt.Errorf("validate notification: %w", &ValidationError{Field: "item", Problem: "has an email and a notification: give one or the other"})
	}
	return p.composeNotification(ctx, *item.Notification, opts)
}

// A belt carries jobs from the goroutine that composes them to the one that ships
// them, in order.
type belt struct {
	added   int64         // owned by the goroutine that composes
	shipped atomic.Int64  // jobs that are settled
	landed  chan struct{} // has an element when shipped has changed

	mu      sync.Mutex // guards what follows
	jobs    []*job
	bytes   int
	urgent  bool          // somebody waits for the jobs
	closed  bool          // no more will be added
	changed chan struct{} // has an element when there is a reason to look
}

// notify puts an element into c unless there is one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (b *belt) add(j *job) {
	b.added++
	j.place = b.added
	b.mu.Lock()
	b.jobs = append(b.jobs, j)
	b.bytes += j.weight
	look := len(b.jobs) == 1 || len(b.jobs) == manyBatch || b.bytes >= batchBytes
	b.mu.Unlock()
	if look {
		notify(b.changed)
	}
}

func (b *belt) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	notify(b.changed)
}

// done reports whether j is settled.
func (b *belt) done(j *job) bool { return b.shipped.Load() >= j.place }

// await waits until j is settled.
func (b *belt) await(j *job) {
	for !b.done(j) {
		b.mu.Lock()
		b.urgent = len(b.jobs) > 0
		b.mu.Unlock()
		notify(b.changed)
		<-b.landed
	}
}

// look says what there is to do: ship a batch, or wait for more jobs, or end.
func (b *belt) look() (jobs, ready, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	jobs = len(b.jobs) > 0
	return jobs, len(b.jobs) >= manyBatch || b.bytes >= batchBytes || b.urgent || b.closed, b.closed && !jobs
}

// take returns the next batch.
func (b *belt) take() []*job {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, bytes := batchOf(len(b.jobs), func(i int) int { return b.jobs[i].weight })
	batch := b.jobs[:n:n]
	b.jobs = b.jobs[n:]
	b.bytes -= bytes
	b.urgent = false
	return batch
}

// ship delivers what is put on b until it is closed.
func (p *Producer) ship(ctx context.Context, b *belt) {
	linger := time.NewTimer(0)
	defer linger.Stop()
	<-linger.C
	for lingering := false; ; {
		jobs, ready, ended := b.look()
		if ended {
			return
		}
		if !jobs {
			<-b.changed
			continue
		}
		if !ready && !lingering {
			lingering = true
			linger.Reset(manyLinger)
		}
		if !ready {
			select {
			case <-b.changed:
				continue
			case <-linger.C:
			}
		}
		linger.Stop()
		lingering = false
		batch := b.take()
		p.deliver(ctx, batch)
		b.shipped.Add(int64(len(batch)))
		notify(b.landed)
	}
}
