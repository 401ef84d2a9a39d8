package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/tasks"
)

// How long a run waits for a Redis that has gone away before it gives up, and between two attempts.
const (
	retryFor     = 30 * time.Second
	retryWait    = 100 * time.Millisecond
	retryMaxWait = 2 * time.Second

	// finishWithin bounds the wait for what is on its way to a Redis that hangs, after Ctrl-C.
	finishWithin = 10 * time.Second
)

// mailing sends one message to every record of a source, in order and with bounded memory.
//
// A record is settled when it was enqueued, recognised as a duplicate, or refused and copied to the
// rejected file. At any end of a run, the records before its resume line are settled; the line is that
// of the first record that is not. Records behind it may have been enqueued too: their idempotency keys
// keep the run that goes on from there from sending them again.
type mailing struct {
	src       source
	item      func(record) tasks.Item // the message, without options
	check     func(data map[string]any) error
	key       func(record) string // idempotency key
	options   func(now time.Time) []tasks.Option
	enqueue   func(context.Context, iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result]
	limiter   *rate.Limiter // nil: as fast as Redis takes it
	from      int           // line to begin at
	retryFor  time.Duration
	rejects   *rejects
	reject    func(line int, p problem) // tells about a refused record
	notify    func(text string)
	progress  *progress
	keyColumn string // of the idempotency key, if it may be empty where the message is not refused for it

	started time.Time
	counts  counts
	resume  int // line to go on from
}

type counts struct{ enqueued, duplicates, rejected int }

func (c counts) total() int { return c.enqueued + c.duplicates + c.rejected }

// pending is a record on its way through send.
type pending struct {
	record
	attempted bool
	settled   bool
}

// run sends until the input or ctx ends. An error means that it stopped at m.resume; without one, all
// records are settled.
func (m *mailing) run(ctx context.Context) error {
	m.started, m.resume = time.Now(), max(m.from, 1)
	b := newBacklog()
	// The reading goroutine may hang in a read from a terminal or a pipe, which cannot be interrupted;
	// it is left to the end of the process then.
	defer b.stop()
	defer context.AfterFunc(ctx, b.stop)()
	go m.read(b)

	most := backlogRecords
	if m.limiter != nil {
		most = m.limiter.Burst()
	}
	for {
		records, ended, err := b.take(most)
		switch {
		case ended:
			return err
		case len(records) == 0:
			return context.Cause(ctx)
		}
		if m.limiter != nil {
			if err := m.limiter.WaitN(ctx, len(records)); err != nil {
				return context.Cause(ctx)
			}
		}
		if err := m.send(ctx, records); err != nil {
			return err
		}
	}
}

// read puts the source's records into b, with what is wrong with them.
func (m *mailing) read(b *backlog) {
	skipping := false
	for {
		r, err := m.src.next()
		if errors.Is(err, io.EOF) {
			err = nil
			b.close(err)
			return
		}
		if err != nil {
			b.close(err)
			return
		}
		if !r.tail {
			skipping = r.line < m.from
		}
		if skipping {
			continue
		}
		if !r.tail && len(r.problems) == 0 {
			m.inspect(&r)
		}
		if !b.add(r) {
			return
		}
	}
}

// inspect finds what the producer would not.
func (m *mailing) inspect(r *record) {
	if m.keyColumn != "" && r.key == "" {
		r.refuse(m.keyColumn, "is empty: it is the idempotency key")
	}
	if err := m.check(r.data); err != nil {
		found, ok := problemsOf(err)
		if !ok {
			found = []problem{{Field: "data", Problem: err.Error()}}
		}
		r.problems = append(r.problems, found...)
	}
}

// send settles records, or as many of them as it can.
func (m *mailing) send(ctx context.Context, records []record) error {
	batch := make([]pending, len(records))
	for i, r := range records {
		batch[i] = pending{record: r, settled: r.tail || len(r.problems) > 0}
	}
	err := m.enqueueAll(ctx, batch)
	return errors.Join(err, m.settle(batch))
}

// enqueueAll enqueues what is not settled in batch. While Redis is away it tries again.
func (m *mailing) enqueueAll(ctx context.Context, batch []pending) error {
	started, wait := time.Time{}, retryWait
	for {
		failed := m.attempt(ctx, batch)
		switch {
		case !slices.ContainsFunc(batch, func(p pending) bool { return !p.settled }):
			return nil
		case failed == nil:
			return context.Cause(ctx)
		}
		if _, ok := errors.AsType[*cli.UsageError](failed); ok {
			return failed
		}
		if started.IsZero() {
			started = time.Now()
			m.notify(fmt.Sprintf("Redis does not take jobs: %v: trying again for up to %v", failed, m.retryFor))
		}
		if time.Since(started)+wait > m.retryFor {
			return failed
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		wait = min(2*wait, retryMaxWait)
	}
}

// attempt hands every unsettled record of batch to the producer once. It stops handing out more when
// ctx ends or one failed for want of Redis, and returns that failure when what is on its way is done.
func (m *mailing) attempt(ctx context.Context, batch []pending) (failed error) {
	var order []*pending
	items := func(yield func(tasks.Item) bool) {
		for i := range batch {
			p := &batch[i]
			if p.settled {
				continue
			}
			if failed != nil || ctx.Err() != nil {
				return
			}
			order = append(order, p)
			item := m.item(p.record)
			item.Options = append(m.options(time.Now()), tasks.IdempotencyKey(m.key(p.record)))
			if !yield(item) {
				return
			}
		}
	}
	// What has been handed out is finished also after Ctrl-C.
	flight, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishWithin, cancel) })()
	for i, result := range m.enqueue(flight, items) {
		p := order[i]
		again := p.attempted
		p.attempted = true
		if result.Err == nil {
			p.settled = true
			// A duplicate of our own attempt whose answer was lost is no duplicate.
			if result.Receipt.Duplicate && !(again && !result.Receipt.EnqueuedAt.Before(m.started)) {
				m.counts.duplicates++
			} else {
				m.counts.enqueued++
			}
			continue
		}
		found, ok := problemsOf(result.Err)
		if !ok {
			failed = result.Err
			continue
		}
		if err := optionError(found); err != nil {
			failed = err
			continue
		}
		p.problems, p.settled = found, true
	}
	return failed
}

// settle tells about the refused records of batch and copies them, up to the first that is not settled.
func (m *mailing) settle(batch []pending) error {
	for i := range batch {
		p := &batch[i]
		if !p.settled {
			m.resume = p.line
			break
		}
		refused := len(p.problems) > 0 || p.tail
		if refused {
			if err := m.rejects.add(p.raw); err != nil {
				m.resume = p.line
				return fmt.Errorf("write rejected lines: %w", err)
			}
		}
		if len(p.problems) > 0 {
			m.counts.rejected++
			for _, problem := range p.problems {
				m.reject(p.line, problem)
			}
		}
		m.resume = p.line + strings.Count(p.raw, "\n")
		m.progress.set(p.end, m.counts.total())
	}
	if err := m.rejects.flush(); err != nil {
		return fmt.Errorf("write rejected lines: %w", err)
	}
	return nil
}
