package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

func TestWorker_SendsARenderedEmail(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	b.start(t)
	r := b.send(t, tasks.Email{
		To: "Ada Lovelace <ada@example.com>", Template: "welcome", Locale: "de-AT", Data: map[string]any{"name": "Ada & Söhne <GmbH>"},
	})
	b.waitState(t, r, asynq.TaskStateCompleted)
	got := b.smtp.Messages()
	if len(got) != 1 || got[0].To != "ada@example.com" || got[0].From != "noreply@medicalink.example" {
		t.Fatalf("delivered: %+v", got)
	}
	raw := string(got[0].Raw)
	for _, want := range []string{"Message-ID: <" + r.ID + "@medicalink.example>", "Auto-Submitted: auto-generated", "X-Auto-Response-Suppress: OOF, AutoReply", "multipart/alternative"} {
		if !strings.Contains(raw, want) {
			t.Errorf("message lacks %q:\n%s", want, raw)
		}
	}
	if strings.Contains(b.logs.String(), "ada@") || strings.Contains(b.logs.String(), "Söhne") {
		t.Errorf("the log shows the recipient or the payload:\n%s", b.logs.String())
	}
	for _, field := range []string{`"task_id":"` + r.ID, `"type":"email:send"`, `"queue":"email:default"`, `"attempt":1`, `"duration":`, `"outcome":"sent"`} {
		if !strings.Contains(b.logs.String(), field) {
			t.Errorf("the log line lacks %s:\n%s", field, b.logs.String())
		}
	}
}

// A delayed job is never sent early, though asynq keeps whole seconds, and within
// a second of its time.
func TestWorker_KeepsDelays(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	b.start(t)
	due := map[string]time.Time{}
	for i, d := range []time.Duration{1500 * time.Millisecond, 2 * time.Second, 3300 * time.Millisecond} {
		to := fmt.Sprintf("delayed%d@example.com", i)
		due[to] = time.Now().Add(d)
		b.send(t, welcome(to), tasks.Delay(d))
	}
	eventually(t, "all are delivered", func() bool { return len(b.smtp.Messages()) == len(due) })
	for _, m := range b.smtp.Messages() {
		if late := m.At.Sub(due[m.To]); late < 0 || late > time.Second {
			t.Errorf("%s: %v off its time", m.To, late)
		}
	}
}

// With every queue full, each gets its share.
func TestWorker_HonoursWeights(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	const each, counted = 700, 1000
	for _, p := range []tasks.PriorityLevel{tasks.Critical, tasks.Default, tasks.Bulk} {
		for i := range each {
			b.send(t, welcome(fmt.Sprintf("%s%d@example.com", p, i)), tasks.Priority(p))
		}
	}
	var mu sync.Mutex
	served := map[string]int{}
	total := 0
	b.worker.handlers[tasks.TypeEmail] = func(ctx context.Context, j *job, a *ledger.Attempt) *failure {
		mu.Lock()
		if total < counted {
			total++
			served[j.queue]++
		}
		mu.Unlock()
		a.Release(ctx)
		return nil
	}
	b.start(t)
	eventually(t, "enough jobs ran", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return total >= counted
	})
	mu.Lock()
	defer mu.Unlock()
	// asynq draws by weight at each fetch: 600 ± 4 standard deviations of 15.5, and so on.
	for q, want := range map[string]int{critical: 600, normal: 300, bulk: 100} {
		if got := served[q]; got < want-62 || got > want+62 {
			t.Errorf("%s: %d of the first %d jobs, want about %d (%v)", q, got, counted, want, served)
		}
	}
}

func TestWorker_StrictPriority(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.StrictPriority = true
	cfg.Concurrency = 1
	b := setup(t, cfg, testenv.Redis(t), testenv.SMTP(t))
	for i := range 20 {
		for _, p := range []tasks.PriorityLevel{tasks.Bulk, tasks.Default, tasks.Critical} {
			b.send(t, welcome(fmt.Sprintf("%s%d@example.com", p, i)), tasks.Priority(p))
		}
	}
	b.start(t)
	eventually(t, "all are delivered", func() bool { return len(b.smtp.Messages()) == 60 })
	for i, m := range b.smtp.Messages() {
		want := []string{"critical", "default", "bulk"}[i/20]
		if !strings.HasPrefix(m.To, want) {
			t.Fatalf("message %d went to %s, want the %s ones first", i, m.To, want)
		}
	}
}

