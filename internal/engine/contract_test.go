package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
)

const testQueue = "email:default"

// sent is a script call of asynq's: its name, text or hash, number of keys, keys
// and arguments.
type sent struct {
	kind  call
	shape string
	args  []any
}

func (s sent) script() *redis.Script { return redis.NewScript(s.args[1].(string)) }

// recorder notes what asynq's server sends. It must be the first hook.
type recorder struct {
	// texts makes asynq send the text of its scripts, by knowing none.
	texts bool

	mu   sync.Mutex
	sent map[string]sent // the first of each shape
	busy bool            // a heartbeat listed running jobs
}

func newRecorder(texts bool) *recorder { return &recorder{texts: texts, sent: map[string]sent{}} }

func (*recorder) DialHook(next redis.DialHook) redis.DialHook { return next }
func (*recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (r *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		kind, shape := recognise(cmd)
		if kind == notScript {
			return next(ctx, cmd)
		}
		if r.texts && cmd.Name() == "evalsha" {
			err := noScriptError("NOSCRIPT No matching script.")
			cmd.SetErr(err)
			return err
		}
		r.mu.Lock()
		if _, ok := r.sent[shape]; !ok {
			r.sent[shape] = sent{kind: kind, shape: shape, args: slices.Clone(cmd.Args())}
		}
		_, args, _ := parts(cmd)
		r.busy = r.busy || kind == heartbeatCall && len(args) > 2
		r.mu.Unlock()
		return next(ctx, cmd)
	}
}

// saw returns true if all of shapes were sent.
func (r *recorder) saw(shapes ...string) bool { return len(r.missing(shapes...)) == 0 }

func (r *recorder) missing(shapes ...string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(shapes), func(shape string) bool {
		_, ok := r.sent[shape]
		return ok
	})
}

func (r *recorder) sawBusy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy
}

// of returns the first call of a kind that was sent.
func (r *recorder) of(t *testing.T, kind call) sent {
	t.Helper()
	for _, shape := range shapesOf(kind) {
		if s, ok := r.sent[shape]; ok {
			return s
		}
	}
	t.Fatalf("asynq sent no script of the shapes %q: its script or keys have changed. The engine passes it through as it is, correct and slow; adapt calls, and what the engine does in the place of the script", shapesOf(kind))
	return sent{}
}

func shapesOf(kind call) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(calls)), func(shape string) bool { return calls[shape] != kind })
}

func poll(t *testing.T, what func() string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func says(s string) func() string { return func() string { return s } }

// starter starts a server, asynq's own or ours, on a client and a second one
// without hooks.
type starter func(t *testing.T, rdb, plain redis.UniversalClient, h asynq.Handler) (stop func())

// stock is asynq's own server, with short intervals.
func stock(t *testing.T, rdb, _ redis.UniversalClient, h asynq.Handler) func() {
	t.Helper()
	s := asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Queues: map[string]int{testQueue: 1}, Concurrency: 4, ShutdownTimeout: 100 * time.Millisecond,
		TaskCheckInterval: 10 * time.Millisecond, DelayedTaskCheckInterval: 10 * time.Millisecond, JanitorInterval: 10 * time.Millisecond,
		LogLevel: asynq.FatalLevel,
	})
	if err := s.Start(h); err != nil {
		t.Fatal(err)
	}
	return s.Shutdown
}

func testConfig() Config {
	return Config{
		Queues: map[string]int{testQueue: 1}, Concurrency: 4, ShutdownTimeout: 5 * time.Second,
		RetryDelay: func(int, error, *asynq.Task) time.Duration { return time.Hour },
		IsFailure:  func(error) bool { return true },
	}
}

