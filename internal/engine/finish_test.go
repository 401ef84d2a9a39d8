package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
)

// end is the end of a job, as a test wants it.
type end struct {
	kind   call
	queue  string
	id     string
	day    int
	score  int64
	msg    string
	failed bool
}

// expiry is when the statistics of a day go.
func expiry(day int) int64 { return 4_000_000_000 + int64(day)*86_400 }

// call is what asynq would send for e: s, which it sent for another job, with
// the names and values exchanged.
func (s sent) call(t *testing.T, e end) []any {
	t.Helper()
	args := slices.Clone(s.args)
	n, _ := args[2].(int)
	id, _ := args[3+n].(string)
	for i := range args[3 : 3+n] {
		key := args[3+i].(string)
		key = strings.ReplaceAll(key, "{"+testQueue+"}", "{"+e.queue+"}")
		if role(key) == "t" {
			key = strings.TrimSuffix(key, id) + e.id
		}
		if strings.HasSuffix(role(key), ":day") {
			key = key[:len(key)-len("2006-01-02")] + fmt.Sprintf("2026-01-%02d", e.day)
		}
		args[3+i] = key
	}
	future := time.Now().Add(60 * 24 * time.Hour).Unix()
	for i, arg := range args[3+n:] {
		switch v := arg.(type) {
		case string:
			if v != id {
				t.Fatalf("argument %d of asynq's %s is a text that this test does not know", i+1, s.shape)
			}
			args[3+n+i] = e.id
		case []byte:
			args[3+n+i] = []byte(e.msg)
		case bool:
			args[3+n+i] = e.failed
		case int64:
			switch {
			case v == math.MaxInt64:
			case v > future:
				args[3+n+i] = expiry(e.day)
			default:
				args[3+n+i] = e.score
			}
		default:
			t.Fatalf("argument %d of asynq's %s is a %T, which this test does not know", i+1, s.shape, v)
		}
	}
	return args
}

// run lets asynq's script end a job and returns its answer.
func (s sent) run(t *testing.T, db *redis.Client, e end) string {
	t.Helper()
	return answer(db.Do(t.Context(), s.call(t, e)...).Err())
}

func answer(err error) string {
	if err == nil {
		return "OK"
	}
	return strings.TrimPrefix(err.Error(), "ERR ") // Redis 7 adds it to a single word
}

