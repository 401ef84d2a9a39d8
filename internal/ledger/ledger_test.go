package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnorePools()) }

// fixture is two processes that share one Redis.
type fixture struct {
	redis *testenv.RedisServer
	rdb   redis.UniversalClient
	a, b  *ledger.Ledger
}

func setup(t *testing.T, opts ...testenv.RedisOption) *fixture {
	t.Helper()
	server := testenv.Redis(t, opts...)
	rdb := server.Open(t)
	return &fixture{redis: server, rdb: rdb, a: newLedger(t, rdb, "worker-a"), b: newLedger(t, rdb, "worker-b")}
}

func newLedger(t *testing.T, rdb redis.UniversalClient, worker string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.New(rdb, worker)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// alive gives a process its sign of life.
func (f *fixture) alive(t *testing.T, worker string) {
	t.Helper()
	if err := f.rdb.Set(t.Context(), ledger.WorkerKey(worker), "x", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
}

func begin(t *testing.T, l *ledger.Ledger, id string, opts ledger.Options, want ledger.Verdict) (*ledger.Attempt, ledger.Record) {
	t.Helper()
	a, rec, err := l.Begin(t.Context(), id, opts)
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	if rec.Verdict != want {
		t.Fatalf("Begin: verdict %d, want %d (%+v)", rec.Verdict, want, rec)
	}
	if (a != nil) != (want == ledger.Go) {
		t.Fatalf("Begin: attempt %v with verdict %d", a, want)
	}
	return a, rec
}

func commit(t *testing.T, a *ledger.Attempt) {
	t.Helper()
	if err := a.Commit(t.Context(), "relay-1"); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func TestLedger_SentIsNotSentAgain(t *testing.T) {
	t.Parallel()
	f := setup(t)
	a, rec := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
	if rec.Attempts != 1 || rec.Crashes != 0 {
		t.Errorf("first attempt: %+v", rec)
	}
	commit(t, a)
	a.Sent(t.Context(), "relay-1", "4F1C")
	_, rec = begin(t, f.b, "job", ledger.Options{}, ledger.Sent)
	if rec.Provider != "relay-1" {
		t.Errorf("provider %q, want relay-1", rec.Provider)
	}
	ttl, err := f.rdb.PTTL(t.Context(), ledger.JobKey("job")).Result()
	if err != nil || ttl <= ledger.Retention-time.Minute || ttl > ledger.Retention {
		t.Errorf("record is kept for %v (%v), want %v", ttl, err, ledger.Retention)
	}
}

func TestLedger_LaterAttemptTakesTheJobAway(t *testing.T) {
	t.Parallel()
	f := setup(t)
	frozen, _ := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
	other, _ := begin(t, f.b, "job", ledger.Options{}, ledger.Go)
	if err := frozen.Commit(t.Context(), "relay-1"); !errors.Is(err, ledger.ErrSuperseded) {
		t.Fatalf("the attempt that woke up: Commit = %v, want ErrSuperseded", err)
	}
	frozen.Release(t.Context()) // must not disturb the one at work
	commit(t, other)
	other.Sent(t.Context(), "relay-1", "1")
	begin(t, f.a, "job", ledger.Options{}, ledger.Sent)
}

func TestLedger_ReleaseForgetsTheAttempt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for want := 1; want <= 10; want++ {
		a, rec := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
		if rec.Attempts != want || rec.Crashes != 0 {
			t.Fatalf("attempt %d: %+v", want, rec)
		}
		commit(t, a)
		a.Release(t.Context())
	}
}

func TestLedger_Doubt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.alive(t, "worker-a")
	a, _ := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
	commit(t, a)

	// While its owner lives and has not ended the attempt, nobody may resend.
	begin(t, f.b, "job", ledger.Options{}, ledger.Busy)
	// The owner dies between the dot and the answer.
	if err := f.rdb.Del(t.Context(), ledger.WorkerKey("worker-a")).Err(); err != nil {
		t.Fatal(err)
	}
	_, rec := begin(t, f.b, "job", ledger.Options{}, ledger.Doubtful)
	if rec.Provider != "relay-1" || rec.Age < 0 || rec.Age > time.Minute {
		t.Errorf("doubtful record: %+v", rec)
	}
	// The class allows a second copy.
	b, rec := begin(t, f.b, "job", ledger.Options{Resend: true}, ledger.Go)
	if rec.Attempts != 2 {
		t.Errorf("resend is attempt %d, want 2", rec.Attempts)
	}
	commit(t, b)
	// And is in doubt as well, known to its own process.
	b.Doubt(t.Context())
	begin(t, f.a, "job", ledger.Options{}, ledger.Doubtful)
}

func TestLedger_ParkedRunsWhenAPersonSaysSo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		park func(t *testing.T, f *fixture, a *ledger.Attempt)
	}{
		{"by the attempt", func(t *testing.T, _ *fixture, a *ledger.Attempt) {
			t.Helper()
			a.Park(t.Context())
		}},
		{"by a later one", func(t *testing.T, f *fixture, _ *ledger.Attempt) {
			t.Helper()
			begin(t, f.b, "job", ledger.Options{}, ledger.Doubtful)
			if err := f.b.Park(t.Context(), "job"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			a, _ := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
			commit(t, a)
			tt.park(t, f, a)
			again, _ := begin(t, f.b, "job", ledger.Options{}, ledger.Go)
			commit(t, again)
			again.Sent(t.Context(), "relay-1", "2")
			begin(t, f.a, "job", ledger.Options{}, ledger.Sent)
		})
	}
}