// seamed is our server.
func seamed(t *testing.T, rdb, plain redis.UniversalClient, h asynq.Handler) func() {
	t.Helper()
	cfg := testConfig()
	cfg.ShutdownTimeout = 100 * time.Millisecond
	s, err := NewServer(rdb, plain, cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(h); err != nil {
		t.Fatal(err)
	}
	return s.Stop
}

// drive leads a server through everything that asynq does with jobs, and stops it
// when enough says so.
func drive(t *testing.T, server *testenv.RedisServer, r *recorder, start starter, enough func() bool) {
	t.Helper()
	rdb := server.Open(t)
	client := asynq.NewClientFromRedisClient(rdb)
	enqueue := func(kind string, opts ...asynq.Option) {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask(kind, []byte(kind+fmt.Sprint(len(opts)))), append(opts, asynq.Queue(testQueue))...); err != nil {
			t.Fatal(err)
		}
	}
	// A worker died with these; one has no attempt left.
	const prefix = "asynq:{" + testQueue + "}:"
	for i, retries := range []int{3, 0} {
		id := fmt.Sprint("dead", i)
		enqueue("lost", asynq.TaskID(id), asynq.MaxRetry(retries))
		if _, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.LMove(t.Context(), prefix+"pending", prefix+"active", "RIGHT", "LEFT")
			p.HSet(t.Context(), prefix+"t:"+id, "state", "active")
			p.ZAdd(t.Context(), prefix+"lease", redis.Z{Score: float64(time.Now().Add(-2 * time.Minute).Unix()), Member: id})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	enqueue("succeed")
	enqueue("succeed", asynq.Retention(time.Hour))
	enqueue("succeed", asynq.Unique(time.Hour), asynq.Timeout(time.Minute))
	enqueue("succeed", asynq.Unique(time.Hour), asynq.Timeout(time.Minute), asynq.Retention(time.Hour))
	enqueue("succeed", asynq.ProcessIn(time.Second))
	enqueue("fail", asynq.MaxRetry(3), asynq.TaskID("failing"))
	enqueue("give up", asynq.MaxRetry(3))
	enqueue("revoke")
	enqueue("hang")

	client2 := rdb.Dedicated("asynq")
	client2.AddHook(r)
	released := make(chan struct{})
	hanging := make(chan struct{})
	stop := start(t, client2, rdb.Dedicated("engine"), asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		switch task.Type() {
		case "fail":
			return errors.New("try again")
		case "give up":
			return fmt.Errorf("no use: %w", asynq.SkipRetry)
		case "revoke":
			return asynq.RevokeTask
		case "hang":
			close(hanging)
			<-released
		}
		return nil
	}))
	defer close(released)
	defer stop()
	// What is missing in the end is the caller's to judge.
	for deadline := time.Now().Add(20 * time.Second); !enough() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case <-hanging: // and goes back to its queue at the stop
	case <-time.After(20 * time.Second):
		t.Error("the job that hangs was not started")
	}
}

// asynqScripts returns asynq's own scripts with their texts, as its server sends
// them.
func asynqScripts(t *testing.T, server *testenv.RedisServer) *recorder {
	t.Helper()
	r := newRecorder(true)
	var shapes []string
	for _, kind := range []call{fetchCall, forwardCall, doneCall, completeCall, retryCall} {
		shapes = append(shapes, shapesOf(kind)...)
	}
	drive(t, server, r, stock, func() bool { return r.saw(shapes...) })
	if err := server.Open(t).FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

// The engine stands or falls with knowing asynq's scripts. A new version of asynq
// that changes one must be noticed here and not by its users.
func TestContract_KnowsAsynqsScripts(t *testing.T) {
	t.Parallel()
	const (
		janitors = "completed/3" // once a minute behind the seam
		requeue  = "active lease pending t/1"
		clearing = "servers workers/0"
	)
	tests := []struct {
		name  string
		start starter
		never string // is not seen
	}{
		{"stock", stock, ""},
		{"behind the seam", seamed, janitors},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRecorder(false)
			known := slices.DeleteFunc(slices.Sorted(maps.Keys(calls)), func(s string) bool { return s == tt.never })
			running := slices.DeleteFunc(slices.Clone(known), func(s string) bool { return s == requeue || s == clearing })
			drive(t, testenv.Redis(t), r, tt.start, func() bool { return r.saw(running...) && r.sawBusy() })
			for shape, s := range r.sent {
				if s.kind == unknownCall {
					t.Errorf("asynq's server sends a script of the shape %q, which the engine does not know: it passes it through, which is correct and may be slow. Look up in asynq's internal/rdb what it does and add it to calls; if it is a fetch, a forward or the end of a job, adapt what the engine does in its place, and its differential test", shape)
				}
			}
			for _, shape := range r.missing(known...) {
				t.Errorf("asynq's server did everything and sent no script of the shape %q: remove it from calls if asynq has dropped it, and adapt it if it changed", shape)
			}
		})
	}
}

