package pubsub

import (
	"context"
	"sync"
	"time"
)

// item is a message, or a gap.
type item struct {
	channel string
	payload string
	gap     *Gap
}

// queue holds what waits for the handler: at most max messages of maxBytes
// together, and at most one gap before, between and after them.
type queue struct {
	max, maxBytes int

	mu       sync.Mutex // owns what follows
	items    []item
	messages int
	bytes    int
	closed   bool
	changed  chan struct{} // holds a token after a change
}

func newQueue(limit, maxBytes int) *queue {
	return &queue{max: limit, maxBytes: maxBytes, changed: make(chan struct{}, 1)}
}

// push appends a message, or reports false and notes the gap.
func (q *queue) push(channel, payload string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.messages >= q.max || q.messages > 0 && q.bytes+len(payload) > q.maxBytes {
		now := time.Now()
		q.note(Gap{Dropped: 1, From: now, To: now})
		return false
	}
	q.items = append(q.items, item{channel: channel, payload: payload})
	q.messages++
	q.bytes += len(payload)
	q.wake()
	return true
}

// gap appends a gap, or adds it to the one at the end.
func (q *queue) gap(g Gap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.note(g)
}

// note is gap for a caller that holds mu.
func (q *queue) note(g Gap) {
	if last := len(q.items) - 1; last >= 0 && q.items[last].gap != nil {
		*q.items[last].gap = q.items[last].gap.merge(g)
	} else {
		q.items = append(q.items, item{gap: &g})
	}
	q.wake()
}

// close makes pop report false once the queue is empty.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// pop waits for the next item. It reports false when ctx has ended, whatever
// still waits, and when a closed queue is empty. Only one goroutine may call it.
func (q *queue) pop(ctx context.Context) (item, bool) {
	for ctx.Err() == nil {
		if it, found, closed := q.take(); found || closed {
			return it, found
		}
		select {
		case <-q.changed:
		case <-ctx.Done():
		}
	}
	return item{}, false
}

func (q *queue) take() (it item, found, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return item{}, false, q.closed
	}
	it = q.items[0]
	q.items[0] = item{} // the array lives on: let go of the payload
	q.items = q.items[1:]
	if it.gap == nil {
		q.messages--
		q.bytes -= len(it.payload)
	}
	return it, true, q.closed
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.messages
}
