package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
	"github.com/medicalink/postroom/rediskit"
)

func start(t *testing.T, rdb *rediskit.Client, cfg engine.Config, h asynq.HandlerFunc) *engine.Server {
	t.Helper()
	s := newServer(t, rdb.Dedicated("asynq"), rdb.Dedicated("engine"), cfg, zerolog.Nop())
	if err := s.Start(h); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// idle waits until n listeners wait for markers.
func idle(t *testing.T, rdb redis.UniversalClient, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d idle workers", n), func() bool {
		clients, err := rdb.ClientList(t.Context()).Result()
		return err == nil && strings.Count(clients, " flags=b ") == n
	})
}

// calls is the number of calls of a command that Redis has served.
func calls(t *testing.T, rdb redis.UniversalClient, command string) int {
	t.Helper()
	info, err := rdb.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, rest, ok := strings.Cut(info, "cmdstat_"+command+":calls="); ok {
		if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// add adds a job as a producer does: asynq's write, then the marker.
func add(t *testing.T, rdb redis.UniversalClient, queue string, announce bool, opts ...asynq.Option) {
	t.Helper()
	client := asynq.NewClientFromRedisClient(rdb)
	if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("test", nil), append(opts, asynq.Queue(queue))...); err != nil {
		t.Fatal(err)
	}
	if announce {
		if err := redis.NewScript(wake.Lua+`wake(KEYS[1])`).Run(t.Context(), rdb, []string{wake.Key(queue)}).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
	}
}

// One job wakes one worker of a fleet, and the others do not even ask.
func TestServer_OneJobWakesOneWorker(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	const fleet, jobs = 8, 40
	ran := make(chan struct{}, jobs)
	for range fleet {
		start(t, rdb, config(), func(context.Context, *asynq.Task) error {
			ran <- struct{}{}
			return nil
		})
	}
	idle(t, rdb, fleet)
	before := calls(t, rdb, "evalsha")
	for range jobs {
		add(t, rdb, queue, true)
		<-ran
	}
	// For each job: its enqueue and its marker, one fetch, one end; the fleet's
	// regular looks come on top, and a worker that goes idle may look once more.
	if n := calls(t, rdb, "evalsha") - before; n > jobs*5+fleet*10 {
		t.Errorf("%d script calls for %d jobs and %d workers", n, jobs, fleet)
	}
}

// A batch wakes as many workers as it needs: each that leaves jobs behind calls
// the next.
func TestServer_ABatchWakesTheFleet(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const fleet = 4
	cfg := config() // 4 slots each
	release := make(chan struct{})
	var running atomic.Int32
	for range fleet {
		start(t, rdb, cfg, func(context.Context, *asynq.Task) error {
			running.Add(1)
			<-release
			return nil
		})
	}
	idle(t, rdb, fleet)
	for range fleet * cfg.Concurrency {
		add(t, rdb, queue, false)
	}
	add(t, rdb, queue, true)
	eventually(t, "full fleet", func() bool { return running.Load() == int32(fleet*cfg.Concurrency) })
	close(release)
}

// Nobody announces the jobs of a stock client, of asynqmon, or of a producer
// whose worker died with the marker in its hand: the regular look finds them.
func TestServer_FindsUnannouncedJobs(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	ran := make(chan struct{}, 3)
	start(t, rdb, config(), func(context.Context, *asynq.Task) error {
		ran <- struct{}{}
		return nil
	})
	idle(t, rdb, 1)
	for range 3 {
		add(t, rdb, queue, false)
		select {
		case <-ran:
		case <-time.After(30 * time.Second):
			t.Fatal("the job was not found")
		}
	}
}

// A worker without a free slot leaves the marker to others.
func TestServer_AFullWorkerPassesTheMarkerOn(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	cfg := config()
	cfg.Concurrency = 1
	release := make(chan struct{})
	started := make(chan struct{}, 1)
	start(t, rdb, cfg, func(context.Context, *asynq.Task) error {
		started <- struct{}{}
		<-release
		return nil
	})
	idle(t, rdb, 1)
	add(t, rdb, queue, false) // found by the look, while the listener waits for a marker
	<-started
	add(t, rdb, queue, true)
	eventually(t, "marker left for others", func() bool {
		n, err := rdb.LLen(t.Context(), wake.Key(queue)).Result()
		return err == nil && n == 1
	})
	close(release)
	<-started // by the worker itself, when its slot is free
}

// Delayed jobs run at their time and not before it, to the millisecond, whoever
// of the fleet forwards them; none runs twice.
func TestServer_ForwardsWhenDue(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const jobs = 60
	var mu sync.Mutex
	ran := map[string]time.Time{}
	for range 3 {
		start(t, rdb, config(), func(ctx context.Context, _ *asynq.Task) error {
			id, _ := asynq.GetTaskID(ctx)
			mu.Lock()
			defer mu.Unlock()
			if _, twice := ran[id]; twice {
				t.Errorf("%s ran twice", id)
			}
			ran[id] = time.Now()
			return nil
		})
	}
	due := map[string]time.Time{}
	for i := range jobs {
		at := time.Now().Add(time.Duration(300+i*37) * time.Millisecond).Truncate(time.Millisecond)
		id := fmt.Sprint("job", i)
		due[id] = at
		up := at.Add(time.Second - 1).Truncate(time.Second)
		add(t, rdb, queue, false, asynq.ProcessAt(up), asynq.TaskID(id))
		if err := rdb.ZAdd(t.Context(), wake.DueKey(queue), redis.Z{Score: float64(at.UnixMilli()), Member: id}).Err(); err != nil {
			t.Fatal(err)
		}
		if err := rdb.RPush(t.Context(), wake.DelayedKey(queue), 1).Err(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "end of all delayed jobs", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(ran) == jobs
	})
	for id, at := range due {
		if early := at.Sub(ran[id]); early > 0 {
			t.Errorf("%s ran %v early", id, early)
		}
	}
	if n, err := rdb.Exists(t.Context(), wake.DueKey(queue)).Result(); err != nil || n != 0 {
		t.Errorf("true due times are left behind (%v)", err)
	}
}

// An idle worker with six queues costs Redis next to nothing, the commands inside
// scripts included.
func TestServer_IdleIsQuiet(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	cfg := config()
	cfg.Queues = map[string]int{"a": 6, "b": 3, "c": 1, "d": 6, "e": 3, "f": 1}
	s := start(t, rdb, cfg, func(context.Context, *asynq.Task) error { return nil })
	idle(t, rdb, 1)
	eventually(t, "quiet worker", s.Quiet)
	// All that Redis did but for this test's own questions.
	count := func() int {
		info, err := rdb.Info(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for line := range strings.Lines(info) {
			name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
			n := 0
			if _, err := fmt.Sscanf(rest, "%d", &n); ok && err == nil && name != "info" && name != "client|list" {
				sum += n
			}
		}
		return sum
	}
	before, begin := count(), time.Now()
	looks := calls(t, rdb, "exists")
	eventually(t, "eight looks", func() bool { return calls(t, rdb, "exists") >= looks+8 })
	perSecond := float64(count()-before) / time.Since(begin).Seconds()
	if perSecond > 2 {
		t.Errorf("%.1f commands a second while idle, want at most 2", perSecond)
	}
}

// Six, three and one job of ten, within 5 %, as long as there is enough of each;
// strict order empties the heavier queue first.
func TestServer_KeepsPriorities(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const each = 900
	queues := []string{"email:critical", "email:default", "email:bulk"}
	run := func(t *testing.T, strict bool) []string {
		t.Helper()
		for range each {
			for _, q := range queues {
				add(t, rdb, q, false)
			}
		}
		cfg := config()
		cfg.Queues = map[string]int{queues[0]: 6, queues[1]: 3, queues[2]: 1}
		cfg.StrictPriority, cfg.Concurrency = strict, 10
		var mu sync.Mutex
		var order []string
		s := newServer(t, rdb.Dedicated("asynq"), rdb.Dedicated("engine"), cfg, zerolog.Nop())
		if err := s.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
			q, _ := asynq.GetQueueName(ctx)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, q)
			return nil
		})); err != nil {
			t.Fatal(err)
		}
		eventually(t, "end of all jobs", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(order) == 3*each
		})
		s.Stop()
		return order
	}
	count := func(order []string) map[string]int {
		n := map[string]int{}
		for _, q := range order {
			n[q]++
		}
		return n
	}
	weighted := run(t, false)
	const first = 1400 // the heaviest queue lasts for 1,500
	n := count(weighted[:first])
	for i, q := range queues {
		want := float64(first) * []float64{0.6, 0.3, 0.1}[i]
		if got := float64(n[q]); got < want*0.95 || got > want*1.05 {
			t.Errorf("%s ran %d of the first %d jobs, want %.0f ± 5 %%", q, n[q], first, want)
		}
	}
	strict := run(t, true)
	// Jobs of one batch start at the same time, so the border is that wide.
	for i, q := range queues {
		part := strict[i*each+20 : (i+1)*each-20]
		if slices.ContainsFunc(part, func(other string) bool { return other != q }) {
			t.Errorf("strict order: %v ran among the jobs of %s", count(part), q)
		}
	}
}

