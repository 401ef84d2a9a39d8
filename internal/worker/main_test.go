package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/mailer"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
	"github.com/medicalink/postroom/templates"
)

// The test binary is also the worker process that tests kill: with this
// variable set it runs a worker until SIGTERM.
const (
	childVariable = "POSTROOM_TEST_WORKER"
	childSends    = "sends"
	childCounts   = "counts"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVariable); mode != "" {
		run := child
		if mode == childCounts {
			run = countingWorker
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(testenv.Main(m), testenv.IgnorePools())
}

// quick is a worker whose clocks are short enough for a test.
func quick(queues ...string) Config {
	cfg := Config{
		Queues:          map[string]int{},
		Concurrency:     10,
		ShutdownTimeout: 10 * time.Second,
		From:            "MedicaLink <noreply@medicalink.example>",
		Liveness:        2 * time.Second,
		DoubtWait:       time.Second,
	}
	if len(queues) == 0 {
		queues = []string{critical, normal, bulk}
	}
	for i, q := range queues {
		cfg.Queues[q] = []int{6, 3, 1}[i]
	}
	return cfg
}

var (
	critical = tasks.EmailQueue("", tasks.Critical)
	normal   = tasks.EmailQueue("", tasks.Default)
	bulk     = tasks.EmailQueue("", tasks.Bulk)
)

// Subjects that the child process has its own handler for.
const (
	crashSubject = "end the process"
)

func child() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	redis, err := rediskit.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	rdb, err := rediskit.Open(ctx, redis)
	if err != nil {
		return err
	}
	mail, err := newMailer(os.Getenv("SMTP_URL"))
	if err != nil {
		return err
	}
	set, err := templates.Load("")
	if err != nil {
		return err
	}
	cfg := quick()
	cfg.Queues[notices] = 3
	w, err := New(cfg, rdb, set, mail, zerolog.New(os.Stderr).With().Timestamp().Logger())
	if err != nil {
		return err
	}
	w.handlers[tasks.TypeEmail] = func(ctx context.Context, j *job, a *ledger.Attempt) *failure {
		if email, err := tasks.DecodeEmail(j.payload); err == nil && email.Subject == crashSubject {
			os.Exit(3)
		}
		return w.sendEmail(ctx, j, a)
	}
	if err := w.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(w.Stop(stopping), mail.Close(stopping), rdb.Close())
}

func newMailer(url string) (*mailer.Mailer, error) {
	providers, err := mailer.ParseProviders(url)
	if err != nil {
		return nil, err
	}
	return mailer.New(mailer.Config{Providers: providers})
}

// process is a worker process of its own.
type process struct {
	cmd  *exec.Cmd
	log  string
	wait func() error
}

func spawn(t *testing.T, redis *testenv.RedisServer, smtp *testenv.SMTPServer) *process {
	t.Helper()
	p := &process{log: filepath.Join(t.TempDir(), "worker.log")}
	f, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), childVariable+"="+childSends, "REDIS_URL="+redis.URL(), "SMTP_URL="+smtp.URL())
	p.cmd.Stderr = f
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait = sync.OnceValue(p.cmd.Wait)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.wait()
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("log of worker process %d:\n%s", p.cmd.Process.Pid, tail(string(text), 80))
		}
	})
	return p
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.wait()
}

func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// bed is a worker in this process with a real Redis and a real SMTP server.
type bed struct {
	redis     *testenv.RedisServer
	smtp      *testenv.SMTPServer
	rdb       *rediskit.Client
	producer  *tasks.Producer
	inspector *asynq.Inspector
	worker    *Worker
	mail      *mailer.Mailer
	logs      *syncBuilder
}

// syncBuilder collects log lines of several goroutines.
type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// setup starts Redis and SMTP and makes a worker that is not started yet.
func setup(t testing.TB, cfg Config, redis *testenv.RedisServer, smtp *testenv.SMTPServer) *bed {
	t.Helper()
	b := &bed{redis: redis, smtp: smtp, logs: &syncBuilder{}}
	b.rdb = b.redis.Open(t)
	var err error
	if b.producer, err = tasks.NewProducer(b.rdb, tasks.FromService("worker-test")); err != nil {
		t.Fatal(err)
	}
	b.inspector = asynq.NewInspectorFromRedisClient(b.rdb)
	if b.mail, err = newMailer(b.smtp.URL()); err != nil {
		t.Fatal(err)
	}
	set, err := templates.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if b.worker, err = New(cfg, b.rdb, set, b.mail, zerolog.New(b.logs)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(b.worker.Stop(ctx), b.mail.Close(ctx)); err != nil {
			t.Errorf("stop: %v", err)
		}
		if t.Failed() {
			t.Logf("worker log:\n%s", tail(b.logs.String(), 60))
		}
	})
	return b
}

func (b *bed) start(t testing.TB) {
	t.Helper()
	if err := b.worker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// welcome is a good email; its recipient makes it unique.
func welcome(to string) tasks.Email {
	return tasks.Email{To: to, Template: "welcome", Data: map[string]any{"name": "Ada"}}
}

func (b *bed) send(t *testing.T, e tasks.Email, opts ...tasks.Option) tasks.Receipt {
	t.Helper()
	r, err := b.producer.SendEmail(t.Context(), e, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *bed) info(t *testing.T, r tasks.Receipt) *asynq.TaskInfo {
	t.Helper()
	info, err := b.inspector.GetTaskInfo(r.Queue, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// waitState polls until a job is in a state.
func (b *bed) waitState(t *testing.T, r tasks.Receipt, want asynq.TaskState) *asynq.TaskInfo {
	t.Helper()
	var last *asynq.TaskInfo
	eventually(t, fmt.Sprintf("job is %v", want), func() bool {
		info, err := b.inspector.GetTaskInfo(r.Queue, r.ID)
		last = info
		return err == nil && info.State == want
	}, func() string {
		if last == nil {
			return "the job is gone"
		}
		return fmt.Sprintf("it is %v, last error %q", last.State, last.LastErr)
	})
	return last
}

// copies counts accepted messages by recipient.
func copies(smtp *testenv.SMTPServer) map[string]int {
	n := map[string]int{}
	for _, m := range smtp.Messages() {
		n[m.To]++
	}
	return n
}

const patience = 60 * time.Second

// eventually polls for what real servers do in their own time.
func eventually(t *testing.T, what string, ok func() bool, state ...func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			for _, f := range state {
				what += "; " + f()
			}
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
