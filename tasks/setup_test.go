package tasks

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
)

// shared is one redis-server for the tests and examples that neither break it
// nor look at all of it. Each test has a namespace of its own.
var shared *testenv.RedisServer

func TestMain(m *testing.M) {
	tb := new(mainTB)
	shared = testenv.Redis(tb)
	_ = os.Setenv("EXAMPLE_REDIS_ADDR", shared.Addr())
	code := testenv.Main(m).Run()
	tb.cleanup()
	os.Exit(code)
}

// mainTB lets TestMain, which has no testing.TB, start the server.
type mainTB struct {
	testing.TB

	cleanups []func()
}

func (tb *mainTB) Helper()                  {}
func (tb *mainTB) Failed() bool             { return false }
func (tb *mainTB) Cleanup(f func())         { tb.cleanups = append(tb.cleanups, f) }
func (tb *mainTB) Context() context.Context { return context.Background() }
func (tb *mainTB) Fatal(args ...any)        { tb.Fatalf("%s", fmt.Sprint(args...)) }

func (tb *mainTB) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	tb.cleanup()
	os.Exit(1)
}

func (tb *mainTB) cleanup() {
	for _, f := range tb.cleanups {
		f()
	}
}

var namespaces atomic.Int64

// setup returns a producer in a namespace of its own on the shared server.
func setup(t *testing.T, opts ...ProducerOption) *Producer {
	t.Helper()
	return newProducer(t, shared.Open(t), opts...)
}

func newProducer(t *testing.T, rdb redis.UniversalClient, opts ...ProducerOption) *Producer {
	t.Helper()
	ns := Namespace(fmt.Sprintf("test%d", namespaces.Add(1)))
	p, err := NewProducer(rdb, append([]ProducerOption{ns, FromService("accounts-service")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// message returns a valid message.
func message() Email {
	return Email{To: "Ada Lovelace <ada@example.com>", Subject: "Welcome", Body: "Hello Ada"}
}

func send(t *testing.T, p *Producer, email Email, opts ...Option) Receipt {
	t.Helper()
	receipt, err := p.SendEmail(t.Context(), email, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

// stored returns the job as asynq has it.
func stored(t *testing.T, p *Producer, r Receipt) *asynq.TaskInfo {
	t.Helper()
	info, err := p.inspector.GetTaskInfo(r.Queue, r.ID)
	if err != nil {
		t.Fatalf("get job: %v", err)
	}
	return info
}

// size returns the number of jobs in the queue of r.
func size(t *testing.T, p *Producer, queue string) int {
	t.Helper()
	info, err := p.inspector.GetQueueInfo(queue)
	if err != nil {
		t.Fatalf("get queue: %v", err)
	}
	return info.Size
}