// Slow bulk mail takes all the slots it may have: critical jobs start all the same.
func TestServer_KeepsSlotsForCriticalJobs(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const critical, bulk = "email:critical", "email:bulk"
	cfg := config()
	cfg.Queues = map[string]int{critical: 6, bulk: 1}
	cfg.Concurrency = 10
	release := make(chan struct{})
	var bulkRunning atomic.Int32
	ran := make(chan string, 100)
	start(t, rdb, cfg, func(ctx context.Context, _ *asynq.Task) error {
		q, _ := asynq.GetQueueName(ctx)
		if q == bulk {
			bulkRunning.Add(1)
			<-release
		}
		ran <- q
		return nil
	})
	for range 30 {
		add(t, rdb, bulk, true)
	}
	eventually(t, "full house of bulk jobs", func() bool { return bulkRunning.Load() == 9 })
	for range 20 {
		add(t, rdb, critical, true)
		if q := <-ran; q != critical {
			t.Fatalf("a job of %s ended", q)
		}
	}
	if n := bulkRunning.Load(); n != 9 {
		t.Errorf("%d bulk jobs run in the 9 slots that are not reserved", n)
	}
	close(release)
	for range 30 {
		<-ran
	}
}

// A queue that was full when its worker began to listen is listened to again as soon as
// it has room, not when the wait of up to 25 s is over: until then only the look would
// find its jobs. No job stands behind the marker here, so no look takes it.
func TestServer_ListensAgainWhereItHasRoom(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const critical, bulk = "email:critical", "email:bulk"
	cfg := config()
	cfg.Queues = map[string]int{critical: 6, bulk: 1}
	cfg.Concurrency = 10
	release := make(chan struct{})
	var running atomic.Int32
	start(t, rdb, cfg, func(context.Context, *asynq.Task) error {
		running.Add(1)
		defer running.Add(-1)
		<-release
		return nil
	})
	for range 9 {
		add(t, rdb, bulk, true)
	}
	eventually(t, "full house of bulk jobs", func() bool { return running.Load() == 9 })
	if err := redis.NewScript(wake.Lua+`wake(KEYS[1])`).Run(t.Context(), rdb, []string{wake.Key(bulk)}).Err(); err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	marked := func() bool {
		n, err := rdb.Exists(t.Context(), wake.Key(bulk)).Result()
		return err == nil && n == 1
	}
	// A free slot is left, for critical jobs, so it listens, and leaves the marker alone.
	eventually(t, "a listener that leaves the full queue out", func() bool {
		clients, err := rdb.ClientList(t.Context()).Result()
		return marked() && err == nil && strings.Count(clients, " flags=b ") == 1 && marked()
	})
	close(release)
	eventually(t, "an empty house", func() bool { return running.Load() == 0 })
	for deadline := time.Now().Add(12 * time.Second); marked(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody listens to the queue that was full")
		}
	}
}