// A script's name in the log holds nothing of a job.
func TestRecognise_ShapesHoldNoNames(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]any{
		{"asynq:{jane@example.org}:t:jane@example.org"},
		{"asynq:{q}:unique:jane@example.org", "asynq:{q}:g:jane@example.org:set"},
		{"asynq:{q}:processed:2026-01-31", "asynq:{q}:failed:2026-01-31"},
		{"asynq:servers:{host:1:jane@example.org}", "jane@example.org", 17},
	} {
		cmd := redis.NewCmd(t.Context(), append([]any{"evalsha", "sha", len(keys)}, append(keys, "jane@example.org")...)...)
		if kind, shape := recognise(cmd); kind != unknownCall || strings.Contains(shape, "jane") || strings.Contains(shape, "2026") {
			t.Errorf("%v is call %d of the shape %q", keys, kind, shape)
		}
	}
}

func TestRecognise_Malformed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]any{
		{"evalsha"},
		{"evalsha", "sha"},
		{"evalsha", "sha", "1", "asynq:{q}:lease"},
		{"evalsha", "sha", -1, "asynq:{q}:lease"},
		{"evalsha", "sha", 2, "asynq:{q}:lease"},
	} {
		if kind, _ := recognise(redis.NewCmd(t.Context(), args...)); kind != unknownCall {
			t.Errorf("%v is call %d", args, kind)
		}
	}
}

// reshape is a later version of asynq: some of its scripts have one more argument.
type reshape struct {
	kinds []call
	seen  *sync.Map // shapes as they were
}

func (reshape) DialHook(next redis.DialHook) redis.DialHook { return next }
func (reshape) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (r reshape) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		kind, shape := recognise(cmd)
		old, ok := cmd.(*redis.Cmd)
		if !ok || !slices.Contains(r.kinds, kind) {
			return next(ctx, cmd)
		}
		r.seen.Store(shape, true)
		changed := redis.NewCmd(ctx, append(slices.Clone(cmd.Args()), "new")...)
		err := next(ctx, changed)
		old.SetVal(changed.Val())
		old.SetErr(changed.Err())
		return err
	}
}

// logBook is a log that can be read while it is written.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

// scriptCalls is the number of script calls that Redis has served.
func scriptCalls(t *testing.T, rdb redis.UniversalClient) int {
	t.Helper()
	info, err := rdb.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range []string{"eval", "evalsha"} {
		if _, rest, ok := strings.Cut(info, "cmdstat_"+name+":calls="); ok {
			calls := 0
			if _, err := fmt.Sscanf(rest, "%d", &calls); err != nil {
				t.Fatal(err)
			}
			n += calls
		}
	}
	return n
}