// activeJobs writes, to each database, queues with running jobs, some of them
// damaged, and statistics. It returns the ids.
func activeJobs(t *testing.T, rnd *rand.Rand, queues []string, perQueue int, total func() string, dbs ...*redis.Client) map[string][]string {
	t.Helper()
	ids := map[string][]string{}
	var commands [][]any
	add := func(args ...any) { commands = append(commands, args) }
	for _, q := range queues {
		p := prefixOf(q)
		for i := range perQueue {
			id := fmt.Sprint("job", i)
			ids[q] = append(ids[q], id)
			if rnd.IntN(12) > 0 {
				add("LPUSH", p+"active", id)
			}
			if rnd.IntN(12) > 0 {
				add("ZADD", p+"lease", 1_900_000_000+rnd.IntN(30), id)
			}
			if rnd.IntN(12) > 0 {
				add("HSET", p+"t:"+id, "msg", "old", "state", "active", "result", "r")
			}
			if rnd.IntN(12) == 0 {
				add("ZADD", p+"completed", rnd.IntN(100), id)
			}
			if rnd.IntN(12) == 0 {
				add("ZADD", p+"retry", rnd.IntN(100), id)
			}
		}
		if rnd.IntN(2) == 0 {
			add("LPUSH", p+"pending", "waiting")
		}
		if rnd.IntN(2) == 0 {
			add("HSET", gateKey(q), "concurrency", 5)
		}
		for day := 1; day <= 3; day++ {
			for _, kind := range []string{"processed", "failed"} {
				key := fmt.Sprintf("%s%s:2026-01-%02d", p, kind, day)
				switch rnd.IntN(3) {
				case 0:
					add("SET", key, rnd.IntN(50))
				case 1:
					add("SET", key, 1+rnd.IntN(50), "EXAT", 3_900_000_000)
				}
			}
		}
		if n := total(); n != "" {
			add("SET", p+"processed", n)
			if rnd.IntN(2) == 0 {
				add("SET", p+"failed", rnd.IntN(1000))
			}
		}
	}
	for _, db := range dbs {
		if _, err := db.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.FlushDB(t.Context())
			for _, args := range commands {
				p.Do(t.Context(), args...)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// dumpJobs is dump without what is ours alone.
func dumpJobs(t *testing.T, db *redis.Client) map[string]string {
	t.Helper()
	all := dump(t, db)
	for key := range all {
		if strings.HasPrefix(key, "postroom:") {
			delete(all, key)
		}
	}
	return all
}

func randomEnd(rnd *rand.Rand, queue, id string, days int) end {
	return end{
		kind:  []call{doneCall, completeCall, retryCall}[rnd.IntN(3)],
		queue: queue, id: id, day: 1 + rnd.IntN(days),
		score: 1_900_000_000 + int64(rnd.IntN(100)), msg: fmt.Sprint("new", rnd.IntN(1000)), failed: rnd.IntN(2) == 0,
	}
}

func ourEnding(t *testing.T, scripts map[call]sent, e end) *ending {
	t.Helper()
	x, err := newEnding(e.kind, redis.NewCmd(t.Context(), scripts[e.kind].call(t, e)...))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func endScripts(t *testing.T, server *testenv.RedisServer) map[call]sent {
	t.Helper()
	asynqs := asynqScripts(t, server)
	scripts := map[call]sent{}
	for _, kind := range []call{doneCall, completeCall, retryCall} {
		scripts[kind] = asynqs.of(t, kind)
	}
	return scripts
}

// One call of ours does to every key and answers for every job what as many of
// asynq's do, over random histories.
func TestFinisher_LikeAsynq(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	scripts := endScripts(t, server)
	ours := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 1})
	theirs := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: 2})
	defer ours.Close()
	defer theirs.Close()
	// asynq's comparison is one of floating-point numbers: 512 below the highest
	// number is the highest.
	below := []uint64{0, 1, 100, 511, 512, 513, 520, 600, 1024, 4095, 4096, 4097, 4200, 5000}
	answers := map[string]int{}
	for round := range 120 {
		rnd := rand.New(rand.NewPCG(uint64(round), 11))
		full := round%3 == 0 // the totals overflow
		total := func() string {
			switch {
			case full:
				if rnd.IntN(2) == 0 {
					return fmt.Sprint(uint64(math.MaxInt64) - 512 - rnd.Uint64N(40)) // in the midst of a batch
				}
				return fmt.Sprint(math.MaxInt64 - below[rnd.IntN(len(below))])
			case rnd.IntN(2) == 0:
				return fmt.Sprint(rnd.IntN(10_000))
			default:
				return ""
			}
		}
		queues := []string{"email:critical", "email:default", "email:bulk"}[:1+rnd.IntN(3)]
		ids := activeJobs(t, rnd, queues, 1+rnd.IntN(maxFinish/len(queues)), total, ours, theirs)
		var batch []end
		for _, q := range slices.Sorted(maps.Keys(ids)) {
			for _, id := range ids[q] {
				if rnd.IntN(8) == 0 {
					continue
				}
				batch = append(batch, randomEnd(rnd, q, id, 1+rnd.IntN(3)))
				if rnd.IntN(12) == 0 && !full {
					batch = append(batch, randomEnd(rnd, q, id, 2)) // a second end of the same job
				}
			}
		}
		if full && rnd.IntN(2) == 0 { // failures
			for i := range batch {
				batch[i].kind, batch[i].failed = retryCall, rnd.IntN(8) > 0
			}
		}
		batch = append(batch, end{kind: doneCall, queue: queues[0], id: "unknown", day: 1})
		rnd.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })

		var got []*ending
		for _, e := range batch {
			x := ourEnding(t, scripts, e)
			got = append(got, x)
		}
		if rnd.IntN(3) == 0 {
			finishByQueue(t.Context(), ours, got)
		} else {
			settle(got, finishing(got).run(t.Context(), ours))
		}

		want := make([]string, len(batch))
		for _, i := range ourOrder(batch, full) {
			want[i] = scripts[batch[i].kind].run(t, theirs, batch[i])
		}
		for i, x := range got {
			if a := answer(x.err); a != want[i] {
				t.Fatalf("round %d: %+v: we answer %s and asynq %s", round, batch[i], a, want[i])
			}
			answers[want[i]]++
		}
		if diff := differences(dumpJobs(t, ours), dumpJobs(t, theirs)); diff != "" {
			t.Fatalf("round %d: after %d ends the keys differ\n%s", round, len(batch), diff)
		}
		for _, q := range queues {
			limited, waiting := ours.Exists(t.Context(), gateKey(q)).Val() == 1, ours.Exists(t.Context(), prefixOf(q)+"pending").Val() == 1
			touched := slices.ContainsFunc(batch, func(e end) bool { return e.queue == q })
			marked := ours.LLen(t.Context(), wake.Key(q)).Val()
			if want := limited && waiting && touched; want && marked != 1 || !want && marked != 0 {
				t.Fatalf("round %d: queue %s has a limit: %t, waiting jobs: %t, ended jobs: %t, and %d markers", round, q, limited, waiting, touched, marked)
			}
		}
	}
	for _, a := range []string{"OK", "NOT FOUND", "INTERNAL"} {
		if answers[a] == 0 {
			t.Errorf("no job of %v was answered with %s", answers, a)
		}
	}
}

