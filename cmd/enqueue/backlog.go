package main

import "sync"

// Bounds of what has been read and not yet enqueued.
const (
	backlogRecords = 4096
	backlogBytes   = 16 << 20
)

// backlog is the queue between the goroutine that reads records and the one that enqueues them. The
// latter takes all there is, so batches grow with the speed of the input and a slow input is not held
// back until a batch is full.
type backlog struct {
	mu      sync.Mutex // guards all below
	changed sync.Cond
	records []record
	bytes   int
	closed  bool  // no more will be added
	err     error // why, nil at the end of the input
	stopped bool  // nothing more will be taken
}

func newBacklog() *backlog {
	b := &backlog{}
	b.changed.L = &b.mu
	return b
}

// add waits for room and appends r. It reports false when nobody wants more.
func (b *backlog) add(r record) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.stopped && len(b.records) > 0 && (len(b.records) >= backlogRecords || b.bytes >= backlogBytes) {
		b.changed.Wait()
	}
	if b.stopped {
		return false
	}
	b.records = append(b.records, r)
	b.bytes += len(r.raw)
	b.changed.Broadcast()
	return true
}

// close says that the input has ended, with err if it could not be read to its end.
func (b *backlog) close(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.err = true, err
	b.changed.Broadcast()
}

// stop makes add and take return at once.
func (b *backlog) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	b.changed.Broadcast()
}

// take waits for records and returns up to most of them. none are left when it returns nothing: ended
// then tells the end of the input, with its error, from a call of stop.
func (b *backlog) take(most int) (records []record, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.records) == 0 && !b.closed && !b.stopped {
		b.changed.Wait()
	}
	switch {
	case len(b.records) == 0 && b.closed:
		return nil, true, b.err
	case b.stopped:
		return nil, false, nil
	}
	records = b.records
	if len(records) > most {
		records = records[:most:most]
	}
	b.records = b.records[len(records):]
	for _, r := range records {
		b.bytes -= len(r.raw)
	}
	b.changed.Broadcast()
	return records, false, nil
}
