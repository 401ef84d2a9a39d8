package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/engine"
	"github.com/medicalink/postroom/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnorePools()) }

const queue = "email:default"

func config() engine.Config {
	return engine.Config{
		Queues:          map[string]int{queue: 1},
		Concurrency:     4,
		ShutdownTimeout: 5 * time.Second,
		RetryDelay:      func(int, error, *asynq.Task) time.Duration { return time.Hour },
		IsFailure:       func(error) bool { return true },
	}
}

func newServer(t *testing.T, hooked, plain redis.UniversalClient, cfg engine.Config, log zerolog.Logger) *engine.Server {
	t.Helper()
	s, err := engine.NewServer(hooked, plain, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func enqueue(t *testing.T, rdb redis.UniversalClient, id string) {
	t.Helper()
	_, err := asynq.NewClientFromRedisClient(rdb).EnqueueContext(t.Context(),
		asynq.NewTask("test", nil), asynq.Queue(queue), asynq.TaskID(id), asynq.Retention(time.Hour), asynq.MaxRetry(3))
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls for what a real server does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// asynq retries a failed acknowledgement with a context it has cancelled. Without
// the hook's live one the job stays active until its lease is over and runs again.
func TestServer_AcknowledgesAfterAnOutage(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t, testenv.AOF())
	rdb := server.Open(t)
	var runs atomic.Int32
	handling, finish := make(chan struct{}), make(chan struct{})
	s := newServer(t, rdb.Dedicated("test"), rdb, config(), zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel))
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		runs.Add(1)
		close(handling)
		<-finish
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	enqueue(t, rdb, "job")
	<-handling
	server.Kill()
	close(finish) // the acknowledgement meets a dead Redis
	time.Sleep(2 * time.Second)
	server.Restart()
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	eventually(t, "the job is completed", func() bool {
		info, err := inspector.GetTaskInfo(queue, "job")
		return err == nil && info.State == asynq.TaskStateCompleted
	})
	if n := runs.Load(); n != 1 {
		t.Errorf("the job ran %d times, want 1", n)
	}
}

// A Redis that refuses scripts must not be asked thousands of times a second.
func TestServer_DoesNotSpinWhenRedisRefuses(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	counted := rdb.Dedicated("test")
	var scripts atomic.Int64
	counted.AddHook(countScripts{&scripts})
	cfg := config()
	cfg.Concurrency = 10
	s := newServer(t, counted, rdb, cfg, zerolog.Nop())
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return nil })); err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := rdb.Do(t.Context(), "ACL", "SETUSER", "default", "-eval", "-evalsha").Err(); err != nil {
		t.Fatal(err)
	}
	before := scripts.Load()
	time.Sleep(3 * time.Second)
	if n := scripts.Load() - before; n > 100 { // 26,000 a second without the hook
		t.Errorf("%d scripts in three seconds of refusal", n)
	}
}

type countScripts struct{ n *atomic.Int64 }

func (countScripts) DialHook(next redis.DialHook) redis.DialHook { return next }
func (countScripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c countScripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.HasPrefix(cmd.Name(), "eval") {
			c.n.Add(1)
		}
		return next(ctx, cmd)
	}
}

// asynq calls these on goroutines without a recover: a panic ends the process.
func TestServer_ContainsPanicsInCallbacks(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	rdb := server.Open(t)
	var logs strings.Builder
	cfg := config()
	cfg.RetryDelay = func(int, error, *asynq.Task) time.Duration { panic("jane@example.org") }
	cfg.IsFailure = func(error) bool { panic("jane@example.org") }
	s := newServer(t, rdb.Dedicated("test"), rdb, cfg, zerolog.New(zerolog.SyncWriter(&logs)))
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return errors.New("x") })); err != nil {
		t.Fatal(err)
	}
	enqueue(t, rdb, "job")
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	eventually(t, "the job waits for its retry", func() bool {
		info, err := inspector.GetTaskInfo(queue, "job")
		return err == nil && info.State == asynq.TaskStateRetry
	})
	s.Stop()
	if !strings.Contains(logs.String(), "callback panicked") || strings.Contains(logs.String(), "jane@") {
		t.Errorf("the log must tell of the panic and not its value:\n%s", logs.String())
	}
}
