package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

func TestProducer_IdempotencyKey(t *testing.T) {
	t.Parallel()
	p := setup(t)
	first := send(t, p, message(), IdempotencyKey("invoice-1"), Delay(time.Hour))
	if first.Duplicate {
		t.Errorf("the first call is a duplicate: %+v", first)
	}
	// A second call gets the first receipt, whatever else it asks for.
	other := message()
	other.Subject = "Another subject"
	second := send(t, p, other, IdempotencyKey("invoice-1"), Priority(Critical))
	want := first
	want.Duplicate = true
	if second != want {
		t.Errorf("second receipt = %+v\nwant %+v", second, want)
	}
	if n := size(t, p, first.Queue); n != 1 {
		t.Errorf("queue has %d jobs, want 1", n)
	}
	if third := send(t, p, message(), IdempotencyKey("invoice-2")); third.Duplicate || third.ID == first.ID {
		t.Errorf("another key gives %+v", third)
	}
	if fourth := send(t, p, message()); fourth.Duplicate {
		t.Errorf("no key gives %+v", fourth)
	}
}

// The record outlives the job: nothing rests on the task in asynq.
func TestProducer_IdempotencyKey_AfterTheJobIsGone(t *testing.T) {
	t.Parallel()
	p := setup(t)
	first := send(t, p, message(), IdempotencyKey("k"), Retention(0))
	if err := p.inspector.DeleteTask(first.Queue, first.ID); err != nil {
		t.Fatal(err)
	}
	if second := send(t, p, message(), IdempotencyKey("k")); !second.Duplicate || second.ID != first.ID {
		t.Errorf("second call makes %+v", second)
	}
	if n := size(t, p, first.Queue); n != 0 {
		t.Errorf("queue has %d jobs, want 0", n)
	}
}

func TestProducer_IdempotencyKey_Scope(t *testing.T) {
	t.Parallel()
	rdb := shared.Open(t)
	a, b := setup(t).namespace, setup(t).namespace
	ids := map[string]bool{}
	for _, scope := range [][2]string{{a, "x"}, {a, "y"}, {b, "x"}, {a, ""}} {
		p, err := NewProducer(rdb, Namespace(scope[0]), FromService(scope[1]))
		if err != nil {
			t.Fatal(err)
		}
		r := send(t, p, message(), IdempotencyKey("k"))
		if r.Duplicate || ids[r.ID] {
			t.Errorf("namespace and service %q share a key with another: %+v", scope, r)
		}
		ids[r.ID] = true
	}
}

func TestProducer_IdempotencyKey_Record(t *testing.T) {
	t.Parallel()
	p := setup(t)
	r := send(t, p, message(), IdempotencyKey("patient@example.com"), Delay(2*time.Hour), Retention(30*time.Hour))
	key := p.recordKey(jobEmail, "patient@example.com")
	if want := fmt.Sprintf("postroom:idempotency:{%s:accounts-service:email:send:%s}", p.namespace, hashKey("patient@example.com")); key != want {
		t.Errorf("record key = %q, want %q", key, want)
	}
	raw, err := p.rdb.Get(t.Context(), key).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw)+key, "patient") {
		t.Errorf("the key stands in clear in %s = %s", key, raw)
	}
	var got record
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got != newRecord(r, true) {
		t.Errorf("record = %+v, want %+v", got, newRecord(r, true))
	}
	ttl, err := p.rdb.TTL(t.Context(), key).Result()
	if err != nil || ttl > 32*time.Hour || ttl < 32*time.Hour-time.Minute {
		t.Errorf("record lives for %v (%v), want 32h", ttl, err)
	}
}