// A flood of critical jobs leaves bulk mail its turn.
func TestServer_StarvesNobody(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const critical, bulk = "email:critical", "email:bulk"
	cfg := config()
	cfg.Queues = map[string]int{critical: 6, bulk: 1}
	add(t, rdb, bulk, false)
	for range 20 {
		add(t, rdb, critical, false)
	}
	ran := make(chan struct{})
	client := asynq.NewClientFromRedisClient(rdb)
	start(t, rdb, cfg, func(ctx context.Context, task *asynq.Task) error {
		if q, _ := asynq.GetQueueName(ctx); q == bulk {
			close(ran)
			return nil
		}
		select {
		case <-ran:
			return nil
		default:
		}
		// One more for each that ends: there is always one that waits.
		_, err := client.EnqueueContext(context.WithoutCancel(ctx), task, asynq.Queue(critical))
		return err
	})
	select {
	case <-ran:
	case <-time.After(30 * time.Second):
		t.Fatal("the bulk job did not run beside the critical ones")
	}
}

// Markers wake a worker on a Sentinel's master and on a cluster, where each queue
// has a listener of its own.
func TestServer_WakesOnEachTopology(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) *rediskit.Client{
		"Sentinel": func(t *testing.T) *rediskit.Client { t.Helper(); return testenv.Sentinel(t).Open(t) },
		"Cluster":  func(t *testing.T) *rediskit.Client { t.Helper(); return testenv.Cluster(t).Open(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rdb := open(t)
			cfg := config()
			cfg.Queues = map[string]int{"email:critical": 2, "email:default": 1}
			ran := make(chan string, 1)
			start(t, rdb, cfg, func(ctx context.Context, _ *asynq.Task) error {
				q, _ := asynq.GetQueueName(ctx)
				ran <- q
				return nil
			})
			for q := range cfg.Queues {
				// The marker alone: whoever takes it was listening.
				eventually(t, "listener of "+q, func() bool {
					if err := redis.NewScript(wake.Lua+`wake(KEYS[1])`).Run(t.Context(), rdb, []string{wake.Key(q)}).Err(); err != nil && !errors.Is(err, redis.Nil) {
						t.Fatal(err)
					}
					n, err := rdb.Exists(t.Context(), wake.Key(q)).Result()
					return err == nil && n == 0
				})
				add(t, rdb, q, true)
				if got := <-ran; got != q {
					t.Errorf("a job of %s ran, want %s", got, q)
				}
			}
		})
	}
}

