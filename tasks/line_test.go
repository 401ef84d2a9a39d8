package tasks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

// A turnstile lets one script call through for each element of admit, all after it
// is closed.
type turnstile struct {
	redis.UniversalClient

	admit chan struct{}
	calls atomic.Int64
	jobs  []int // of each call
	mu    sync.Mutex
}

func (c *turnstile) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if sha == enqueueMany.Hash() {
		c.mu.Lock()
		c.jobs = append(c.jobs, len(keys)-5)
		c.mu.Unlock()
		c.calls.Add(1)
		<-c.admit
	}
	return c.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

// behindTurnstile returns a producer whose flights are all taken by calls that
// wait at the turnstile. end lets everything through and waits for it.
func behindTurnstile(t *testing.T) (p *Producer, gate *turnstile, end func()) {
	t.Helper()
	plain := setup(t)
	send(t, plain, message(), Queue("email:warm-up")) // loads the script
	gate = &turnstile{UniversalClient: plain.rdb, admit: make(chan struct{})}
	p, err := NewProducer(gate, Namespace(plain.namespace), FromService(plain.service))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range flights {
		wg.Go(func() { send(t, p, message(), Queue("email:first")) })
		await(t, "a call at the turnstile", func() bool { return gate.calls.Load() == int64(i+1) })
	}
	end = func() {
		close(gate.admit)
		wg.Wait()
		await(t, "the end of the flights", func() bool { return p.flying() == 0 })
	}
	return p, gate, end
}

func (p *Producer) flying() int {
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	return p.line.flying
}

func (p *Producer) queued() int {
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	return len(p.line.waiting)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 20 seconds", what)
		}
	}
}

// Calls that find no room share the next script call, and each gets its own
// result.
func TestProducer_SendEmail_Together(t *testing.T) {
	t.Parallel()
	p, gate, end := behindTurnstile(t)
	const callers = batchJobs + 10
	receipts := make([]Receipt, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			email := message()
			email.Subject = fmt.Sprint("message ", i)
			receipts[i] = send(t, p, email)
		})
	}
	await(t, "line of calls", func() bool { return p.queued() == callers })
	end()
	wg.Wait()
	for i, r := range receipts {
		if email, err := DecodeEmail(stored(t, p, r).Payload); err != nil || email.Subject != fmt.Sprint("message ", i) {
			t.Fatalf("call %d has the receipt of %q (%v)", i, email.Subject, err)
		}
	}
	if n := size(t, p, receipts[0].Queue); n != callers {
		t.Errorf("queue has %d jobs, want %d", n, callers)
	}
	slices.Sort(gate.jobs)
	if want := []int{1, 1, 10, batchJobs}; !slices.Equal(gate.jobs, want) {
		t.Errorf("script calls with %v jobs, want %v", gate.jobs, want)
	}
}

// What many large jobs take on the wire is bounded, too.
func TestProducer_SendEmail_LargeJobsApart(t *testing.T) {
	t.Parallel()
	p, gate, end := behindTurnstile(t)
	email := message()
	email.Attachments = []Attachment{{Name: "scan.pdf", Content: make([]byte, batchBytes)}}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { send(t, p, email) })
	}
	await(t, "line of calls", func() bool { return p.queued() == 3 })
	end()
	wg.Wait()
	if want := []int{1, 1, 1, 1, 1}; !slices.Equal(gate.jobs, want) {
		t.Errorf("script calls with %v jobs, want %v", gate.jobs, want)
	}
}

// A call whose context ends takes its job out of the line, and knows that it was
// not accepted.
func TestProducer_SendEmail_Withdraws(t *testing.T) {
	t.Parallel()
	p, gate, end := behindTurnstile(t)
	ctx, cancel := context.WithCancel(t.Context())
	withdrawn := make(chan error, 1)
	go func() {
		_, err := p.SendEmail(ctx, message())
		withdrawn <- err
	}()
	await(t, "call in the line", func() bool { return p.queued() == 1 })
	var wg sync.WaitGroup
	wg.Go(func() { send(t, p, message()) })
	await(t, "second call", func() bool { return p.queued() == 2 })
	cancel()
	if err := <-withdrawn; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnconfirmed) {
		t.Errorf("SendEmail() = %v, want Canceled without doubt", err)
	}
	if n := p.queued(); n != 1 {
		t.Errorf("%d calls are in the line, want 1", n)
	}
	end()
	wg.Wait()
	if n := size(t, p, EmailQueue(p.namespace, Default)); n != 1 {
		t.Errorf("queue has %d jobs, want 1", n)
	}
	if want := []int{1, 1, 1}; !slices.Equal(gate.jobs, want) {
		t.Errorf("script calls with %v jobs, want %v", gate.jobs, want)
	}
}

// A call whose context ends while its batch is on its way does not wait for it,
// and cannot know.
func TestProducer_SendEmail_LeavesBatch(t *testing.T) {
	t.Parallel()
	p, gate, end := behindTurnstile(t)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := p.SendEmail(ctx, message())
		left <- err
	}()
	await(t, "call in the line", func() bool { return p.queued() == 1 })
	var wg sync.WaitGroup
	wg.Go(func() { send(t, p, message()) })
	await(t, "second call", func() bool { return p.queued() == 2 })
	gate.admit <- struct{}{} // ends the first flight
	await(t, "batch at the turnstile", func() bool { return gate.calls.Load() == flights+1 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("SendEmail() = %v, want ErrUnconfirmed and Canceled", err)
	}
	end()
	wg.Wait()
	if n := size(t, p, EmailQueue(p.namespace, Default)); n != 2 {
		t.Errorf("queue has %d jobs, want 2", n)
	}
}

