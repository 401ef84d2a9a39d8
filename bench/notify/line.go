package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/report"
)

const (
	// warmUp is how long notifications are paced before any is measured.
	warmUp = time.Second
	// idleFor is how long connected browsers are left alone before memory is read: each has had a heartbeat then.
	idleFor = 25 * time.Second
	// quickIdle is that of a quick look.
	quickIdle = 2 * time.Second
)

// line is a service with the browsers that are connected to it.
type line struct{ service, clients *child.Process }

// connect starts a service and the browsers of n users.
func (b *bench) connect(ctx context.Context, prefix string, n int) (_ *line, err error) {
	l := &line{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop())
		}
	}()
	var address string
	if l.service, address, err = b.spawn(ctx, roleServe, b.redisURL()); err != nil {
		return nil, err
	}
	if l.clients, _, err = b.spawn(ctx, roleListen, address); err != nil {
		return nil, err
	}
	return l, l.open(ctx, prefix, n)
}

func (l *line) open(ctx context.Context, prefix string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	_, err := ask(ctx, l.clients, request{Do: doConnect, N: n, Prefix: prefix})
	return err
}

// disconnect returns when the service has noticed that nobody is connected.
func (l *line) disconnect(ctx context.Context) error {
	if _, err := ask(ctx, l.clients, request{Do: doClose}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return child.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		stats, err := ask(ctx, l.service, request{Do: doCount})
		return stats.Clients == 0, err
	})
}

// take returns what has arrived since it was called last. That a browser had to load its inbox again is an error: it
// would not have seen everything here.
func (l *line) take(ctx context.Context) ([]arrival, error) {
	a, err := ask(ctx, l.clients, request{Do: doTake})
	if err == nil && a.Resets > 0 {
		err = fmt.Errorf("%d times a browser was told to load its inbox again", a.Resets)
	}
	return a.Arrivals, err
}

func (l *line) stop() error {
	var errs []error
	for _, p := range []*child.Process{l.clients, l.service} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	return errors.Join(errs...)
}

// memory is what a service holds, in bytes.
type memory struct {
	asIs      int // resident, garbage included
	collected int // resident after a collection that returns everything to the system
	inUse     int // the heap and the stacks of Go after it
}

type memoryRound struct{ none, all memory }

func (l *line) memory(ctx context.Context) (m memory, err error) {
	if m.asIs, err = l.service.Resident(); err != nil {
		return m, err
	}
	a, err := ask(ctx, l.service, request{Do: doMemory})
	if err != nil {
		return m, err
	}
	m.inUse = a.Heap + a.Stack
	m.collected, err = l.service.Resident()
	return m, err
}

// latencyRound holds times in milliseconds, of each notification.
type latencyRound struct {
	whole    []float64 // from the call that enqueues to the browser
	returned []float64 // from its return
	call     []float64 // the call
}

// lineRound measures latency with one browser and with all of them, and the memory that they take, in a service of its
// own: what a process had to hold once, it does not always give back.
func (b *bench) lineRound(ctx context.Context, prefix string) (err error) {
	l, err := b.connect(ctx, prefix, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	if err := b.pace(ctx, l, latencyRow(1), prefix, 1); err != nil {
		return fmt.Errorf("one browser: %w", err)
	}
	if err := l.disconnect(ctx); err != nil {
		return err
	}
	var m memoryRound
	if m.none, err = l.memory(ctx); err != nil {
		return err
	}
	if err := l.open(ctx, prefix, b.clients); err != nil {
		return err
	}
	idle := idleFor
	if b.quick {
		idle = quickIdle
	}
	select {
	case <-time.After(idle):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if m.all, err = l.memory(ctx); err != nil {
		return err
	}
	b.memories = append(b.memories, m)
	fmt.Fprintf(b.progress, "%d browsers: %d bytes each resident, %d after a collection, %d in use\n", b.clients,
		(m.all.asIs-m.none.asIs)/b.clients, (m.all.collected-m.none.collected)/b.clients, (m.all.inUse-m.none.inUse)/b.clients)
	if err := b.pace(ctx, l, latencyRow(b.clients), prefix, b.clients); err != nil {
		return fmt.Errorf("%d browsers: %w", b.clients, err)
	}
	stats, err := ask(ctx, l.service, request{Do: doCount})
	if err == nil && stats.Clients != b.clients {
		err = fmt.Errorf("%d of %d browsers are still connected", stats.Clients, b.clients)
	}
	return errors.Join(err, b.sweep(ctx))
}

// rushBrowsers is the number of them in afterRush, at most. What gathers for a single one, should the worker not be ready,
// would be more than the service keeps for it.
const rushBrowsers = 100

// afterRush measures latency with some browsers seconds after the worker had all that it can do: it must be as ready then
// as it was before.
func (b *bench) afterRush(ctx context.Context, prefix string) (err error) {
	browsers := min(rushBrowsers, b.clients)
	l, err := b.connect(ctx, prefix, browsers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	return b.pace(ctx, l, rushRow(browsers), prefix, browsers)
}

// sent is a notification with the times of the call that enqueued it, in Unix microseconds.
type sent struct {
	id              string
	user            int
	begun, returned int64
	err             error
}

// pace enqueues notifications to random users among those who are connected, each at its time whatever became of the
// ones before, first for warming up and then for measuring.
func (b *bench) pace(ctx context.Context, l *line, row, prefix string, users int) error {
	if _, err := b.paced(ctx, l, prefix, users, int(warmUp.Seconds()*float64(b.rate))); err != nil {
		return err
	}
	r, err := b.paced(ctx, l, prefix, users, b.samples())
	if err != nil {
		return err
	}
	b.latencies[row] = append(b.latencies[row], r)
	fmt.Fprintf(b.progress, "%s: p50 %.2f ms, p99 %.2f ms\n", row, report.Quantile(r.whole, 0.5), report.Quantile(r.whole, 0.99))
	return nil
}

func (b *bench) paced(ctx context.Context, l *line, prefix string, users, n int) (r latencyRound, err error) {
	calls := make([]sent, n)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range calls {
		// A moment within its own part of a second, so that nothing is in step with anything.
		slot := time.Second / time.Duration(b.rate)
		time.Sleep(time.Until(begin.Add(time.Duration(i)*slot + rand.N(slot))))
		wg.Go(func() {
			c := &calls[i]
			c.user = rand.IntN(users)
			note := notification(userID(prefix, c.user))
			c.begun = time.Now().UnixMicro()
			receipt, err := b.producer.SendNotification(ctx, note)
			c.returned = time.Now().UnixMicro()
			c.id, c.err = receipt.ID, err
		})
	}
	wg.Wait()
	wanted := make(map[string]int, n)
	for _, c := range calls {
		if c.err != nil {
			return r, fmt.Errorf("enqueue: %w", c.err)
		}
		wanted[c.id] = c.user
	}
	if err := b.finish(ctx); err != nil {
		return r, err
	}
	if _, err := ask(ctx, l.clients, request{Do: doWait, N: n}); err != nil {
		return r, err
	}
	arrived, err := l.take(ctx)
	if err != nil {
		return r, err
	}
	if err := b.verify(wanted, arrived); err != nil {
		return r, fmt.Errorf("in the browsers: %w", err)
	}
	at := make(map[string]int64, n)
	for _, a := range arrived {
		at[a.ID] = a.At
	}
	for _, c := range calls {
		r.whole = append(r.whole, float64(at[c.id]-c.begun)/1000)
		r.returned = append(r.returned, float64(at[c.id]-c.returned)/1000)
		r.call = append(r.call, float64(c.returned-c.begun)/1000)
	}
	return r, nil
}