// ourOrder is the order in which the ends of a batch are counted. Where the totals
// start anew it matters which of the jobs, that all ended at the same time, is
// said to be the first: ours count by queue and day, failures last.
func ourOrder(batch []end, full bool) []int {
	type group struct {
		queue string
		day   int
	}
	index := map[group]int{}
	order := make([]int, len(batch))
	for i, e := range batch {
		order[i] = i
		if g := (group{e.queue, e.day}); index[g] == 0 {
			index[g] = len(index) + 1
		}
	}
	if full {
		rank := func(i int) int {
			n := 2 * index[group{batch[i].queue, batch[i].day}]
			if batch[i].kind == retryCall {
				n++
			}
			return n
		}
		slices.SortStableFunc(order, func(a, b int) int { return rank(a) - rank(b) })
	}
	return order
}

// watchKeys checks each script call.
type watchKeys struct {
	mu    sync.Mutex
	calls int
	check func(keys []any)
}

func (*watchKeys) DialHook(next redis.DialHook) redis.DialHook { return next }
func (*watchKeys) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (w *watchKeys) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if keys, _, ok := parts(cmd); ok && strings.HasPrefix(cmd.Name(), "eval") {
			w.mu.Lock()
			w.calls++
			w.check(keys)
			w.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

// Handlers that end at the same time share calls, each gets its own answer, and
// on a cluster no call has keys of two queues.
func TestFinisher_GathersConcurrentEnds(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	scripts := endScripts(t, server)
	for _, cluster := range []bool{false, true} {
		t.Run(fmt.Sprintf("cluster=%t", cluster), func(t *testing.T) {
			t.Parallel()
			db := map[bool]int{false: 1, true: 3}[cluster]
			ours := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: db})
			theirs := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: db + 1})
			defer ours.Close()
			defer theirs.Close()
			rnd := rand.New(rand.NewPCG(1, 13))
			ids := activeJobs(t, rnd, []string{"email:critical", "email:default"}, 600, func() string { return "7" }, ours, theirs)
			w := &watchKeys{check: func(keys []any) {
				queues := map[string]bool{}
				for _, key := range keys {
					_, rest, _ := strings.Cut(key.(string), "{")
					queue, _, _ := strings.Cut(rest, "}")
					queues[queue] = true
				}
				if cluster && len(queues) != 1 {
					t.Errorf("one call has keys of %v", queues)
				}
			}}
			ours.AddHook(w)
			p := testPump(ours, Config{Queues: map[string]int{testQueue: 1}, Concurrency: 10}, cluster)
			p.start()
			defer p.close()
			var batch []end
			for _, q := range slices.Sorted(maps.Keys(ids)) {
				for _, id := range ids[q] {
					batch = append(batch, randomEnd(rnd, q, id, 2))
				}
			}
			var wg sync.WaitGroup
			begin := make(chan struct{})
			for _, e := range batch {
				want := scripts[e.kind].run(t, theirs, e)
				x := ourEnding(t, scripts, e)
				wg.Go(func() {
					<-begin
					if got := answer(p.finish(t.Context(), x)); got != want {
						t.Errorf("%+v: we answer %s and asynq %s", e, got, want)
					}
				})
			}
			close(begin)
			wg.Wait()
			if diff := differences(dumpJobs(t, ours), dumpJobs(t, theirs)); diff != "" {
				t.Errorf("the keys differ\n%s", diff)
			}
			if w.calls >= len(batch)/2 {
				t.Errorf("%d calls for %d jobs that ended at the same time", w.calls, len(batch))
			}
		})
	}
}