// A stock asynq server works on the same queues, a stock client feeds them, and
// every job runs once.
func TestServer_BesideStockAsynq(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const jobs = 400
	var mu sync.Mutex
	runs := map[string]int{}
	handle := asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
		id, _ := asynq.GetTaskID(ctx)
		mu.Lock()
		runs[id]++
		mu.Unlock()
		time.Sleep(time.Millisecond)
		return nil
	})
	for i := range jobs {
		delay := time.Duration(i%3) * time.Second
		add(t, rdb, queue, i%2 == 0, asynq.TaskID(fmt.Sprint("job", i)), asynq.ProcessIn(delay))
	}
	stock := asynq.NewServerFromRedisClient(rdb.Dedicated("stock"), asynq.Config{
		Queues: map[string]int{queue: 1}, Concurrency: 4, LogLevel: asynq.FatalLevel,
		TaskCheckInterval: 10 * time.Millisecond, DelayedTaskCheckInterval: 50 * time.Millisecond,
	})
	if err := stock.Start(handle); err != nil {
		t.Fatal(err)
	}
	defer stock.Shutdown()
	start(t, rdb, config(), handle)
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	eventually(t, "end of all jobs", func() bool {
		info, err := inspector.GetQueueInfo(queue)
		return err == nil && info.Size == 0 && info.ProcessedTotal == jobs
	})
	mu.Lock()
	defer mu.Unlock()
	for id, n := range runs {
		if n != 1 {
			t.Errorf("%s ran %d times", id, n)
		}
	}
	if len(runs) != jobs {
		t.Errorf("%d of %d jobs ran", len(runs), jobs)
	}
}