// A later asynq with other scripts is slower and correct: what is not known goes
// through as it is, and the log says so, once.
func TestServer_PassesUnknownScriptsOn(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		kinds []call
	}{
		{"fetch", []call{fetchCall}},
		{"ends", []call{doneCall, completeCall, retryCall}},
		{"forward", []call{forwardCall}},
		{"recoverer", []call{expiredCall, reclaimCall}},
		{"all", []call{fetchCall, doneCall, completeCall, retryCall, otherAck, forwardCall, expiredCall, reclaimCall}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rdb := testenv.Redis(t).Open(t)
			const jobs = 60 // many times the slots
			client := asynq.NewClientFromRedisClient(rdb)
			for i := range jobs {
				opts := []asynq.Option{asynq.Queue(testQueue), asynq.TaskID(fmt.Sprint("secret-id-", i)), asynq.MaxRetry(3)}
				if i%3 == 0 {
					opts = append(opts, asynq.Retention(time.Hour))
				}
				if i%10 == 0 {
					opts = append(opts, asynq.ProcessIn(time.Second))
				}
				if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("test", fmt.Appendf(nil, "secret-payload-%d", i)), opts...); err != nil {
					t.Fatal(err)
				}
			}
			hooked := rdb.Dedicated("asynq")
			changed := reshape{kinds: tt.kinds, seen: &sync.Map{}}
			hooked.AddHook(changed)
			var logs logBook
			s, err := NewServer(hooked, rdb.Dedicated("engine"), testConfig(), zerolog.New(&logs).Level(zerolog.WarnLevel))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			ran := map[string]int{}
			if err := s.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
				id, _ := asynq.GetTaskID(ctx)
				mu.Lock()
				defer mu.Unlock()
				ran[id]++
				if len(id)%2 == 0 && id[len(id)-1] == '7' {
					return errors.New("once")
				}
				return nil
			})); err != nil {
				t.Fatal(err)
			}
			defer s.Stop()
			inspector := asynq.NewInspectorFromRedisClient(rdb)
			var info *asynq.QueueInfo
			poll(t, func() string { return fmt.Sprintf("all jobs have ended: %+v", info) }, func() bool {
				info, err = inspector.GetQueueInfo(testQueue)
				return err == nil && info.Pending+info.Active+info.Scheduled == 0 && info.ProcessedTotal == jobs
			})
			mu.Lock()
			if len(ran) != jobs || slices.Max(slices.Collect(maps.Values(ran))) != 1 {
				t.Errorf("the runs of %d jobs: %v", jobs, ran)
			}
			mu.Unlock()

			// Idle, asynq's own loops ask at the pace that is set for them; unbounded
			// they would ask thousands of times a second.
			before := scriptCalls(t, rdb)
			const window = 2
			time.Sleep(window * time.Second)
			if n := scriptCalls(t, rdb) - before; n > window*60 {
				t.Errorf("%d script calls in %d idle seconds", n, window)
			}

			told := map[string]int{}
			for _, line := range logs.lines() {
				var l struct{ Shape string }
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				told[l.Shape]++
				if strings.Contains(line, "secret") || strings.Contains(line, testQueue) {
					t.Errorf("the log tells of a job: %s", line)
				}
			}
			shapes := 0
			changed.seen.Range(func(any, any) bool { shapes++; return true })
			if len(told) != shapes || slices.Max(slices.Collect(maps.Values(told))) != 1 {
				t.Errorf("%d shapes were changed; the log tells of %v", shapes, told)
			}
		})
	}
}

// board is the part of Redis that shows the servers, with a clock of its own.
type board struct {
	now    time.Time
	info   string
	until  time.Time          // of the state
	scores map[string]float64 // of the listings
	states int                // that were written
}

func (b *board) hook(_ context.Context, cmd redis.Cmder) error {
	switch args := cmd.Args(); cmd.Name() {
	case "zadd":
		b.scores[args[1].(string)] = args[2].(float64)
	case "evalsha":
		_, argv, _ := parts(cmd)
		b.info, b.until = string(argv[1].([]byte)), b.now.Add(time.Duration(argv[0].(float64)*float64(time.Second)))
		b.states++
	}
	return nil
}

// beat is asynq's heartbeat.
func (b *board) beat(t *testing.T, s *seam, info string, running ...string) {
	t.Helper()
	const life = 10 * time.Second
	process := s.ProcessHook(b.hook)
	for _, set := range []string{"servers", "workers"} {
		cmd := redis.NewIntCmd(t.Context(), "zadd", "asynq:"+set, float64(b.now.Add(life).Unix()), "asynq:"+set+":{host:1:id}")
		if err := process(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	args := []any{"evalsha", "sha", 2, "asynq:servers:{host:1:id}", "asynq:workers:{host:1:id}", life.Seconds(), []byte(info)}
	for _, id := range running {
		args = append(args, id, []byte("worker"))
	}
	if err := process(t.Context(), redis.NewCmd(t.Context(), args...)); err != nil {
		t.Fatal(err)
	}
}

// However the load changes, the server is listed all the time, and what is listed
// is what asynq last said; an idle one says it seldom.
func TestBeats_KeepTheServerListed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		b := &board{now: time.Unix(1_900_000_000, 0), scores: map[string]float64{}}
		stopping := make(chan struct{})
		s := &seam{beats: &beats{slots: newSlots(4), now: func() time.Time { return b.now }, stopping: stopping}, stopping: stopping}
		const beats = 200
		last := beats - rnd.IntN(8) // before the shutdown
		status, idle := "active", 0
		for i := range beats {
			running := []string(nil)
			if idle == 0 {
				idle = rnd.IntN(20)
				for range rnd.IntN(3) {
					running = append(running, fmt.Sprint("job", len(running)))
				}
			} else {
				idle--
			}
			if i == last {
				close(stopping)
				status = "stopped"
			}
			info := fmt.Sprint(status, len(running))
			b.beat(t, s, info, running...)
			if b.info != info {
				t.Fatalf("seed %d: asynq says %q and Redis shows %q", seed, info, b.info)
			}
			for range 5 {
				b.now = b.now.Add(time.Second)
				if !b.until.After(b.now) {
					t.Fatalf("seed %d: the server's state has expired", seed)
				}
				for set, score := range b.scores {
					if score < float64(b.now.Unix()) {
						t.Fatalf("seed %d: the server is no longer in %s", seed, set)
					}
				}
			}
		}
	}
}