// Whoever waits for an end is told when it fails, and nobody waits longer than
// he wants to.
func TestFinisher_Fails(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	scripts := endScripts(t, server)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	defer rdb.Close()
	p := testPump(rdb, Config{Queues: map[string]int{testQueue: 1}, Concurrency: 2}, false)
	x := ourEnding(t, scripts, end{kind: doneCall, queue: testQueue, id: "job", day: 1})
	p.slots.take(x.job, time.Now())
	server.Kill()
	p.start()
	err := p.finish(t.Context(), x)
	if err == nil || !outage(err) {
		t.Errorf("with a dead Redis the answer is %v", err)
	}
	if n := p.slots.free(); n != 2 {
		t.Errorf("%d slots are free after the handler has ended, want 2", n)
	}
	p.close() // nobody answers any more
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.finish(ctx, ourEnding(t, scripts, end{kind: doneCall, queue: testQueue, id: "job", day: 1})); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was given up ends with %v", err)
	}
}

// A key of the wrong type fails its own job's end, as asynq's script would, and
// not its neighbours'.
func TestFinisher_ADamagedJobFailsAlone(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: testenv.Redis(t).Addr()})
	defer rdb.Close()
	p := prefixOf(testQueue)
	batch := make([]*ending, 3)
	for i, id := range []string{"a", "bad", "c"} {
		rdb.LPush(t.Context(), p+"active", id)
		rdb.ZAdd(t.Context(), p+"lease", redis.Z{Score: 4e9, Member: id})
		rdb.HSet(t.Context(), p+"t:"+id, "msg", "m", "state", "active")
		batch[i] = &ending{
			kind: completeCall, job: job{testQueue, id}, day: p + "processed:2026-01-31", expiry: expiry(1),
			score: 4_100_000_000, msg: "done", done: make(chan struct{}),
		}
	}
	if err := rdb.Set(t.Context(), p+"t:bad", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	settle(batch, finishing(batch).run(t.Context(), rdb))
	if batch[0].err != nil || batch[2].err != nil || !redis.HasErrorPrefix(batch[1].err, "WRONGTYPE") {
		t.Errorf("the ends answer %v, %v, %v", batch[0].err, batch[1].err, batch[2].err)
	}
	if n := rdb.Get(t.Context(), p+"processed").Val(); n != "2" {
		t.Errorf("%s jobs counted, want 2", n)
	}
}