// A limit of this process holds, and what it held back goes on when a slot of the
// queue is free.
func TestServer_KeepsLimits(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	cfg := config()
	cfg.Concurrency = 8
	cfg.Limits = map[string]int{queue: 3}
	var running, most, ran atomic.Int32
	start(t, rdb, cfg, func(context.Context, *asynq.Task) error {
		n := running.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		running.Add(-1)
		ran.Add(1)
		return nil
	})
	for range 200 {
		add(t, rdb, queue, true)
	}
	eventually(t, "end of all jobs", func() bool { return ran.Load() == 200 })
	if m := most.Load(); m > 3 {
		t.Errorf("%d jobs ran at once, the limit is 3", m)
	}
}

// A job behind an open breaker stays in its queue, at no cost; it runs when the
// breaker lets it.
func TestServer_AsksTheBreaker(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	var admitted atomic.Int32
	cfg := config()
	cfg.Admit = func(string) (int, time.Duration) { return int(admitted.Load()), 20 * time.Millisecond }
	release := make(chan struct{})
	var started atomic.Int32
	start(t, rdb, cfg, func(context.Context, *asynq.Task) error {
		started.Add(1)
		<-release
		return nil
	})
	for range 4 {
		add(t, rdb, queue, true)
	}
	looks := calls(t, rdb, "exists")
	eventually(t, "two looks", func() bool { return calls(t, rdb, "exists") >= looks+2 })
	if n, err := rdb.LLen(t.Context(), "asynq:{"+queue+"}:active").Result(); err != nil || n != 0 || started.Load() != 0 {
		t.Fatalf("behind an open breaker %d jobs were fetched and %d started (%v)", n, started.Load(), err)
	}
	admitted.Store(1 << 30)
	eventually(t, "start of all jobs", func() bool { return started.Load() == 4 })
	close(release)
}

// Stop does not wait for the listener's time to run out.
func TestServer_StopsAtOnceWhenIdle(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	s := newServer(t, rdb.Dedicated("asynq"), rdb.Dedicated("engine"), config(), zerolog.Nop())
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return nil })); err != nil {
		t.Fatal(err)
	}
	idle(t, rdb, 1)
	s.Stop()
	if n := calls(t, rdb, "client|unblock"); n < 1 {
		t.Error("the listener was not told to stop")
	}
	idle(t, rdb, 0)
}

// A Redis that does not say which connection is which: workers are woken all the
// same, and stop.
func TestServer_ListensWithoutClientID(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	if err := rdb.Do(t.Context(), "ACL", "SETUSER", "default", "-client|id").Err(); err != nil {
		t.Fatal(err)
	}
	ran := make(chan struct{}, 1)
	s := newServer(t, rdb.Dedicated("asynq"), rdb.Dedicated("engine"), config(), zerolog.Nop())
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		ran <- struct{}{}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	idle(t, rdb, 1)
	add(t, rdb, queue, true)
	<-ran
	s.Stop()
	if n := calls(t, rdb, "client|unblock"); n != 0 {
		t.Errorf("%d attempts to end the wait of an unknown connection", n)
	}
}
