package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/pubsub"
)

// patience bounds what is waited for; it is reached only when a test fails.
const patience = 60 * time.Second

// event is what a handler was called with: a number, or a gap.
type event struct {
	topic  string
	number int
	gap    *pubsub.Gap
}

// recorder is a subscriber that notes everything.
type recorder struct {
	mu     sync.Mutex
	events []event
	news   chan struct{} // holds a token after a new event
}

func newRecorder() *recorder { return &recorder{news: make(chan struct{}, 1)} }

func (r *recorder) add(e event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *recorder) message(_ context.Context, m pubsub.Message[int]) {
	r.add(event{topic: m.Topic, number: m.Value})
}

func (r *recorder) gap(_ context.Context, g pubsub.Gap) { r.add(event{gap: &g}) }

func (r *recorder) all() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// until waits until reached is true of the events so far.
func (r *recorder) until(t *testing.T, what string, reached func([]event) bool) []event {
	t.Helper()
	timeout := time.After(patience)
	for {
		if events := r.all(); reached(events) {
			return events
		}
		select {
		case <-r.news:
		case <-timeout:
			t.Fatalf("waited in vain for %s; got %s", what, describe(r.all()))
		}
	}
}

func (r *recorder) untilMessage(t *testing.T, number int) []event {
	t.Helper()
	return r.until(t, fmt.Sprintf("message %d", number), func(events []event) bool {
		return slices.ContainsFunc(events, func(e event) bool { return e.gap == nil && e.number == number })
	})
}

func (r *recorder) untilGap(t *testing.T) pubsub.Gap {
	t.Helper()
	events := r.until(t, "a gap", func(events []event) bool { return len(gaps(events)) > 0 })
	return gaps(events)[0]
}

func gaps(events []event) []pubsub.Gap {
	var found []pubsub.Gap
	for _, e := range events {
		if e.gap != nil {
			found = append(found, *e.gap)
		}
	}
	return found
}

func describe(events []event) string {
	if len(events) > 20 {
		events = events[len(events)-20:]
	}
	var text strings.Builder
	for _, e := range events {
		if e.gap != nil {
			fmt.Fprintf(&text, "[%s] ", e.gap)
		} else {
			fmt.Fprintf(&text, "%d ", e.number)
		}
	}
	return text.String()
}

// account fails unless the numbers that were published in order from 0 on are
// all there, or their absence is told in their place.
func account(t *testing.T, events []event) {
	t.Helper()
	next, lost, cut := 0, 0, false
	for i, e := range events {
		if e.gap != nil {
			lost += e.gap.Dropped + e.gap.Undecodable
			cut = cut || e.gap.Disconnects > 0
			continue
		}
		switch {
		case e.number == next+lost:
		case cut && e.number > next+lost:
		case cut && e.number == next-1: // published again by go-redis, since the answer was lost
		default:
			t.Fatalf("event %d is message %d, want %d: lost or repeated silently; %s", i, e.number, next+lost, describe(events[:i+1]))
		}
		next, lost, cut = e.number+1, 0, false
	}
}

func newBus(t *testing.T, client *rediskit.Client, cfg pubsub.Config) *pubsub.Bus {
	t.Helper()
	bus, err := pubsub.New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return bus
}

func topicOf[T any](t *testing.T, bus *pubsub.Bus, name string) *pubsub.Topic[T] {
	t.Helper()
	topic, err := pubsub.Of[T](bus, name)
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

// numbers returns a topic, a recorder subscribed to it and its subscription.
func numbers(t *testing.T, client *rediskit.Client, cfg pubsub.Config) (*pubsub.Topic[int], *recorder, *pubsub.Subscription) {
	t.Helper()
	topic := topicOf[int](t, newBus(t, client, cfg), "numbers")
	r := newRecorder()
	sub, err := topic.Subscribe(t.Context(), r.message, r.gap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	return topic, r, sub
}

func publish[T any](t *testing.T, topic *pubsub.Topic[T], value T) {
	t.Helper()
	if err := topic.Publish(t.Context(), value); err != nil {
		t.Fatal(err)
	}
}

func TestTopic_Subscribe_inOrder(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		const n = 300
		topic, r, sub := numbers(t, client, pubsub.Config{Buffer: n})
		for i := range n {
			publish(t, topic, i)
		}
		events := r.untilMessage(t, n-1)
		account(t, events)
		if len(events) != n {
			t.Errorf("%d events for %d messages", len(events), n)
		}
		if events[0].topic != "numbers" {
			t.Errorf("topic %q", events[0].topic)
		}
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
		if got := sub.Stats(); got.Received != n || got.Handled != n || got.Dropped+got.Undecodable+got.Disconnects != 0 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestBus_Service_namesAreApart(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		bus := newBus(t, client, pubsub.Config{})
		own, foreign := newRecorder(), newRecorder()
		ownTopic := topicOf[int](t, bus, "changed")
		foreignTopic := topicOf[int](t, bus.Service(client.Service()+"-other"), "changed")
		for topic, r := range map[*pubsub.Topic[int]]*recorder{ownTopic: own, foreignTopic: foreign} {
			sub, err := topic.Subscribe(t.Context(), r.message, r.gap)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sub.Close() }()
		}
		publish(t, ownTopic, 1)
		publish(t, foreignTopic, 2)
		publish(t, ownTopic, 3)
		publish(t, foreignTopic, 4)
		if got := describe(own.untilMessage(t, 3)); got != "1 3 " {
			t.Errorf("own topic got %s", got)
		}
		if got := describe(foreign.untilMessage(t, 4)); got != "2 4 " {
			t.Errorf("other service's topic got %s", got)
		}
		// The channel is the service's key, which other libraries can use.
		if err := client.Publish(t.Context(), client.Key("changed"), "5").Err(); err != nil {
			t.Fatal(err)
		}
		own.untilMessage(t, 5)
	})
}

