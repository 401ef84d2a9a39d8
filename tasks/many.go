package tasks

import (
	"context"
	"iter"
	"slices"
	"sync"
)

// Bounds of EnqueueMany: calls that run at the same time, and items that have
// been read but not yet reported.
const (
	manyCalls  = 64
	manyWindow = 256
)

// An Item is one message of EnqueueMany.
type Item struct {
	Email Email
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
// input. A failing item does not stop the others. Jobs that go into the queue
// within one window can change places there.
//
// At most 256 items are in memory, so items can be endless. It is read in the
// caller's goroutine: a result waits while items waits for its next one. When
// ctx ends, reading stops, and what has been read is still reported. After the
// loop, also one left by break, no goroutine remains; items that were read but
// not yet reported may or may not have been enqueued.
func (p *Producer) EnqueueMany(ctx context.Context, items iter.Seq[Item], opts ...Option) iter.Seq2[int, Result] {
	return func(yield func(int, Result) bool) {
		type call struct {
			item Item
			done chan Result
		}
		ctx, cancel := context.WithCancel(ctx)
		work := make(chan call, manyWindow)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(work)
		defer cancel()

		serve := func() {
			for c := range work {
				var r Result
				r.Receipt, r.Err = p.SendEmail(ctx, c.item.Email, slices.Concat(opts, c.item.Options)...)
				c.done <- r
			}
		}
		var window []chan Result // of the items read and not reported, oldest first
		index, calls := 0, 0
		report := func() bool {
			r := <-window[0]
			window = window[1:]
			index++
			return yield(index-1, r)
		}
		for item := range items {
			done := make(chan Result, 1)
			window = append(window, done)
			work <- call{item, done}
			if calls < manyCalls {
				calls++
				wg.Go(serve)
			}
			// Report what is ready, and wait only if the window is full.
			for len(window) == manyWindow || len(window) > 0 && len(window[0]) > 0 {
				if !report() {
					return
				}
			}
			if ctx.Err() != nil {
				break
			}
		}
		for len(window) > 0 {
			if !report() {
				return
			}
		}
	}
}
