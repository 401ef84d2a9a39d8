package devbox

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/worker"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

// childMode makes the test binary a devbox: what Ctrl-C leaves behind is seen
// from outside only.
const childMode = "POSTROOM_TEST_DEVBOX"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode))
	}
	var err error
	if binaries, err = os.MkdirTemp("", "postroom-devbox-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, testenv.IgnorePools(), goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(binaries)
		os.Exit(code)
	}))
}

func child(mode string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cfg := testConfig()
	cfg.Out, cfg.Log = os.Stdout, zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	run := Run
	if mode == "once" {
		run = Once
	}
	if err := run(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func testConfig() Config {
	queues := map[string]int{}
	for _, p := range []tasks.PriorityLevel{tasks.Critical, tasks.Default, tasks.Bulk} {
		queues[tasks.EmailQueue("", p)] = 1
		queues[tasks.NotificationQueue("", p)] = 1
	}
	return Config{Addr: "127.0.0.1:0", Worker: worker.Config{Queues: queues, ShutdownTimeout: 5 * time.Second}, Log: zerolog.Nop(), Out: io.Discard}
}

// both kinds of Redis, by the PATH that leads to them.
func bothKinds(t *testing.T) map[string]string {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("no redis-server on PATH; `task setup` installs it")
	}
	return map[string]string{"redis-server": os.Getenv("PATH"), "in-process": t.TempDir()}
}

func childCommand(t *testing.T, mode, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childMode+"="+mode, "PATH="+path, "TMPDIR="+t.TempDir())
	return cmd
}

func TestOnce(t *testing.T) {
	t.Parallel()
	for kind, path := range bothKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cmd := childCommand(t, "once", path)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
			}
			if got, want := stdout.String(), "delivered: \"Welcome to MedicaLink\" to ada@example.com\n"; got != want {
				t.Errorf("printed %q, want %q", got, want)
			}
			if stderr.Len() > 0 {
				t.Errorf("not quiet: %s", stderr.String())
			}
		})
	}
}

func TestOnce_Timeout(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	// Nobody consumes the queue of the first email.
	cfg.Worker.Queues = map[string]int{tasks.EmailQueue("", tasks.Bulk): 1}
	cfg.OnceTimeout = 3 * time.Second
	var out bytes.Buffer
	cfg.Out = &out
	err := Once(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "no email arrived within 3s") || !strings.Contains(err.Error(), tasks.EmailQueue("", tasks.Default)) {
		t.Errorf("error %v, want one that says what did not happen and where to look", err)
	}
	if out.Len() > 0 {
		t.Errorf("printed %q", out.String())
	}
}

func TestRun_RefusesOtherMachines(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.Addr = "0.0.0.0:0"
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("error %v, want a refusal", err)
	}
}

// running is a devbox in a process of its own.
type running struct {
	cmd    *exec.Cmd
	redis  string // URL
	base   string // of the pages
	stderr *bytes.Buffer
	ended  chan struct{} // closed when its output has ended
}

var (
	redisLine = regexp.MustCompile(`Redis +(redis://\S+)`)
	inboxLine = regexp.MustCompile(`Inbox +(http://\S+)inbox/`)
)

func startChild(t *testing.T, path string) *running {
	t.Helper()
	r := &running{cmd: childCommand(t, "run", path), stderr: new(bytes.Buffer), ended: make(chan struct{})}
	r.cmd.Stderr = r.stderr
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.ended
		_ = r.cmd.Wait()
	})
	lines := make(chan string, 1000) // more than are ever printed
	go func() {
		defer close(r.ended)
		defer close(lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	deadline := time.After(time.Minute)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				_ = r.cmd.Wait()
				t.Fatalf("it ended: %s", r.stderr)
			}
			if m := redisLine.FindStringSubmatch(line); m != nil {
				r.redis = m[1]
			}
			if m := inboxLine.FindStringSubmatch(line); m != nil {
				r.base = m[1]
			}
			if strings.Contains(line, `delivered: "Welcome to MedicaLink" to ada@example.com`) {
				if r.redis == "" || r.base == "" {
					t.Fatal("the addresses were not printed")
				}
				return r
			}
		case <-deadline:
			t.Fatal("no first delivery within a minute")
		}
	}
}

func (r *running) open(t *testing.T) *rediskit.Client {
	t.Helper()
	cfg, err := rediskit.ParseURL(r.redis)
	if err != nil {
		t.Fatal(err)
	}
	c, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// redisPID is the process that answers as Redis.
func redisPID(t *testing.T, c *rediskit.Client) int {
	t.Helper()
	info, err := c.Info(t.Context(), "server").Result()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`process_id:(\d+)`).FindStringSubmatch(info)
	if m == nil {
		t.Fatalf("no process id in %s", info)
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A delayed job waits and then comes, on both kinds of Redis: the in-process one
// has to be made to see time pass.
func TestRun_Delay(t *testing.T) {
	t.Parallel()
	for kind, path := range bothKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := startChild(t, path)
			producer, err := tasks.NewProducer(r.open(t))
			if err != nil {
				t.Fatal(err)
			}
			email := tasks.Email{To: "grace@example.com", Subject: "Later", Body: "Hello Grace"}
			receipt, err := producer.SendEmail(t.Context(), email, tasks.Delay(2*time.Second), tasks.IdempotencyKey("k"))
			if err != nil || receipt.State != tasks.StateScheduled {
				t.Fatalf("receipt %+v (%v), want a scheduled job", receipt, err)
			}
			if again, err := producer.SendEmail(t.Context(), email, tasks.Delay(2*time.Second), tasks.IdempotencyKey("k")); err != nil || !again.Duplicate || again.ID != receipt.ID {
				t.Errorf("the same key again: %+v (%v), want a duplicate", again, err)
			}
			var l listing
			eventually(t, "the delayed mail arrives", func() bool {
				l = getJSON[listing](t, r.base+"api/messages?q=later")
				return l.Matched > 0
			})
			if arrived, due := l.Messages[0].Received, receipt.ProcessAt; arrived.Before(due) || l.Matched != 1 {
				t.Errorf("%d messages, the first at %v, want one, not before %v", l.Matched, arrived, due)
			}
		})
	}
}