func TestTogether(t *testing.T) {
	t.Parallel()
	type key struct{}
	base := context.WithValue(t.Context(), key{}, "value")
	soon, cancel := context.WithTimeout(base, time.Hour)
	defer cancel()
	late, cancel := context.WithTimeout(base, 2*time.Hour)
	defer cancel()
	ended, cancel := context.WithCancel(soon)
	cancel()
	last, _ := late.Deadline()
	for name, tt := range map[string]struct {
		calls []context.Context
		want  time.Time
	}{
		"latest":      {[]context.Context{soon, late, ended}, last},
		"no deadline": {[]context.Context{soon, base, late}, time.Time{}},
		"alone":       {[]context.Context{late}, last},
	} {
		var batch []*ticket
		for _, ctx := range tt.calls {
			batch = append(batch, &ticket{ctx: ctx})
		}
		ctx, cancel := together(batch)
		if got, _ := ctx.Deadline(); !got.Equal(tt.want) || ctx.Err() != nil || ctx.Value(key{}) != "value" {
			t.Errorf("%s: context ends at %v (%v), want %v", name, got, ctx.Err(), tt.want)
		}
		cancel()
	}
}

// Redis's refusal of a batch is the refusal of each of its jobs, and one queue's
// trouble is not another's.
func TestProducer_Batch_Refused(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	p := newProducer(t, server.Open(t))
	send(t, p, message())
	if err := p.rdb.Set(t.Context(), "asynq:{"+EmailQueue(p.namespace, Bulk)+"}:pending", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	items := func(yield func(Item) bool) {
		for i := range 30 {
			if !yield(Item{Email: message(), Options: []Option{Priority([]PriorityLevel{Critical, Default, Bulk}[i%3])}}) {
				return
			}
		}
	}
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if bad := i%3 == 2; bad != (r.Err != nil) || errors.Is(r.Err, ErrUnconfirmed) {
			t.Errorf("item %d: %+v, %v", i, r.Receipt, r.Err)
		}
	}
	if err := p.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	results := 0
	for i, r := range p.EnqueueMany(t.Context(), items) {
		results++
		if _, refused := errors.AsType[redis.Error](r.Err); !refused || errors.Is(r.Err, ErrUnconfirmed) || r.Receipt != (Receipt{}) {
			t.Errorf("item %d: %+v, %v; want the answer of Redis", i, r.Receipt, r.Err)
		}
	}
	if results != 30 {
		t.Errorf("%d results, want 30", results)
	}
}

// A Redis that has forgotten its scripts is told them again.
func TestProducer_Batch_ScriptsForgotten(t *testing.T) {
	t.Parallel()
	p := newProducer(t, testenv.Redis(t).Open(t))
	read := 0
	for range 2 {
		for _, items := range []func() int{
			func() int { return len(sendMany(t, p, 10)) },
			func() int {
				n := 0
				for i, r := range p.EnqueueMany(t.Context(), spread(numbered(40, &read))) {
					if i%7 != 6 && r.Err != nil {
						t.Errorf("item %d: %v", i, r.Err)
					}
					n++
				}
				return n
			},
		} {
			if err := p.rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			items()
		}
	}
	total := 0
	for _, level := range []PriorityLevel{Critical, Default, Bulk} {
		total += size(t, p, EmailQueue(p.namespace, level))
	}
	if want := 2 * (10 + 40 - 5); total != want {
		t.Errorf("queues have %d jobs, want %d", total, want)
	}
}

// Whatever the calls do, each knows what became of its job, and nothing is left
// running.
func TestProducer_SendEmail_Storm(t *testing.T) {
	p := newProducer(t, testenv.Redis(t).Open(t))
	send(t, p, message())
	before := goleak.IgnoreCurrent()
	var accepted, unconfirmed, duplicates atomic.Int64
	accepted.Add(1)
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(4000))*time.Microsecond)
				if rng.IntN(2) == 0 {
					cancel()
					ctx, cancel = context.WithCancel(t.Context())
				}
				var opts []Option
				switch rng.IntN(4) {
				case 0:
					opts = append(opts, IdempotencyKey(fmt.Sprint("key", rng.IntN(20))))
				case 1:
					opts = append(opts, Delay(time.Hour))
				}
				r, err := p.SendEmail(ctx, message(), opts...)
				cancel()
				switch {
				case err == nil && r.Duplicate:
					duplicates.Add(1)
				case err == nil:
					accepted.Add(1)
				case errors.Is(err, ErrUnconfirmed):
					unconfirmed.Add(1)
				case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	goleak.VerifyNone(t, before, testenv.IgnorePools())
	n := int64(size(t, p, EmailQueue(p.namespace, Default)))
	if n < accepted.Load() || n > accepted.Load()+unconfirmed.Load() {
		t.Errorf("queue has %d jobs; %d were accepted and %d are unconfirmed", n, accepted.Load(), unconfirmed.Load())
	}
	if duplicates.Load() == 0 {
		t.Error("no key was used twice")
	}
}