// serverInfo is asynq's message about a server; its queues are a map, which comes
// in another order every time.
func serverInfo(queues ...string) string {
	var b strings.Builder
	b.WriteString("\n\x04host\x10\x01\x1a\x02id\x20\x04")
	for _, q := range queues {
		fmt.Fprintf(&b, "\x2a%c\x0a%c%s\x10\x01", len(q)+4, len(q), q)
	}
	b.WriteString("\x3a\x06active")
	return b.String()
}

// An idle server says that it is there a few times a minute, not every five
// seconds.
func TestBeats_AreFewWhenIdle(t *testing.T) {
	t.Parallel()
	queues := []string{"a", "b", "c", "d", "e", "f"}
	b := &board{now: time.Unix(1_900_000_000, 0), scores: map[string]float64{}}
	s := &seam{beats: &beats{slots: newSlots(4), now: func() time.Time { return b.now }}, stopping: make(chan struct{})}
	const minutes = 10
	for range minutes * 12 {
		rand.Shuffle(len(queues), func(i, j int) { queues[i], queues[j] = queues[j], queues[i] })
		b.beat(t, s, serverInfo(queues...))
		b.now = b.now.Add(5 * time.Second)
	}
	if b.states > minutes*3+1 {
		t.Errorf("an idle server wrote its state %d times in %d minutes", b.states, minutes)
	}
}

// A heartbeat frees the slots of jobs that asynq does not run, but not of one that
// is on its way into asynq.
func TestBeats_FreeLostSlots(t *testing.T) {
	t.Parallel()
	b := &board{now: time.Unix(1_900_000_000, 0), scores: map[string]float64{}}
	slots := newSlots(4)
	s := &seam{beats: &beats{slots: slots, now: func() time.Time { return b.now }}, stopping: make(chan struct{})}
	for _, id := range []string{"lost", "running"} {
		slots.take(job{testQueue, id}, b.now)
	}
	b.beat(t, s, "active1", "running")
	if n := slots.free(); n != 2 {
		t.Errorf("%d slots are free at once, want 2", n)
	}
	b.now = b.now.Add(settled + time.Second)
	slots.take(job{testQueue, "new"}, b.now)
	b.beat(t, s, "active1", "running")
	if n := slots.free(); n != 2 || slots.running(testQueue) != 2 {
		t.Errorf("%d slots are free and %d jobs run, want the lost one's and one more, and 2", n, slots.running(testQueue))
	}
	b.now = b.now.Add(settled + time.Second)
	b.beat(t, s, "active0")
	if n := slots.free(); n != 4 || slots.running(testQueue) != 0 {
		t.Errorf("%d slots are free and %d jobs run, want 4 and none", n, slots.running(testQueue))
	}
}

// A server is listed as soon as it starts and no longer when it has stopped.
func TestServer_IsListed(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	s, err := NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), testConfig(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return nil })); err != nil {
		t.Fatal(err)
	}
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	poll(t, says("the server is listed"), func() bool {
		servers, err := inspector.Servers()
		return err == nil && len(servers) == 1 && servers[0].Status == "active" && servers[0].Concurrency == 4
	})
	s.Stop()
	if servers, err := inspector.Servers(); err != nil || len(servers) != 0 {
		t.Errorf("after its stop %d servers are listed (%v)", len(servers), err)
	}
	if n := rdb.Exists(t.Context(), "asynq:servers", "asynq:workers").Val(); n != 0 {
		t.Error("a listing is left")
	}
}

