package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/testenv"
)

func testFetcher(cfg Config, cluster bool) *fetcher {
	return newFetcher(cfg, newSlots(cfg.Concurrency), cluster)
}

func testPump(rdb redis.UniversalClient, cfg Config, cluster bool) *pump {
	f := testFetcher(cfg, cluster)
	return newPump(rdb, f, f.slots, make(chan struct{}))
}

// fill takes jobs for all slots.
func fill(t *testing.T, rdb redis.Scripter, f *fetcher, lease int64) []fetched {
	t.Helper()
	plan, _ := f.plan(f.slots.free(), lease, false)
	var some found
	var err error
	if f.cluster {
		some, err = f.takeByQueue(t.Context(), rdb, plan)
	} else {
		some, err = f.read(plan.call(f.queues).run(t.Context(), rdb), f.queues)
	}
	if err != nil {
		t.Fatal(err)
	}
	return some.jobs
}

// Shares are exact over any long stretch, whatever the size of the batches.
func TestFetcher_KeepsTheShares(t *testing.T) {
	t.Parallel()
	f := testFetcher(Config{Queues: map[string]int{"a": 6, "b": 3, "c": 1}, Concurrency: 100}, false)
	got := map[string]int{}
	total := 0
	for total < 10_000 {
		n := 1 + rand.IntN(40)
		for i, share := range f.shares(n) {
			got[f.queues[i].name] += share
		}
		total += n
		for q, w := range map[string]int{"a": 6, "b": 3, "c": 1} {
			if want := total * w / 10; got[q] < want-2 || got[q] > want+2 {
				t.Fatalf("after %d jobs %s has %d, want %d ± 2", total, q, got[q], want)
			}
		}
	}
}

// The queue to turn to is drawn by weight, so that what an empty queue leaves
// goes to all the others.
func TestFetcher_OrderIsWeighted(t *testing.T) {
	t.Parallel()
	f := testFetcher(Config{Queues: map[string]int{"a": 6, "b": 3, "c": 1}, Concurrency: 100}, false)
	first := map[string]int{}
	const draws = 20_000
	for range draws {
		first[f.queues[f.order()[0]].name]++
	}
	for q, share := range map[string]float64{"a": 0.6, "b": 0.3, "c": 0.1} {
		if got := float64(first[q]) / draws; got < share-0.02 || got > share+0.02 {
			t.Errorf("%s comes first in %.3f of the draws, want %.1f", q, got, share)
		}
	}
	strict := testFetcher(Config{Queues: map[string]int{"a": 6, "b": 3, "c": 1}, StrictPriority: true, Concurrency: 100}, false)
	if got := strict.order(); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("strict order is %v", got)
	}
}

type noScriptError string

func (e noScriptError) Error() string { return string(e) }
func (noScriptError) RedisError()     {}