// The first producer died after its record and before its job.
func TestProducer_IdempotencyKey_DiedBeforeEnqueue(t *testing.T) {
	t.Parallel()
	p := setup(t)
	dead := record{ID: "01940000-0000-7000-8000-000000000000", Queue: EmailQueue(p.namespace, Critical), EnqueuedAt: time.Now().Add(-time.Minute)}
	if err := p.rdb.Set(t.Context(), p.recordKey(jobEmail, "k"), dead.encode(), time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	// The id may be in that queue by now, so the job goes there and nowhere else.
	r := send(t, p, message(), IdempotencyKey("k"))
	if r.Duplicate || r.ID != dead.ID || r.Queue != dead.Queue {
		t.Errorf("receipt = %+v, want a new job with the id and queue of %+v", r, dead)
	}
	if info := stored(t, p, r); info.State != asynq.TaskStatePending {
		t.Errorf("job is %v", info.State)
	}
	again := send(t, p, message(), IdempotencyKey("k"))
	if !again.Duplicate || again.ID != r.ID || !again.EnqueuedAt.Equal(r.EnqueuedAt) {
		t.Errorf("then %+v, want a duplicate of %+v", again, r)
	}
}

// The first producer died after its job and before it confirmed.
func TestProducer_IdempotencyKey_DiedBeforeConfirm(t *testing.T) {
	t.Parallel()
	p := setup(t)
	first := send(t, p, message(), IdempotencyKey("k"), Delay(time.Hour))
	key := p.recordKey(jobEmail, "k")
	unconfirmed, err := json.Marshal(newRecord(first, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.rdb.Set(t.Context(), key, unconfirmed, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	want := first
	want.Duplicate = true
	if second := send(t, p, message(), IdempotencyKey("k"), Priority(Bulk)); second != want {
		t.Errorf("second receipt = %+v\nwant %+v", second, want)
	}
	if n := size(t, p, first.Queue); n != 1 {
		t.Errorf("queue has %d jobs, want 1", n)
	}
	var got record
	raw, err := p.rdb.Get(t.Context(), key).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &got); err != nil || got != newRecord(first, true) {
		t.Errorf("record = %+v (%v), want it confirmed", got, err)
	}
}

// The job is there, but cannot be looked at.
func TestProducer_IdempotencyKey_JobInLostQueue(t *testing.T) {
	t.Parallel()
	p := setup(t)
	first := send(t, p, message(), IdempotencyKey("k"))
	unconfirmed, err := json.Marshal(newRecord(first, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.rdb.Set(t.Context(), p.recordKey(jobEmail, "k"), unconfirmed, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	if err := p.rdb.SRem(t.Context(), "asynq:queues", first.Queue).Err(); err != nil {
		t.Fatal(err)
	}
	if second := send(t, p, message(), IdempotencyKey("k")); !second.Duplicate || second.ID != first.ID {
		t.Errorf("second receipt = %+v, want a duplicate of %+v", second, first)
	}
}

func TestProducer_IdempotencyKey_UnreadableRecord(t *testing.T) {
	t.Parallel()
	p := setup(t)
	if err := p.rdb.Set(t.Context(), p.recordKey(jobEmail, "k"), canary, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	r, err := p.SendEmail(t.Context(), message(), IdempotencyKey("k"))
	if err == nil || !strings.Contains(err.Error(), p.recordKey(jobEmail, "k")) || strings.Contains(err.Error(), canary) {
		t.Errorf("SendEmail() = %+v, %v; want an error that names the record", r, err)
	}
}

// However many callers and producers meet on a key, there is one job, and one of
// them made it.
func TestProducer_IdempotencyKey_Concurrent(t *testing.T) {
	t.Parallel()
	const producers, callers, keys = 3, 16, 20
	first := setup(t)
	all := []*Producer{first}
	for range producers - 1 {
		p, err := NewProducer(shared.Open(t), Namespace(first.namespace), FromService(first.service))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	for key := range keys {
		var wg sync.WaitGroup
		start := make(chan struct{})
		receipts := make(chan Receipt, producers*callers)
		for n := range producers * callers {
			wg.Go(func() {
				<-start
				r, err := all[n%producers].SendEmail(t.Context(), message(), IdempotencyKey(fmt.Sprint("key", key)))
				if err != nil {
					t.Error(err)
				}
				receipts <- r
			})
		}
		close(start)
		wg.Wait()
		close(receipts)
		made := 0
		var id string
		for r := range receipts {
			if !r.Duplicate {
				made++
			}
			if id == "" {
				id = r.ID
			}
			if r.ID != id {
				t.Errorf("key %d has the jobs %s and %s", key, id, r.ID)
			}
		}
		if made != 1 {
			t.Errorf("key %d: %d callers say that they made the job, want 1", key, made)
		}
	}
	if n := size(t, first, EmailQueue(first.namespace, Default)); n != keys {
		t.Errorf("queue has %d jobs, want %d", n, keys)
	}
}

// A lost answer is never an error while go-redis may repeat the command, and
// never a second job.
func TestProducer_LostReply(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	tests := []struct {
		name    string
		command string
		spare   int
		opts    []Option
	}{
		{"enqueue", "evalsha", 0, nil},
		{"enqueue later", "evalsha", 0, []Option{Delay(time.Hour)}},
		{"enqueue with key", "evalsha", 0, []Option{IdempotencyKey("a")}},
		{"claim", "set", 0, []Option{IdempotencyKey("b")}},
		{"confirm", "set", 1, []Option{IdempotencyKey("c")}},
	}
	for _, tt := range tests {
		p := newProducer(t, proxy.client(t, 3))
		// The scripts are loaded, and the queue is announced.
		send(t, p, message(), Queue("email:warm-up"))
		send(t, p, message(), Queue("email:warm-up"), Delay(time.Hour))
		before := proxy.dropped.Load()
		proxy.drop(tt.command, tt.spare)
		r := send(t, p, message(), tt.opts...)
		if proxy.dropped.Load() != before+1 {
			t.Fatalf("%s: no reply was lost", tt.name)
		}
		if r.Duplicate {
			t.Errorf("%s: the call takes its own job for another's: %+v", tt.name, r)
		}
		if info := stored(t, p, r); info.ID != r.ID || size(t, p, r.Queue) != 1 {
			t.Errorf("%s: queue has %d jobs, want 1", tt.name, size(t, p, r.Queue))
		}
	}
}

// Without a repetition the outcome is unknown, and the caller is told. With a
// key, calling again settles it.
func TestProducer_LostReply_Unconfirmed(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	p := newProducer(t, proxy.client(t, 0))
	send(t, p, message())
	proxy.drop("evalsha", 0)
	r, err := p.SendEmail(t.Context(), message(), Priority(Critical), IdempotencyKey("k"))
	// The queue was announced first, so the lost reply is the script's.
	if !errors.Is(err, ErrUnconfirmed) || r != (Receipt{}) || proxy.dropped.Load() != 1 {
		t.Fatalf("SendEmail() = %+v, %v; want ErrUnconfirmed", r, err)
	}
	second := send(t, p, message(), Priority(Critical), IdempotencyKey("k"))
	if !second.Duplicate || size(t, p, second.Queue) != 1 {
		t.Errorf("the repetition gives %+v, queue has %d jobs; want the job of the first call", second, size(t, p, second.Queue))
	}
}

// The same for batches: with repetitions nothing shows, and each job is there
// once.
func TestProducer_LostReply_Many(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	const count = 3 * batchJobs
	for _, tt := range []struct {
		name    string
		command string
		spare   int
		keyed   bool
		spread  bool
	}{
		{"first batch", "evalsha", 0, false, false},
		{"later batch", "evalsha", 1, false, false},
		{"several queues", "evalsha", 1, false, true},
		{"with keys", "evalsha", 1, true, true},
		{"claims", "set", 0, true, false},
		{"later claims", "set", 2, true, true},
		{"confirmations", "set", 1, true, false},
	} {
		p := newProducer(t, proxy.client(t, 3))
		for _, level := range []PriorityLevel{Critical, Default, Bulk} {
			send(t, p, message(), Priority(level))
		}
		items := func(yield func(Item) bool) {
			for i := range count {
				item := Item{Email: message()}
				if tt.keyed {
					item.Options = append(item.Options, IdempotencyKey(fmt.Sprint(tt.name, i)))
				}
				if !yield(item) {
					return
				}
			}
		}
		before := proxy.dropped.Load()
		proxy.drop(tt.command, tt.spare)
		input := iter.Seq[Item](items)
		if tt.spread {
			input = spread(input)
		}
		ids := map[string]bool{}
		for i, r := range p.EnqueueMany(t.Context(), input) {
			if r.Err != nil || r.Receipt.Duplicate {
				t.Fatalf("%s: item %d: %+v", tt.name, i, r)
			}
			ids[r.Receipt.ID] = true
		}
		if proxy.dropped.Load() != before+1 {
			t.Errorf("%s: no reply was lost", tt.name)
		}
		total := 0
		for _, level := range []PriorityLevel{Critical, Default, Bulk} {
			total += size(t, p, EmailQueue(p.namespace, level))
		}
		if total != count+3 || len(ids) != count {
			t.Errorf("%s: queues have %d jobs and %d ids were given, want %d and %d", tt.name, total, len(ids), count+3, count)
		}
	}
}

// Without repetitions exactly the jobs of the batch are in doubt, and calling again
// with their keys settles it.
func TestProducer_LostReply_Many_Unconfirmed(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, shared.Addr())
	p := newProducer(t, proxy.client(t, 0))
	send(t, p, message(), Queue("email:warm-up"))
	const count = 3 * batchJobs
	items := func(yield func(Item) bool) {
		for i := range count {
			if !yield(Item{Email: message(), Options: []Option{IdempotencyKey(fmt.Sprint("k", i))}}) {
				return
			}
		}
	}
	proxy.drop("evalsha", 1)
	made, doubted := 0, 0
	for i, r := range p.EnqueueMany(t.Context(), items) {
		switch {
		case errors.Is(r.Err, ErrUnconfirmed):
			doubted++
		case r.Err != nil || r.Receipt.Duplicate:
			t.Fatalf("item %d: %+v", i, r)
		default:
			made++
		}
	}
	if doubted == 0 || doubted > batchJobs || made+doubted != count {
		t.Errorf("%d jobs were made and %d are in doubt, want at most %d in doubt", made, doubted, batchJobs)
	}
	for i, r := range p.EnqueueMany(t.Context(), items) {
		if r.Err != nil || !r.Receipt.Duplicate {
			t.Fatalf("item %d again: %+v, want a duplicate", i, r)
		}
	}
	if n := size(t, p, EmailQueue(p.namespace, Default)); n != count {
		t.Errorf("queue has %d jobs, want %d", n, count)
	}
}

// The call that claimed a key gives up while others of its batch go on: its key is
// free for the next.
func TestProducer_IdempotencyKey_WithdrawnAfterClaim(t *testing.T) {
	t.Parallel()
	p := setup(t)
	j, err := p.compose(t.Context(), message(), []Option{IdempotencyKey("k")})
	if err != nil {
		t.Fatal(err)
	}
	twin, err := p.compose(t.Context(), message(), []Option{IdempotencyKey("k")})
	if err != nil {
		t.Fatal(err)
	}
	j.fate.Store(fateWithdrawn)
	p.deliver(t.Context(), []*job{j, twin})
	if j.result.Err == nil {
		t.Error("a withdrawn job was accepted")
	}
	// The twin runs under the id in the record.
	if r := twin.result; r.Err != nil || r.Receipt.ID != j.id || r.Receipt.Duplicate {
		t.Errorf("second call with the key: %+v, want a new job with the id of the first", r)
	}
	if again := send(t, p, message(), IdempotencyKey("k")); !again.Duplicate || again.ID != j.id {
		t.Errorf("then %+v, want a duplicate", again)
	}
	if n := size(t, p, j.queue); n != 1 {
		t.Errorf("queue has %d jobs, want 1", n)
	}
}

// pausingClient runs a function after each claim.
type pausingClient struct {
	redis.UniversalClient

	claimed func()
}

func (c pausingClient) Pipeline() redis.Pipeliner {
	return pausingPipeline{c.UniversalClient.Pipeline(), c.claimed}
}

type pausingPipeline struct {
	redis.Pipeliner

	claimed func()
}

func (p pausingPipeline) Exec(ctx context.Context) ([]redis.Cmder, error) {
	cmds, err := p.Pipeliner.Exec(ctx)
	if len(cmds) > 0 && cmds[0].Name() == "set" && strings.Contains(cmds[0].String(), " nx") {
		p.claimed()
	}
	return cmds, err
}

// Another call took the record over while this one was between claim and
// enqueue: this one finds its id taken and is the duplicate.
func TestProducer_IdempotencyKey_TakenOver(t *testing.T) {
	t.Parallel()
	p := setup(t)
	var winner Receipt
	client := pausingClient{p.rdb, func() { winner = send(t, p, message(), IdempotencyKey("k"), Delay(time.Minute)) }}
	slow, err := NewProducer(client, Namespace(p.namespace), FromService(p.service))
	if err != nil {
		t.Fatal(err)
	}
	loser := send(t, slow, message(), IdempotencyKey("k"))
	want := winner
	want.Duplicate = true
	if winner.Duplicate || loser != want {
		t.Errorf("the call that came too late gets %+v\nwant %+v", loser, want)
	}
	if n := size(t, p, winner.Queue); n != 1 {
		t.Errorf("queue has %d jobs, want 1", n)
	}
}
