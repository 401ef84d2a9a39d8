package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

// The pause before a further attempt to connect grows from the first to the
// second.
const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

// jitter makes half of a pause chance, so that a fleet does not return as one.
func jitter(pause time.Duration) time.Duration { return pause/2 + rand.N(pause/2) }

var errSilent = errors.New("the server did not answer a PING in time")

// source is what a subscription listens to.
type source struct {
	name    string // for errors
	channel string
	pattern bool
}

// Stats counts what a subscription has seen since it began. Received is the
// sum of Handled, Dropped, Undecodable, Buffered and the message that is being
// handled.
type Stats struct {
	Received    uint64 // messages that arrived
	Handled     uint64 // messages whose handler has returned
	Dropped     uint64 // messages that met a full buffer
	Undecodable uint64 // messages that were not JSON of the topic's type
	Disconnects uint64 // connections that were lost
	Buffered    int    // messages that wait, or waited when it ended
	Connected   bool   // the server has confirmed the subscription and seems alive
}

// Subscription calls handlers until it is closed. It is safe for concurrent
// use.
type Subscription struct {
	client *rediskit.Client
	src    source
	cfg    Config
	queue  *queue
	cancel context.CancelFunc
	done   chan struct{}
	end    error // why it ended by itself; set before done is closed

	received, handled, dropped, undecodable, disconnects atomic.Uint64
	connected                                            atomic.Bool
	seen                                                 atomic.Pointer[time.Time] // the last sign of life
}

func subscribe[T any](
	ctx context.Context, bus *Bus, src source, onMessage func(context.Context, Message[T]), onGap func(context.Context, Gap),
) (*Subscription, error) {
	if onMessage == nil || onGap == nil {
		return nil, fmt.Errorf("subscribe to topic %s: both functions must be given; "+
			"pubsub.IgnoreGaps is the one for gaps if lost messages do not matter", src.name)
	}
	s := &Subscription{
		client: bus.client, src: src, cfg: bus.cfg,
		queue: newQueue(bus.cfg.Buffer, bus.cfg.BufferBytes), done: make(chan struct{}),
	}
	ctx, s.cancel = context.WithCancel(ctx)
	conn, err := s.connect(ctx)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("subscribe to topic %s: %w", src.name, err)
	}
	prefix := channel(bus.service, "")
	handle := func(it item) {
		if it.gap != nil {
			onGap(ctx, *it.gap)
			return
		}
		value, err := decode[T](it.payload)
		if err != nil {
			s.undecodable.Add(1)
			now := time.Now()
			onGap(ctx, Gap{Undecodable: 1, From: now, To: now, Err: err})
			return
		}
		onMessage(ctx, Message[T]{Topic: strings.TrimPrefix(it.channel, prefix), Value: value})
		s.handled.Add(1)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.receive(ctx, conn) })
	wg.Go(func() {
		for {
			it, ok := s.queue.pop(ctx)
			if !ok {
				return
			}
			handle(it)
		}
	})
	go func() {
		wg.Wait()
		s.cancel()
		close(s.done)
	}()
	return s, nil
}

// Close ends the subscription and waits until its handler has returned; what
// waits in the buffer is not handled any more. It returns why the subscription
// had ended by itself (the Redis client was closed), or nil. A handler that
// wants to end its own subscription cancels the context of Subscribe instead:
// Close would wait for it for ever.
func (s *Subscription) Close() error {
	s.cancel()
	<-s.done
	return s.end
}

// Done is closed when the subscription has ended and its handler has returned.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Stats returns the counters.
func (s *Subscription) Stats() Stats {
	return Stats{
		Received:    s.received.Load(),
		Handled:     s.handled.Load(),
		Dropped:     s.dropped.Load(),
		Undecodable: s.undecodable.Load(),
		Disconnects: s.disconnects.Load(),
		Buffered:    s.queue.waiting(),
		Connected:   s.connected.Load(),
	}
}