func TestPattern_Subscribe(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		bus := newBus(t, client, pubsub.Config{})
		pattern, err := pubsub.Matching[int](bus, "ward:?:beds")
		if err != nil {
			t.Fatal(err)
		}
		r := newRecorder()
		sub, err := pattern.Subscribe(t.Context(), r.message, r.gap)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sub.Close() }()
		for i, name := range []string{"ward:a:beds", "ward:ab:beds", "ward:b:doors", "ward:b:beds"} {
			publish(t, topicOf[int](t, bus, name), i)
			publish(t, topicOf[int](t, bus.Service(client.Service()+"-other"), name), 100+i)
		}
		var got []string
		for _, e := range r.untilMessage(t, 3) {
			got = append(got, fmt.Sprint(e.topic, "=", e.number))
		}
		if want := []string{"ward:a:beds=0", "ward:b:beds=3"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A slow handler costs messages, and it is told how many and where.
func TestSubscription_slowHandler(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		const n, buffer = 50, 4
		topic := topicOf[int](t, newBus(t, client, pubsub.Config{Buffer: buffer}), "numbers")
		r, busy, release := newRecorder(), make(chan struct{}), make(chan struct{})
		sub, err := topic.Subscribe(t.Context(), func(ctx context.Context, m pubsub.Message[int]) {
			if m.Value == 0 {
				close(busy)
				<-release
			}
			r.message(ctx, m)
		}, r.gap)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sub.Close() }()
		publish(t, topic, 0)
		<-busy
		for i := 1; i < n; i++ {
			publish(t, topic, i)
		}
		eventually(t, "all messages", func() bool { return sub.Stats().Received == n })
		if got := sub.Stats(); got.Buffered != buffer || got.Dropped != n-1-buffer || got.Handled != 0 {
			t.Errorf("while the handler hangs: %+v", got)
		}
		close(release)
		r.untilGap(t)
		publish(t, topic, n)
		events := r.untilMessage(t, n)
		account(t, events)
		if got := describe(events); !strings.HasPrefix(got, "0 1 2 3 4 [45 messages dropped by a full buffer within") {
			t.Errorf("got %s", got)
		}
		if g := r.untilGap(t); g.Err != nil || g.Disconnects != 0 {
			t.Errorf("gap %+v", g)
		}
	})
}

// A handler that never comes back holds the buffer and no more.
func TestSubscription_deadHandler(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	topic := topicOf[string](t, newBus(t, client, pubsub.Config{BufferBytes: 1 << 20}), "large")
	busy := make(chan struct{}, 1)
	sub, err := topic.Subscribe(t.Context(), func(ctx context.Context, _ pubsub.Message[string]) {
		busy <- struct{}{}
		<-ctx.Done() // Close ends the context, or it would wait for ever
	}, pubsub.IgnoreGaps)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, topic, "first")
	<-busy
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const n = 200
	text := strings.Repeat("x", 256<<10)
	for range n {
		publish(t, topic, text)
	}
	eventually(t, "all messages", func() bool { return sub.Stats().Received == n+1 })
	if grown := int64(heap()) - int64(before); grown > 16<<20 {
		t.Errorf("50 MiB of messages took %d MiB of memory", grown>>20)
	}
	if got := sub.Stats(); got.Buffered != 3 || got.Dropped != n-3 {
		t.Errorf("stats %+v: want 3 messages of 256 KiB in a buffer of 1 MiB", got)
	}
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
}