// What one call of ours does to every key is what as many calls of asynq's do,
// over random histories.
func TestFetcher_LikeAsynq(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	source := asynqScripts(t, server).of(t, fetchCall).script()
	ours := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 1})
	theirs := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 2})
	defer ours.Close()
	defer theirs.Close()
	for round := range 60 {
		rnd := rand.New(rand.NewPCG(uint64(round), 7))
		for _, db := range []*redis.Client{ours, theirs} {
			if err := db.FlushDB(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		queues := []string{"email:critical", "email:default", "email:bulk"}
		history(t, ours, rnd, queues)
		copyAll(t, ours, theirs)

		slots := 1 + rnd.IntN(30)
		weights := map[string]int{queues[0]: 1, queues[1]: 1, queues[2]: 1}
		f := testFetcher(Config{Queues: weights, StrictPriority: rnd.IntN(2) == 0, Concurrency: slots}, rnd.IntN(3) == 0)
		lease := int64(1_900_000_000)
		taken := fill(t, ours, f, lease)
		if len(taken) > slots {
			t.Fatalf("round %d: %d jobs taken for %d slots", round, len(taken), slots)
		}
		for i, job := range taken {
			prefix := "asynq:{" + job.queue + "}:"
			msg, err := source.Run(t.Context(), theirs, []string{prefix + "pending", prefix + "paused", prefix + "active", prefix + "lease"}, lease, prefix+"t:").Text()
			if err != nil || msg != job.msg {
				t.Fatalf("round %d, job %d of %s: asynq fetches another message (%v)", round, i, job.queue, err)
			}
		}
		if a, b := dump(t, ours), dump(t, theirs); !maps.Equal(a, b) {
			t.Fatalf("round %d: the keys differ\nours:   %v\ntheirs: %v", round, a, b)
		}
		// What was left behind is nothing that a free slot could have taken.
		if len(taken) < slots {
			for _, q := range queues {
				n, _ := ours.LLen(t.Context(), "asynq:{"+q+"}:pending").Result()
				paused, _ := ours.Exists(t.Context(), "asynq:{"+q+"}:paused").Result()
				if n > 0 && paused == 0 {
					t.Fatalf("round %d: %d of %d slots filled and %d jobs wait in %s", round, len(taken), slots, n, q)
				}
			}
		}
		// And everything goes back as it came.
		if err := handBack(t.Context(), ours, taken); err != nil {
			t.Fatal(err)
		}
		for _, q := range queues {
			if n, _ := ours.LLen(t.Context(), "asynq:{"+q+"}:active").Result(); n != 0 {
				t.Fatalf("round %d: %d jobs still active in %s after they were handed back", round, n, q)
			}
		}
	}
}

// history fills the queues with random jobs, some paused.
func history(t *testing.T, db *redis.Client, rnd *rand.Rand, queues []string) {
	t.Helper()
	client := asynq.NewClientFromRedisClient(db)
	for _, q := range queues {
		for i := range rnd.IntN(25) {
			if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("t", fmt.Appendf(nil, "%d", i)), asynq.Queue(q)); err != nil {
				t.Fatal(err)
			}
		}
		if rnd.IntN(4) == 0 {
			if err := db.Set(t.Context(), "asynq:{"+q+"}:paused", 1, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A job that was taken and not started goes back to the head of its queue, in
// order and at no cost.
func TestFetcher_HandsBackInOrder(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	client := asynq.NewClientFromRedisClient(rdb)
	const q = "email:default"
	for i := range 10 {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("t", nil), asynq.Queue(q), asynq.TaskID(fmt.Sprint("job", i))); err != nil {
			t.Fatal(err)
		}
	}
	before := rdb.LRange(t.Context(), "asynq:{"+q+"}:pending", 0, -1).Val()
	f := testFetcher(Config{Queues: map[string]int{q: 1}, Concurrency: 6}, false)
	taken := fill(t, rdb, f, time.Now().Add(30*time.Second).Unix())
	if len(taken) != 6 {
		t.Fatalf("%d jobs taken, want 6", len(taken))
	}
	if err := handBack(t.Context(), rdb, taken); err != nil {
		t.Fatal(err)
	}
	if after := rdb.LRange(t.Context(), "asynq:{"+q+"}:pending", 0, -1).Val(); !slices.Equal(before, after) {
		t.Errorf("the queue was %v and is %v", before, after)
	}
}

// A key of the wrong type is its job's misfortune: its neighbours are taken, with
// leases, and it is left as asynq would leave it.
func TestFetcher_ADamagedJobStopsNobody(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	client := asynq.NewClientFromRedisClient(rdb)
	const q = "email:default"
	for _, id := range []string{"a", "bad", "c"} {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("t", nil), asynq.Queue(q), asynq.TaskID(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := rdb.Set(t.Context(), "asynq:{"+q+"}:t:bad", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	f := testFetcher(Config{Queues: map[string]int{q: 1}, Concurrency: 10}, false)
	var taken []string
	for _, j := range fill(t, rdb, f, 4_000_000_000) {
		taken = append(taken, j.id)
	}
	leases := rdb.ZRange(t.Context(), "asynq:{"+q+"}:lease", 0, -1).Val()
	if !slices.Equal(taken, []string{"a", "c"}) || !slices.Equal(leases, taken) {
		t.Errorf("taken %v, leases %v", taken, leases)
	}
}

// However many jobs wait, a server holds no more than it runs.
func TestServer_TakesNoMoreThanItsSlots(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	const q, slots, jobs = "email:default", 5, 200
	client := asynq.NewClientFromRedisClient(rdb)
	for range jobs {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("t", nil), asynq.Queue(q)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), Config{
		Queues: map[string]int{q: 1}, Concurrency: slots, ShutdownTimeout: 5 * time.Second,
		RetryDelay: func(int, error, *asynq.Task) time.Duration { return time.Hour },
		IsFailure:  func(error) bool { return true },
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	// All slots but one are held by jobs that do not end; the others pass
	// through the last one.
	var mu sync.Mutex
	most, ran := int64(0), 0
	hold := make(chan struct{})
	if err := s.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
		mu.Lock()
		ran++
		holder := ran < slots
		if ran == jobs-10 {
			close(hold)
		}
		mu.Unlock()
		if holder {
			<-hold
			return nil
		}
		n, err := rdb.LLen(ctx, "asynq:{"+q+"}:active").Result()
		mu.Lock()
		most = max(most, n)
		mu.Unlock()
		return err
	})); err != nil {
		t.Fatal(err)
	}
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	deadline := time.Now().Add(30 * time.Second)
	for {
		info, err := inspector.GetQueueInfo(q)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("jobs are left: %+v", info)
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Stop()
	// A handler that has returned and whose acknowledgement is not yet counted
	// leaves a moment in which its slot looks free.
	if ran != jobs || most > slots+1 {
		t.Errorf("%d of %d jobs ran; %d were active at once with %d slots", ran, jobs, most, slots)
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, redis.Nil, noScriptError("NOSCRIPT no"), noScriptError("NOT FOUND")} {
		if outage(err) {
			t.Errorf("%v is taken for an outage", err)
		}
	}
	for _, err := range []error{errors.New("dial tcp: refused"), noScriptError("OOM command not allowed"), noScriptError("READONLY You can't write")} {
		if !outage(err) {
			t.Errorf("%v is not taken for an outage", err)
		}
	}
	if !strings.HasPrefix(noScriptError("NOSCRIPT no").Error(), "NOSCRIPT") {
		t.Error("the test's own error has another text")
	}
}
