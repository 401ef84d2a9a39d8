package tasks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

// numbered yields n messages, or endlessly many for a negative n, and counts
// what has been read. Every seventh is bad.
func numbered(n int, read *int) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for i := 0; i != n; i++ {
			*read++
			email := message()
			email.Subject = fmt.Sprint("message ", i)
			if i%7 == 6 {
				email.To = "nobody"
			}
			if !yield(Item{Email: email}) {
				return
			}
		}
	}
}

func TestProducer_EnqueueMany(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 63, manyWindow, 2500} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			p := setup(t)
			next, read, good := 0, 0, 0
			for i, r := range p.EnqueueMany(t.Context(), numbered(n, &read), Priority(Bulk)) {
				if i != next {
					t.Fatalf("result %d comes in place of %d", i, next)
				}
				next++
				if i%7 == 6 {
					if !slices.Equal(fields(r.Err), []string{"to"}) || r.Receipt != (Receipt{}) {
						t.Fatalf("result %d = %+v, want an error about to", i, r)
					}
					continue
				}
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				good++
				if i%100 == 0 {
					if email, err := DecodeEmail(stored(t, p, r.Receipt).Payload); err != nil || email.Subject != fmt.Sprint("message ", i) {
						t.Fatalf("result %d belongs to %q (%v)", i, email.Subject, err)
					}
				}
			}
			if next != n || read != n {
				t.Errorf("%d items read and %d results, want %d", read, next, n)
			}
			if n > 0 {
				if got := size(t, p, EmailQueue(p.namespace, Bulk)); got != good {
					t.Errorf("queue has %d jobs, want %d", got, good)
				}
			}
		})
	}
}

func TestProducer_EnqueueMany_ItemOptionsWin(t *testing.T) {
	t.Parallel()
	p := setup(t)
	items := slices.Values([]Item{
		{Email: message()},
		{Email: message(), Options: []Option{Priority(Critical)}},
		{Email: message(), Options: []Option{IdempotencyKey("k")}},
		{Email: message(), Options: []Option{IdempotencyKey("k")}},
		{Email: message(), Options: []Option{MaxRetry(0)}},
	})
	var queues []string
	var made []bool
	for _, r := range p.EnqueueMany(t.Context(), items, Priority(Bulk)) {
		queues = append(queues, r.Receipt.Queue)
		made = append(made, r.Err == nil && !r.Receipt.Duplicate)
	}
	bulk := EmailQueue(p.namespace, Bulk)
	if want := []string{bulk, EmailQueue(p.namespace, Critical), bulk, bulk, ""}; !slices.Equal(queues, want) {
		t.Errorf("queues = %q, want %q", queues, want)
	}
	if want := []bool{true, true, true, false, false}; !slices.Equal(made, want) {
		t.Errorf("jobs made = %v, want %v: the second with a key is a duplicate of the first", made, want)
	}
}

// The input may be endless: it is read no further ahead than the window.
func TestProducer_EnqueueMany_Endless(t *testing.T) {
	t.Parallel()
	p := setup(t)
	read, ahead := 0, 0
	for i := range p.EnqueueMany(t.Context(), numbered(-1, &read)) {
		ahead = max(ahead, read-i)
		if i == 20*manyWindow {
			break
		}
	}
	if ahead > manyWindow || ahead < 2 {
		t.Errorf("%d items were read ahead, want more than one and at most %d", ahead, manyWindow)
	}
	if read > 21*manyWindow {
		t.Errorf("%d items were read, %d of them after the end", read, read-20*manyWindow)
	}
}

// Large jobs are read ahead by their size, not by their number.
func TestProducer_EnqueueMany_LargeJobs(t *testing.T) {
	t.Parallel()
	p := setup(t)
	const count = 24
	email := message()
	email.Attachments = []Attachment{{Name: "scan.pdf", Content: make([]byte, manyBytes/8)}}
	read, ahead, results := 0, 0, 0
	items := func(yield func(Item) bool) {
		for range count {
			read++
			if !yield(Item{Email: email}) {
				return
			}
		}
	}
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ahead = max(ahead, read-i)
		results++
	}
	// Encoded, each has more than an eighth of the bound.
	if ahead > 8 || results != count {
		t.Errorf("%d items were read ahead, want at most 8; %d results, want %d", ahead, results, count)
	}
}

func TestProducer_EnqueueMany_BreakLeavesNothing(t *testing.T) {
	p := setup(t)
	send(t, p, message())
	before := goleak.IgnoreCurrent()
	for _, stop := range []int{0, 1, manyWindow + 10} {
		read := 0
		for i := range p.EnqueueMany(t.Context(), numbered(-1, &read)) {
			if i == stop {
				break
			}
		}
		goleak.VerifyNone(t, before, testenv.IgnorePools())
	}
	// The same with a consumer that panics.
	func() {
		defer func() { _ = recover() }()
		read := 0
		for range p.EnqueueMany(t.Context(), numbered(-1, &read)) {
			panic("consumer")
		}
	}()
	goleak.VerifyNone(t, before, testenv.IgnorePools())
}