func TestSubscription_undecodable(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		topic, r, sub := numbers(t, client, pubsub.Config{})
		publish(t, topic, 0)
		// Not client.Publish: in a Cluster that may take another way and arrive later.
		publish(t, topicOf[string](t, newBus(t, client, pubsub.Config{}), "numbers"), "Ada Lovelace")
		publish(t, topic, 2)
		account(t, r.untilMessage(t, 2))
		g := r.untilGap(t)
		if g.Undecodable != 1 || g.Err == nil || strings.Contains(g.Err.Error(), "Ada") {
			t.Errorf("gap %+v", g)
		}
		if got := sub.Stats(); got.Undecodable != 1 || got.Received != 3 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestSubscription_Close_waitsForHandler(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		topic := topicOf[int](t, newBus(t, client, pubsub.Config{}), "numbers")
		var running atomic.Int64
		busy, closing, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
		sub, err := topic.Subscribe(t.Context(), func(ctx context.Context, _ pubsub.Message[int]) {
			running.Add(1)
			defer running.Add(-1)
			close(busy) // a second call would panic
			<-ctx.Done()
			close(closing)
			<-release
		}, pubsub.IgnoreGaps)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, topic, 1)
		publish(t, topic, 2)
		<-busy
		closed := make(chan error)
		go func() { closed <- sub.Close() }()
		<-closing
		select {
		case err := <-closed:
			t.Fatalf("Close returned while the handler was running: %v", err)
		case <-sub.Done():
			t.Error("done while the handler was running")
		case release <- struct{}{}:
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if running.Load() != 0 {
			t.Error("a handler runs after Close")
		}
		if err := sub.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestTopic_Subscribe_endsWithContext(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		topic := topicOf[int](t, newBus(t, client, pubsub.Config{}), "numbers")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		// From within the handler, where Close would wait for itself.
		sub, err := topic.Subscribe(ctx, func(context.Context, pubsub.Message[int]) { cancel() }, pubsub.IgnoreGaps)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, topic, 1)
		<-sub.Done()
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
		if sub.Stats().Connected {
			t.Error("connected after its end")
		}
	})
}

func TestSubscription_clientClosed(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		_, r, sub := numbers(t, client, pubsub.Config{})
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		<-sub.Done()
		if err := sub.Close(); !errors.Is(err, redis.ErrClosed) {
			t.Errorf("Close: %v, want redis.ErrClosed", err)
		}
		if g := r.untilGap(t); g.Disconnects != 1 || !errors.Is(g.Err, redis.ErrClosed) {
			t.Errorf("last gap %+v", g)
		}
	})
}

func TestTopic_Subscribe_refused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	srv := testenv.Redis(t, testenv.ACL("narrow", "secret-word", "~* resetchannels &own:* +@all"))
	cfg := srv.Config()
	cfg.Service = "own"
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	bus := newBus(t, client, pubsub.Config{})
	topic := topicOf[int](t, bus, "numbers")
	r := newRecorder()

	if _, err := topic.Subscribe(ctx, r.message, nil); err == nil {
		t.Error("subscribed without a function for gaps")
	}
	if _, err := topic.Subscribe(ctx, nil, r.gap); err == nil {
		t.Error("subscribed without a function for messages")
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := topic.Subscribe(over, r.message, r.gap); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_, err = topicOf[int](t, bus.Service("other"), "numbers").Subscribe(ctx, r.message, r.gap)
	if err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("channel not allowed by the ACL: %v", err)
	}
	sub, err := topic.Subscribe(ctx, r.message, r.gap)
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
	srv.Kill()
	if _, err := topic.Subscribe(ctx, r.message, r.gap); err == nil {
		t.Error("subscribed to a dead server")
	}
	if err := topic.Publish(ctx, 1); err == nil {
		t.Error("published to a dead server")
	}
}

func TestNew_refuses(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		if _, err := pubsub.New(nil, pubsub.Config{}); err == nil {
			t.Error("made a bus without a client")
		}
		_, err := pubsub.New(client, pubsub.Config{Buffer: -1, BufferBytes: -1, DeadAfter: time.Millisecond})
		for _, name := range []string{"Buffer is -1", "BufferBytes is -1", "DeadAfter is 1ms"} {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("error %v does not say %q", err, name)
			}
		}
		bus := newBus(t, client, pubsub.Config{})
		if _, err := pubsub.Of[int](bus, ""); err == nil {
			t.Error("made a topic without a name")
		}
		if _, err := pubsub.Matching[int](bus, ""); err == nil {
			t.Error("made a pattern without a pattern")
		}
		for _, service := range []string{"", "*", "a:b", "a b"} {
			if _, err := pubsub.Of[int](bus.Service(service), "numbers"); err == nil {
				t.Errorf("made a topic of service %q", service)
			}
			if _, err := pubsub.Matching[int](bus.Service(service), "numbers"); err == nil {
				t.Errorf("made a pattern of service %q", service)
			}
		}
		if err := topicOf[func()](t, bus, "functions").Publish(t.Context(), func() {}); err == nil {
			t.Error("published a function")
		}
	})
}

// eventually polls a counter, which has no signal.
func eventually(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !reached(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