// asynq drops a message that it cannot decode without a word to Redis. The
// heartbeat after it gives its slot back.
func TestServer_SurvivesUndecodableMessages(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t).Open(t)
	const prefix = "asynq:{" + testQueue + "}:"
	cfg := testConfig()
	for i := range cfg.Concurrency {
		id := fmt.Sprint("broken", i)
		if err := errors.Join(
			rdb.HSet(t.Context(), prefix+"t:"+id, "msg", "\xff\xff", "state", "pending").Err(),
			rdb.LPush(t.Context(), prefix+"pending", id).Err(),
		); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewServer(rdb.Dedicated("asynq"), rdb.Dedicated("engine"), cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	// The heartbeat, every five seconds, sees slots that have long been settled.
	s.seam.beats.now = func() time.Time { return time.Now().Add(2 * settled) }
	var running atomic.Int32
	all := make(chan struct{})
	if err := s.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
		if running.Add(1) == int32(cfg.Concurrency) {
			close(all)
		}
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})); err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	poll(t, says("the broken jobs were fetched"), func() bool {
		n, err := rdb.LLen(t.Context(), prefix+"active").Result()
		return err == nil && n == int64(cfg.Concurrency)
	})
	client := asynq.NewClientFromRedisClient(rdb)
	for range cfg.Concurrency {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("test", nil), asynq.Queue(testQueue)); err != nil {
			t.Fatal(err)
		}
	}
	if err := redis.NewScript(wake.Lua+`wake(KEYS[1])`).Run(t.Context(), rdb, []string{wake.Key(testQueue)}).Err(); err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d jobs run at once after %d broken ones, want %d", running.Load(), cfg.Concurrency, cfg.Concurrency)
	}
}

func copyAll(t *testing.T, from, to *redis.Client) {
	t.Helper()
	for it := from.Scan(t.Context(), 0, "*", 1000).Iterator(); it.Next(t.Context()); {
		raw, err := from.Dump(t.Context(), it.Val()).Result()
		if err == nil {
			err = to.RestoreReplace(t.Context(), it.Val(), 0, raw).Err()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// dump returns the type, value and time of expiry of every key of a database.
func dump(t *testing.T, db *redis.Client) map[string]string {
	t.Helper()
	var keys []string
	for it := db.Scan(t.Context(), 0, "*", 1000).Iterator(); it.Next(t.Context()); {
		keys = append(keys, it.Val())
	}
	kinds, ends, values := make([]*redis.StatusCmd, len(keys)), make([]*redis.Cmd, len(keys)), make([]redis.Cmder, len(keys))
	if _, err := db.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i, key := range keys {
			kinds[i], ends[i] = p.Type(t.Context(), key), p.Do(t.Context(), "EXPIRETIME", key)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i, key := range keys {
			switch kinds[i].Val() {
			case "string":
				values[i] = p.Get(t.Context(), key)
			case "list":
				values[i] = p.LRange(t.Context(), key, 0, -1)
			case "set":
				values[i] = p.Sort(t.Context(), key, &redis.Sort{Alpha: true})
			case "zset":
				values[i] = p.ZRangeWithScores(t.Context(), key, 0, -1)
			case "hash":
				values[i] = p.HGetAll(t.Context(), key)
			default:
				return fmt.Errorf("key of type %s", kinds[i].Val())
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i, key := range keys {
		out[key] = fmt.Sprint(kinds[i].Val(), ends[i].Val(), value(values[i]))
	}
	return out
}

func value(cmd redis.Cmder) any {
	switch c := cmd.(type) {
	case *redis.StringCmd:
		return c.Val()
	case *redis.StringSliceCmd:
		return c.Val()
	case *redis.ZSliceCmd:
		return c.Val()
	case *redis.MapStringStringCmd:
		return c.Val()
	default:
		return cmd
	}
}

// differences tells where two databases differ.
func differences(ours, theirs map[string]string) string {
	keys := map[string]bool{}
	for k := range ours {
		keys[k] = true
	}
	for k := range theirs {
		keys[k] = true
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if ours[k] != theirs[k] {
			fmt.Fprintf(&b, "%s\n  ours:   %s\n  asynq's: %s\n", k, ours[k], theirs[k])
		}
	}
	return b.String()
}