// What can never be delivered is archived at once, with a reason and without a
// word of the payload.
func TestWorker_ArchivesWhatCannotBeSent(t *testing.T) { //nolint:tparallel // what follows the subtests needs all of them finished
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	b.start(t)
	client := asynq.NewClientFromRedisClient(b.rdb)
	raw := func(kind, payload string) func(t *testing.T) tasks.Receipt {
		return func(t *testing.T) tasks.Receipt {
			t.Helper()
			info, err := client.EnqueueContext(t.Context(), asynq.NewTask(kind, []byte(payload)), asynq.Queue(normal))
			if err != nil {
				t.Fatal(err)
			}
			return tasks.Receipt{ID: info.ID, Queue: info.Queue}
		}
	}
	for _, tt := range []struct {
		name, reason string
		enqueue      func(t *testing.T) tasks.Receipt
	}{
		{"not JSON", reasonUndecodable, raw(tasks.TypeEmail, "canary@example.org")},
		{"newer version", reasonUndecodable, raw(tasks.TypeEmail, `{"v":99,"to":"canary@example.org"}`)},
		{"invalid", reasonUndecodable, raw(tasks.TypeEmail, `{"v":1,"to":"canary@example.org\r\nBcc: x@example.org","subject":"s","body":"b"}`)},
		{"unknown type", reasonUnknownType, raw("email:shred", `{"to":"canary@example.org"}`)},
		{"unknown template", reasonTemplate, func(t *testing.T) tasks.Receipt {
			t.Helper()
			return b.send(t, tasks.Email{To: "canary@example.org", Template: "no-such", Data: map[string]any{"name": "canary"}})
		}},
		{"bad data", reasonTemplate, func(t *testing.T) tasks.Receipt {
			t.Helper()
			return b.send(t, tasks.Email{To: "canary@example.org", Template: "welcome", Data: map[string]any{"nom": "canary"}})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.enqueue(t)
			info := b.waitState(t, r, asynq.TaskStateArchived)
			if !strings.HasPrefix(info.LastErr, tt.reason) || info.Retried != 0 {
				t.Errorf("archived with %q after %d retries, want reason %q after none", info.LastErr, info.Retried, tt.reason)
			}
			if strings.Contains(info.LastErr, "canary") {
				t.Errorf("the stored error shows the payload: %q", info.LastErr)
			}
		})
	}
	if n := len(b.smtp.Messages()); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
	if strings.Contains(b.logs.String(), "canary") {
		t.Errorf("the log shows a payload:\n%s", b.logs.String())
	}
}

func TestWorker_DropsAndCountsTheExpired(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	r := b.send(t, welcome("late@example.com"), tasks.Deadline(time.Now().Add(1100*time.Millisecond)))
	time.Sleep(1200 * time.Millisecond) // no worker runs yet: the deadline passes in the queue
	b.start(t)
	eventually(t, "the job is gone", func() bool {
		_, err := b.inspector.GetTaskInfo(r.Queue, r.ID)
		return errors.Is(err, asynq.ErrTaskNotFound)
	})
	if n := len(b.smtp.Messages()); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
	if n, err := b.rdb.HGet(t.Context(), expiredKey, r.Queue).Int(); err != nil || n != 1 {
		t.Errorf("%d expired jobs counted (%v), want 1", n, err)
	}
	if !strings.Contains(b.logs.String(), `"outcome":"expired"`) {
		t.Errorf("no log line of the expired job:\n%s", b.logs.String())
	}
}

// A panic costs the job an attempt and the process nothing, wherever it happens,
// and its value is kept from every eye.
func TestWorker_ContainsPanics(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t))
	var once sync.Once
	b.worker.handlers[tasks.TypeEmail] = func(ctx context.Context, j *job, a *ledger.Attempt) *failure {
		once.Do(func() { panic("canary@example.org") })
		return b.worker.sendEmail(ctx, j, a)
	}
	b.start(t)
	r := b.send(t, welcome("ada@example.com"))
	info := b.waitState(t, r, asynq.TaskStateRetry)
	if info.Retried != 1 || !strings.HasPrefix(info.LastErr, reasonPanic) {
		t.Errorf("after the panic: %d retries, error %q", info.Retried, info.LastErr)
	}
	if err := b.inspector.RunTask(r.Queue, r.ID); err != nil {
		t.Fatal(err)
	}
	b.waitState(t, r, asynq.TaskStateCompleted)
	if strings.Contains(b.logs.String()+info.LastErr, "canary") {
		t.Errorf("the panic's value is shown:\n%s", b.logs.String())
	}
	if !strings.Contains(b.logs.String(), "handler panicked") || !strings.Contains(b.logs.String(), "worker_test.go") {
		t.Errorf("the log does not say where the panic was:\n%s", b.logs.String())
	}
}