func TestLedger_CrashesAreBlamedOnTheJob(t *testing.T) {
	t.Parallel()
	f := setup(t)
	begin(t, f.a, "poison", ledger.Options{}, ledger.Go)
	begin(t, f.a, "poison", ledger.Options{}, ledger.Go)
	begin(t, f.a, "poison", ledger.Options{}, ledger.Isolate)
	_, rec := begin(t, f.a, "poison", ledger.Options{Alone: true}, ledger.Go)
	if rec.Attempts != 3 {
		t.Errorf("third start: %+v", rec)
	}
	_, rec = begin(t, f.a, "poison", ledger.Options{Alone: true}, ledger.Poison)
	if rec.Crashes != ledger.MaxCrashes {
		t.Errorf("blamed for %d crashes, want %d", rec.Crashes, ledger.MaxCrashes)
	}
	// A person runs it again from the archive.
	if err := f.a.Pardon(t.Context(), "poison"); err != nil {
		t.Fatal(err)
	}
	begin(t, f.a, "poison", ledger.Options{}, ledger.Go)

	// An innocent neighbour that ends its attempt has a clean record.
	begin(t, f.a, "innocent", ledger.Options{}, ledger.Go)
	begin(t, f.a, "innocent", ledger.Options{}, ledger.Go)
	a, _ := begin(t, f.a, "innocent", ledger.Options{Alone: true}, ledger.Go)
	a.Release(t.Context())
	_, rec = begin(t, f.a, "innocent", ledger.Options{}, ledger.Go)
	if rec.Crashes != 0 {
		t.Errorf("after an attempt that ended: %+v", rec)
	}
}

// A reply that is lost makes go-redis repeat the script: that is one start.
func TestLedger_Begin_RepeatedByTheClient(t *testing.T) {
	t.Parallel()
	f := setup(t)
	twice := newLedger(t, repeatScripts(t, f.redis.Addr()), "worker-a")
	for range 5 {
		a, rec := begin(t, twice, "job", ledger.Options{}, ledger.Go)
		if rec.Crashes != 0 {
			t.Fatalf("a repeated call counts as a crash: %+v", rec)
		}
		a.Release(t.Context())
	}
	if n, err := f.rdb.HGet(t.Context(), ledger.JobKey("job"), "attempts").Int(); err != nil || n != 5 {
		t.Errorf("%d attempts (%v), want 5", n, err)
	}
}

