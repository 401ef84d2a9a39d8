package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/tasks"
)

// The rows of the rates besides the ways of drive.
const (
	whole     = "whole"     // from the queue to the inboxes
	toBrowser = "tobrowser" // from the queue to the browsers of all users
)

// ways are the rows, in the order of their turns.
func ways() []string {
	return []string{howBatches, howPipeline, howCalls, howShared, howScript, whole, toBrowser}
}

// rateRound is one round of one way.
type rateRound struct {
	n                    int
	span                 time.Duration // first to last arrival
	program, redis, serv time.Duration // CPU: the worker or the loops, Redis, the service
	replayed             uint64        // notifications that the service read from the streams
}

func (r rateRound) rate() float64 { return float64(r.n-1) / r.span.Seconds() }

func (r rateRound) per1000(cpu time.Duration) float64 { return cpu.Seconds() / float64(r.n) * 1000 }

// spanOf is the time from the first to the last arrival.
func spanOf(arrivals []arrival) time.Duration {
	first, last := arrivals[0].At, arrivals[0].At
	for _, a := range arrivals {
		first, last = min(first, a.At), max(last, a.At)
	}
	return time.Duration(last-first) * time.Microsecond
}

// cpu is the time that each process has used so far.
func cpu(processes ...*child.Process) (used []time.Duration, err error) {
	used = make([]time.Duration, len(processes))
	for i, p := range processes {
		if used[i], err = p.CPU(); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// spent runs f and returns the CPU time that the processes used meanwhile.
func spent(f func() error, processes ...*child.Process) ([]time.Duration, error) {
	before, err := cpu(processes...)
	if err != nil {
		return nil, err
	}
	if err := f(); err != nil {
		return nil, err
	}
	after, err := cpu(processes...)
	if err != nil {
		return nil, err
	}
	for i := range after {
		after[i] -= before[i]
	}
	return after, nil
}

func (b *bench) measure(ctx context.Context) error {
	for round := range b.rounds {
		if err := b.lineRound(ctx, fmt.Sprintf("l%d", round)); err != nil {
			return fmt.Errorf("latency and memory, round %d: %w", round, err)
		}
	}
	for round := range b.rounds + 1 {
		for _, way := range ways() {
			r, err := b.rateOf(ctx, way, fmt.Sprintf("r%d-%s", round, way))
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", way, round, err)
			}
			if round > 0 {
				b.rates[way] = append(b.rates[way], r)
			}
			fmt.Fprintf(b.progress, "round %d  %-10s %8.0f notifications/s, CPU s per 1,000: %.3f, Redis %.3f, service %.3f; %d read again\n",
				round, way, r.rate(), r.per1000(r.program), r.per1000(r.redis), r.per1000(r.serv), r.replayed)
		}
		r, err := b.webhookRound(ctx, fmt.Sprintf("r%d-hook", round))
		if err != nil {
			return fmt.Errorf("webhooks, round %d: %w", round, err)
		}
		if round > 0 {
			b.hooks = append(b.hooks, r)
		}
		fmt.Fprintf(b.progress, "round %d  webhooks   %8.0f/s\n", round, r.rate())
		if round > 0 {
			if err := b.afterRush(ctx, fmt.Sprintf("r%d-rush", round)); err != nil {
				return fmt.Errorf("latency after a full queue, round %d: %w", round, err)
			}
		}
	}
	return nil
}

func (b *bench) rateOf(ctx context.Context, way, prefix string) (r rateRound, err error) {
	switch way {
	case whole:
		r, err = b.wholeRound(ctx, prefix)
	case toBrowser:
		r, err = b.browserRound(ctx, prefix)
	default:
		r, err = b.driveRound(ctx, way, prefix)
	}
	return r, errors.Join(err, b.sweep(ctx))
}

// driveRound lets the loops deliver without jobs.
func (b *bench) driveRound(ctx context.Context, way, prefix string) (r rateRound, err error) {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	used, err := spent(func() error {
		_, err := ask(ctx, b.driver, request{Do: doDeliver, How: way, N: b.each, Users: b.users, Prefix: prefix})
		return err
	}, b.driver, b.redis)
	if err != nil {
		return r, err
	}
	stream := bareStream
	if way == howScript || way == howShared {
		stream = func(user string) string { return scriptStream(driveNamespace, user) }
	}
	arrived, err := b.stored(ctx, stream, prefix)
	if err != nil {
		return r, err
	}
	wanted := make(map[string]int, b.notifications())
	for n := range b.notifications() {
		wanted[driveID(n)] = n % b.users
	}
	if err := b.verify(wanted, arrived); err != nil {
		return r, err
	}
	return rateRound{n: b.notifications(), span: spanOf(arrived), program: used[0], redis: used[1]}, nil
}

// fill puts the notifications of a round into the paused queue, each user's turn after that of all others, and returns
// whose each is.
func (b *bench) fill(ctx context.Context, n int, compose func(i int) tasks.Notification, user func(i int) int) (map[string]int, error) {
	if err := b.inspector.PauseQueue(queue()); err != nil {
		return nil, fmt.Errorf("pause: %w", err)
	}
	items := func(yield func(tasks.Item) bool) {
		for i := range n {
			if !yield(tasks.Item{Notification: new(compose(i))}) {
				return
			}
		}
	}
	wanted := make(map[string]int, n)
	for i, result := range b.producer.EnqueueMany(ctx, items) {
		if result.Err != nil {
			return nil, fmt.Errorf("enqueue notification %d: %w", i, result.Err)
		}
		wanted[result.Receipt.ID] = user(i)
	}
	return wanted, nil
}

func (b *bench) fillInboxes(ctx context.Context, prefix string) (map[string]int, error) {
	begin := time.Now()
	wanted, err := b.fill(ctx, b.notifications(),
		func(i int) tasks.Notification { return notification(userID(prefix, i%b.users)) },
		func(i int) int { return i % b.users })
	if err == nil {
		b.enqueued = append(b.enqueued, float64(b.notifications())/time.Since(begin).Seconds())
	}
	return wanted, err
}

// empty opens the queue and waits until nothing is left in it.
func (b *bench) empty(ctx context.Context) error {
	if err := b.inspector.UnpauseQueue(queue()); err != nil {
		return fmt.Errorf("open the queue: %w", err)
	}
	return b.finish(ctx)
}

// wholeRound lets the worker deliver what is in the queue. Nobody is connected.
func (b *bench) wholeRound(ctx context.Context, prefix string) (r rateRound, err error) {
	wanted, err := b.fillInboxes(ctx, prefix)
	if err != nil {
		return r, err
	}
	used, err := spent(func() error { return b.empty(ctx) }, b.worker, b.redis)
	if err != nil {
		return r, err
	}
	arrived, err := b.inboxes(ctx, prefix, wanted)
	if err != nil {
		return r, err
	}
	return rateRound{n: len(wanted), span: spanOf(arrived), program: used[0], redis: used[1]}, nil
}

// inboxes reads and verifies those that the worker delivers into.
func (b *bench) inboxes(ctx context.Context, prefix string, wanted map[string]int) ([]arrival, error) {
	arrived, err := b.stored(ctx, func(user string) string { return scriptStream("", user) }, prefix)
	if err != nil {
		return nil, err
	}
	if err := exactlyOnce(wanted, arrived); err != nil {
		return nil, fmt.Errorf("in the inboxes: %w", err)
	}
	b.checked += len(wanted)
	return arrived, nil
}

// browserRound is wholeRound while a browser of every user is connected, as far as there are so many.
func (b *bench) browserRound(ctx context.Context, prefix string) (r rateRound, err error) {
	l, err := b.connect(ctx, prefix, b.clients)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	wanted, err := b.fillInboxes(ctx, prefix)
	if err != nil {
		return r, err
	}
	shown := make(map[string]int, len(wanted))
	for id, user := range wanted {
		if user < b.clients {
			shown[id] = user
		}
	}
	used, err := spent(func() error {
		if err := b.empty(ctx); err != nil {
			return err
		}
		_, err := ask(ctx, l.clients, request{Do: doWait, N: len(shown)})
		return err
	}, b.worker, b.redis, l.service)
	if err != nil {
		return r, err
	}
	if _, err := b.inboxes(ctx, prefix, wanted); err != nil {
		return r, err
	}
	arrived, err := l.take(ctx)
	if err != nil {
		return r, err
	}
	if err := exactlyOnce(shown, arrived); err != nil {
		return r, fmt.Errorf("in the browsers: %w", err)
	}
	stats, err := ask(ctx, l.service, request{Do: doCount})
	if err != nil {
		return r, err
	}
	if stats.Clients != b.clients {
		return r, fmt.Errorf("%d of %d browsers are still connected", stats.Clients, b.clients)
	}
	return rateRound{
		n: len(shown), span: spanOf(arrived), program: used[0], redis: used[1], serv: used[2], replayed: stats.Replayed,
	}, nil
}

// webhookRound lets the worker send webhooks, each of a notification of its own: two jobs each.
func (b *bench) webhookRound(ctx context.Context, prefix string) (r rateRound, err error) {
	wanted, err := b.fill(ctx, b.webhooks, func(i int) tasks.Notification {
		n := notification(userID(prefix, i))
		n.Channels, n.Webhook = []tasks.Channel{tasks.ChannelWebhook}, endpointID
		return n
	}, func(i int) int { return i })
	if err != nil {
		return r, err
	}
	if _, err := ask(ctx, b.receiver, request{Do: doReset}); err != nil {
		return r, err
	}
	used, err := spent(func() error { return b.empty(ctx) }, b.worker, b.redis)
	if err != nil {
		return r, err
	}
	got, err := ask(ctx, b.receiver, request{Do: doCount})
	if err != nil {
		return r, err
	}
	if got.Count != len(wanted) || got.Distinct != len(wanted) || got.Forged != 0 {
		return r, fmt.Errorf("%d notifications gave %d webhooks with %d different ids, %d of them not signed as they should be",
			len(wanted), got.Count, got.Distinct, got.Forged)
	}
	b.checked += len(wanted)
	r = rateRound{n: len(wanted), span: time.Duration(got.Last-got.First) * time.Microsecond, program: used[0], redis: used[1]}
	return r, b.sweep(ctx)
}