// receive fills the queue until ctx ends or the client is closed.
func (s *Subscription) receive(ctx context.Context, conn *redis.PubSub) {
	defer s.queue.close()
	for {
		err := s.read(ctx, conn)
		s.connected.Store(false)
		_ = conn.Close() // it is broken, or ctx has ended and it is closed already
		if ctx.Err() != nil {
			return
		}
		s.disconnects.Add(1)
		gap := Gap{Disconnects: 1, From: *s.seen.Load(), Err: err}
		conn, err = s.reconnect(ctx)
		if ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close() // nobody is left to read the error
			}
			return
		}
		gap.To = time.Now()
		if err != nil {
			gap.Err, s.end = err, fmt.Errorf("subscription to topic %s ended: %w", s.src.name, err)
			s.queue.gap(gap)
			return
		}
		s.queue.gap(gap)
	}
}

// connect opens a connection and waits until the server has confirmed the
// subscription.
func (s *Subscription) connect(ctx context.Context) (*redis.PubSub, error) {
	cfg := s.client.Config()
	ctx, cancel := context.WithTimeout(ctx,
		cmp.Or(cfg.DialTimeout, rediskit.DefaultDialTimeout)+cmp.Or(cfg.ReadTimeout, rediskit.DefaultReadTimeout))
	defer cancel()
	conn := s.client.Subscribe(ctx) // connects with the first channel only
	keep := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err := s.confirm(ctx, conn)
	if !keep() {
		return nil, ctx.Err() // conn is closed, so its own error tells nothing
	}
	if err != nil {
		_ = conn.Close() // the first error says more
		return nil, err
	}
	s.seen.Store(new(time.Now()))
	s.connected.Store(true)
	return conn, nil
}

func (s *Subscription) confirm(ctx context.Context, conn *redis.PubSub) error {
	var err error
	if s.src.pattern {
		err = conn.PSubscribe(ctx, s.src.channel)
	} else {
		err = conn.Subscribe(ctx, s.src.channel)
	}
	if err != nil {
		return err
	}
	reply, err := conn.Receive(ctx)
	if err != nil {
		return err
	}
	if _, ok := reply.(*redis.Subscription); !ok {
		return fmt.Errorf("the server sent a %T instead of a confirmation", reply)
	}
	return nil
}

// reconnect tries until it has a connection, ctx ends or the client is closed.
func (s *Subscription) reconnect(ctx context.Context) (*redis.PubSub, error) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		select {
		case <-time.After(jitter(pause)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		conn, err := s.connect(ctx)
		if err == nil || errors.Is(err, redis.ErrClosed) {
			return conn, err
		}
		if cluster, ok := s.client.UniversalClient.(*redis.ClusterClient); ok {
			cluster.ReloadState(ctx) // the node may be gone: commands would notice, a subscriber sends none
		}
	}
}

// read queues what arrives until the connection fails. It does not use go-redis'
// Channel, which drops messages silently, nor a timeout of Receive, which after
// half a message leaves the connection between two.
func (s *Subscription) read(ctx context.Context, conn *redis.PubSub) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	watchCtx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	var silent error
	watch.Go(func() {
		if silent = s.watch(watchCtx, conn); silent != nil {
			_ = conn.Close() // wakes Receive
		}
	})
	for {
		reply, err := conn.Receive(ctx)
		if err != nil {
			cancel()
			watch.Wait()
			return cmp.Or(silent, err)
		}
		s.seen.Store(new(time.Now()))
		if msg, ok := reply.(*redis.Message); ok {
			s.received.Add(1)
			if !s.queue.push(msg.Channel, msg.Payload) {
				s.dropped.Add(1)
			}
		}
	}
}

// watch sends a PING on a silent connection and returns an error when it was not
// answered; nil when ctx has ended. It counts from the PING, not from the last
// message: a process that was stopped itself must not blame the server.
func (s *Subscription) watch(ctx context.Context, conn *redis.PubSub) error {
	// Four tenths of silence, four of waiting, and a tick for each.
	tick := time.NewTicker(s.cfg.DeadAfter / 10)
	defer tick.Stop()
	patience := s.cfg.DeadAfter / 10 * 4
	var pinged time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		seen := *s.seen.Load()
		switch {
		case time.Since(seen) < patience:
		case pinged.Before(seen):
			pinged = time.Now()
			if err := conn.Ping(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("ping: %w", err)
			}
		case time.Since(pinged) >= patience:
			return errSilent
		}
	}
}