func TestProducer_EnqueueMany_Cancel(t *testing.T) {
	t.Parallel()
	p := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, results, cancelled, accepted := 0, 0, 0, 0
	for _, r := range p.EnqueueMany(ctx, numbered(-1, &read)) {
		results++
		switch {
		case errors.Is(r.Err, context.Canceled):
			cancelled++
		case r.Err == nil:
			accepted++
		}
		if results == 500 {
			cancel()
		}
	}
	if results != read {
		t.Errorf("%d items were read and %d reported", read, results)
	}
	if read > 500+2*manyWindow {
		t.Errorf("%d items were read after the cancellation", read-500)
	}
	// Nothing that was cancelled is reported as accepted.
	if got := size(t, p, EmailQueue(p.namespace, Default)); got < accepted {
		t.Errorf("%d jobs are reported as accepted, the queue has %d", accepted, got)
	}
}

// Jobs of one queue lie there in the order of the input.
func TestProducer_EnqueueMany_Order(t *testing.T) {
	t.Parallel()
	p := setup(t)
	read := 0
	ids := map[string][]string{}
	for i, r := range p.EnqueueMany(t.Context(), spread(numbered(3000, &read))) {
		if i%7 != 6 && r.Err != nil {
			t.Fatal(r.Err)
		}
		if r.Err == nil {
			ids[r.Receipt.Queue] = append(ids[r.Receipt.Queue], r.Receipt.ID)
		}
	}
	if len(ids) != 3 {
		t.Fatalf("jobs went into %d queues, want 3", len(ids))
	}
	for queue, want := range ids {
		got, err := p.rdb.LRange(t.Context(), "asynq:{"+queue+"}:pending", 0, -1).Result()
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(got) // workers take from the tail
		if !slices.Equal(got, want) {
			t.Errorf("%s has another order than the input", queue)
		}
	}
}

// spread sends items to the three priorities in turn.
func spread(items iter.Seq[Item]) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		i := 0
		for item := range items {
			item.Options = append(item.Options, Priority([]PriorityLevel{Critical, Default, Bulk}[i%3]))
			if !yield(item) {
				return
			}
			i++
		}
	}
}

// An item does not wait for the next one, which may never come.
func TestProducer_EnqueueMany_SlowInput(t *testing.T) {
	t.Parallel()
	p := setup(t)
	queue := "asynq:{" + EmailQueue(p.namespace, Default) + "}:pending"
	items := func(yield func(Item) bool) {
		for n := int64(1); n <= 3; n++ {
			if !yield(Item{Email: message()}) {
				return
			}
			for deadline := time.Now().Add(20 * time.Second); p.rdb.LLen(t.Context(), queue).Val() != n; {
				if time.Now().After(deadline) {
					t.Errorf("item %d waits for the next one", n)
					return
				}
			}
		}
	}
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if r.Err != nil {
			t.Errorf("item %d: %v", i, r.Err)
		}
	}
}

// Leaving the loop does not wait for Redis.
func TestProducer_EnqueueMany_BreakStopsCalls(t *testing.T) {
	t.Parallel()
	p := setup(t)
	gate := &gatedClient{UniversalClient: p.rdb, release: make(chan struct{}), entered: make(chan struct{}, 1)}
	gated, err := NewProducer(gate, Namespace(p.namespace))
	if err != nil {
		t.Fatal(err)
	}
	items := func(yield func(Item) bool) {
		bad := message()
		bad.To = "nobody"
		for more := yield(Item{Email: bad}); more; more = yield(Item{Email: message()}) {
		}
	}
	for i, r := range gated.EnqueueMany(t.Context(), items) {
		if i != 0 || r.Err == nil {
			t.Errorf("result %d = %+v, want that of the bad message", i, r)
		}
		break
	}
	if queues, err := p.inspector.Queues(); err != nil || slices.Contains(queues, EmailQueue(p.namespace, Default)) && size(t, p, EmailQueue(p.namespace, Default)) != 0 {
		t.Errorf("jobs were accepted after the loop was left (%v)", err)
	}
}

// gatedClient holds every script back until release, or until its context ends.
type gatedClient struct {
	redis.UniversalClient

	entered chan struct{}
	release chan struct{}
}

func (c *gatedClient) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	select {
	case c.entered <- struct{}{}:
	default:
	}
	select {
	case <-c.release:
	case <-ctx.Done():
		cmd := redis.NewCmd(ctx)
		cmd.SetErr(ctx.Err())
		return cmd
	}
	return c.UniversalClient.EvalSha(ctx, sha, keys, args...)
}