// repeatScripts is a client that sends each script call twice.
func repeatScripts(t *testing.T, addr string) redis.UniversalClient {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	c.AddHook(repeat{})
	return c
}

type repeat struct{}

func (repeat) DialHook(next redis.DialHook) redis.DialHook { return next }
func (repeat) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := next(ctx, cmds); err != nil {
			return err
		}
		return next(ctx, cmds)
	}
}

func (repeat) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.HasPrefix(cmd.Name(), "eval") {
			if err := next(ctx, cmd); err != nil {
				return err
			}
		}
		return next(ctx, cmd)
	}
}

func TestLedger_FailsClosed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	a, _ := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
	f.redis.Kill()
	if err := a.Commit(t.Context(), "relay-1"); err == nil || errors.Is(err, ledger.ErrSuperseded) {
		t.Errorf("Commit without Redis = %v, want its error", err)
	}
	if _, _, err := f.a.Begin(t.Context(), "other", ledger.Options{}); err == nil {
		t.Error("Begin without Redis succeeded")
	}
}

func TestLedger_JournalOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	f := setup(t, testenv.AOF())
	f.a.Start()
	var attempts []*ledger.Attempt
	for i := range 20 {
		a, _ := begin(t, f.a, fmt.Sprint("job", i), ledger.Options{}, ledger.Go)
		commit(t, a)
		attempts = append(attempts, a)
	}
	f.redis.Kill()
	var wg sync.WaitGroup
	for _, a := range attempts {
		wg.Go(func() { a.Sent(context.WithoutCancel(t.Context()), "relay-1", "id") })
	}
	wg.Wait()
	if f.a.Pending() != len(attempts) {
		t.Fatalf("%d outcomes in the journal, want %d", f.a.Pending(), len(attempts))
	}
	// The process itself knows without Redis.
	begin(t, f.a, "job3", ledger.Options{}, ledger.Sent)
	f.redis.Restart()
	stopping, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := f.a.Stop(stopping); err != nil {
		t.Fatal(err)
	}
	for i := range attempts {
		begin(t, f.b, fmt.Sprint("job", i), ledger.Options{}, ledger.Sent)
	}
}

func TestLedger_Stop_CountsWhatIsLost(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.a.Start()
	a, _ := begin(t, f.a, "job", ledger.Options{}, ledger.Go)
	f.redis.Kill()
	a.Release(t.Context())
	stopping, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := f.a.Stop(stopping); err == nil || !strings.Contains(err.Error(), "1 outcome") {
		t.Errorf("Stop = %v, want an error that counts one lost outcome", err)
	}
}

// Whatever order many processes begin, commit and end in, at most one attempt
// between two Releases gets past Commit.
func TestLedger_OneCommitAtATime(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var mu sync.Mutex
	sent := 0
	var wg sync.WaitGroup
	for w := range 8 {
		name := fmt.Sprint("racer", w)
		f.alive(t, name)
		l := newLedger(t, f.rdb, name)
		wg.Go(func() {
			for range 50 {
				a, rec, err := l.Begin(t.Context(), "job", ledger.Options{Alone: true})
				if err != nil {
					t.Error(err)
					return
				}
				if rec.Verdict == ledger.Poison { // the losers below never ended
					if err := l.Pardon(t.Context(), "job"); err != nil {
						t.Error(err)
					}
					continue
				}
				if a == nil || a.Commit(t.Context(), "relay-1") != nil {
					continue
				}
				mu.Lock()
				sent++
				mu.Unlock()
				a.Sent(t.Context(), "relay-1", "id")
			}
		})
	}
	wg.Wait()
	if sent != 1 {
		t.Errorf("%d attempts passed Commit, want exactly 1", sent)
	}
}
