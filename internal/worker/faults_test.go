package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

// rerun brings a waiting job's next attempt forward.
func (b *bed) rerun(t *testing.T, r tasks.Receipt) {
	t.Helper()
	if err := b.inspector.RunTask(r.Queue, r.ID); err != nil {
		t.Fatal(err)
	}
}

func TestWorker_Greylisted(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Greylist()))
	b.start(t)
	r := b.send(t, welcome("ada@example.com"))
	info := b.waitState(t, r, asynq.TaskStateRetry)
	if info.Retried != 1 || !strings.HasPrefix(info.LastErr, "greylisted") {
		t.Errorf("after the greylisting: %d retries, %q", info.Retried, info.LastErr)
	}
	if wait := time.Until(info.NextProcessAt); wait < 4*time.Minute || wait > 7*time.Minute {
		t.Errorf("comes back in %v; the server asked for 300 seconds", wait)
	}
	b.rerun(t, r)
	b.waitState(t, r, asynq.TaskStateCompleted)
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

func TestWorker_RefusedForGood(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t),
		testenv.SMTP(t, testenv.Refuse(550, "5.1.1 <ada@example.com> bo\xeete inconnue", testenv.StageRcpt).For("ada@example.com")))
	b.start(t)
	bad, good := b.send(t, welcome("ada@example.com")), b.send(t, welcome("grace@example.com"))
	info := b.waitState(t, bad, asynq.TaskStateArchived)
	b.waitState(t, good, asynq.TaskStateCompleted)
	if info.Retried != 0 || !strings.HasPrefix(info.LastErr, "refused_address") || !strings.Contains(info.LastErr, "550 5.1.1") {
		t.Errorf("archived with %q after %d retries", info.LastErr, info.Retried)
	}
	if strings.Contains(info.LastErr+b.logs.String(), "ada@") {
		t.Errorf("the address is shown: %q\n%s", info.LastErr, b.logs.String())
	}
}

// Without a hint in the reply, the next attempt comes by the class's schedule.
func TestWorker_RetriesByItself(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Refuse(451, "4.3.0 local error", testenv.StageVerdict).Times(2)))
	b.start(t)
	e := welcome("ada@example.com")
	e.Class = tasks.ClassOTP // 2 s, then 5 s
	r := b.send(t, e)
	if info := b.waitState(t, r, asynq.TaskStateCompleted); info.Retried != 2 {
		t.Errorf("charged %d attempts, want 2", info.Retried)
	}
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

// 421 in the middle of a run costs nobody an attempt and doubles nothing.
func TestWorker_ServerSays421(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Every421(5)))
	b.start(t)
	var receipts []tasks.Receipt
	for i := range 100 {
		receipts = append(receipts, b.send(t, welcome(fmt.Sprintf("p%d@example.com", i))))
	}
	for _, r := range receipts {
		if info := b.waitState(t, r, asynq.TaskStateCompleted); info.Retried != 0 {
			t.Errorf("a job was charged %d attempts: %s", info.Retried, info.LastErr)
		}
	}
	for to, n := range copies(b.smtp) {
		if n != 1 {
			t.Errorf("%s got %d copies", to, n)
		}
	}
}

func TestWorker_CutInMidBody(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.CutBody(40).Times(1)))
	b.start(t)
	r := b.send(t, welcome("ada@example.com"))
	b.waitState(t, r, asynq.TaskStateCompleted)
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1 and no half one", n)
	}
}

func TestWorker_AcceptedAndCutIsSuccess(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.CloseAfterAccept()))
	b.start(t)
	r := b.send(t, welcome("ada@example.com"))
	b.waitState(t, r, asynq.TaskStateCompleted)
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

// The provider is away: no job loses an attempt, and all are delivered when it
// is back.
func TestWorker_ProviderIsAway(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Refuse(421, "closing", testenv.StageGreeting).Times(7)))
	b.start(t)
	var receipts []tasks.Receipt
	for i := range 20 {
		receipts = append(receipts, b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)), tasks.MaxRetry(1)))
	}
	for _, r := range receipts {
		if info := b.waitState(t, r, asynq.TaskStateCompleted); info.Retried != 0 {
			t.Errorf("a job was charged %d attempts", info.Retried)
		}
	}
}

// While no relay works, mail stays in its queue: it is not fetched only to be
// deferred, and a probe finds out when to go on.
func TestWorker_LeavesMailInItsQueueWhileNoRelayWorks(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Refuse(421, "closing", testenv.StageGreeting).Times(6)))
	b.start(t)
	first := make([]tasks.Receipt, 5) // as many faults as make a breaker open
	for i := range first {
		first[i] = b.send(t, welcome(fmt.Sprintf("first%d@example.com", i)))
	}
	eventually(t, "rest of the relay", func() bool { return strings.Contains(b.logs.String(), "no relay works") })
	const jobs = 60
	later := make([]tasks.Receipt, jobs)
	for i := range later {
		later[i] = b.send(t, welcome(fmt.Sprintf("later%d@example.com", i)))
	}
	for _, r := range append(first, later...) {
		b.waitState(t, r, asynq.TaskStateCompleted)
	}
	if !strings.Contains(b.logs.String(), "a relay works again") {
		t.Error("the log does not say that mail goes out again")
	}
	// The first ones, and a probe's: of each queue one at most.
	if n := strings.Count(b.logs.String(), `"outcome":"deferred"`); n > jobs/2 {
		t.Errorf("%d jobs were fetched to be deferred", n)
	}
}

// No answer after the dot: a class that must not double keeps the message back
// until a person decides; a class that must arrive sends a second copy, the
// same to the letter.
func TestWorker_NoAnswerAfterTheDot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		class  tasks.Class
		copies int
	}{{tasks.ClassOTP, 1}, {tasks.ClassTransactional, 2}} {
		t.Run(string(tt.class), func(t *testing.T) {
			t.Parallel()
			// Accepted, and the connection dies instead of the 250.
			b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Cut(testenv.StageVerdict).Times(1)))
			b.start(t)
			e := welcome("ada@example.com")
			e.Class = tt.class
			r := b.send(t, e)
			if tt.class == tasks.ClassOTP {
				info := b.waitState(t, r, asynq.TaskStateArchived)
				if !strings.HasPrefix(info.LastErr, "unknown_outcome") {
					t.Errorf("archived with %q", info.LastErr)
				}
				before := b.smtp.Count()
				b.rerun(t, r) // a person decides to send it
				b.waitState(t, r, asynq.TaskStateCompleted)
				if b.smtp.Count() != before+1 {
					t.Errorf("running it again sent %d copies, want 1", b.smtp.Count()-before)
				}
				return
			}
			info := b.waitState(t, r, asynq.TaskStateCompleted)
			if info.Retried != 0 {
				t.Errorf("charged %d attempts", info.Retried)
			}
			got := b.smtp.Messages()
			for _, m := range got[1:] {
				if string(m.Raw) != string(got[0].Raw) {
					t.Error("the second copy differs from the first: nobody could tell that they are one message")
				}
			}
		})
	}
}

// A handler past its time really stops: the relay hangs, the job's timeout ends
// the connection, and no two attempts run at once.
func TestWorker_TimeoutStopsTheHandler(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Concurrency = 1
	b := setup(t, cfg, testenv.Redis(t), testenv.SMTP(t, testenv.Hang(testenv.StageData).Times(1)))
	b.start(t)
	r := b.send(t, welcome("ada@example.com"), tasks.Timeout(time.Second))
	info := b.waitState(t, r, asynq.TaskStateRetry)
	if info.Retried != 1 {
		t.Errorf("charged %d attempts, want 1", info.Retried)
	}
	b.rerun(t, r)
	b.waitState(t, r, asynq.TaskStateCompleted)
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
	if most := b.smtp.Most(); most > 1 {
		t.Errorf("%d connections at once with one slot: the first handler still ran", most)
	}
}

// Past the dot the handler waits for the answer whatever asynq does to its
// context, so a slow relay is a late success and not a second copy.
func TestWorker_TimeoutAfterTheDotWaitsForTheAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, quick(), testenv.Redis(t), testenv.SMTP(t, testenv.Delay(3*time.Second, testenv.StageVerdict)))
	b.start(t)
	r := b.send(t, welcome("ada@example.com"), tasks.Timeout(time.Second))
	b.waitState(t, r, asynq.TaskStateCompleted)
	if n := copies(b.smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

// kill -9 in mid-run, again and again: everybody gets their message.
func TestWorker_KilledInMidRun(t *testing.T) {
	t.Parallel()
	redis, smtp := testenv.Redis(t), testenv.SMTP(t)
	b := setup(t, quick(), redis, smtp) // not started: producer and inspector only
	const jobs, kills = 1500, 3
	for i := range jobs {
		b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)))
	}
	for k := range kills {
		p := spawn(t, redis, smtp)
		eventually(t, "the worker has sent some", func() bool { return smtp.Count() > (k+1)*200 })
		p.kill(t)
	}
	spawn(t, redis, smtp)
	eventually(t, "all are delivered", func() bool { return len(copies(smtp)) == jobs }, func() string {
		return fmt.Sprintf("%d of %d", len(copies(smtp)), jobs)
	})
	eventually(t, "nothing is left", func() bool { return b.left(t) == 0 })
	// Only what was between the dot and its record when the process died may
	// have a second copy: one for each slot and kill at the very most.
	if extra := smtp.Count() - jobs; extra > kills*10 {
		t.Errorf("%d extra copies after %d kills", extra, kills)
	} else {
		t.Logf("%d jobs, %d kills, %d extra copies", jobs, kills, extra)
	}
}

// left counts the jobs that still have to run.
func (b *bed) left(t *testing.T) int {
	t.Helper()
	n := 0
	for q := range b.worker.cfg.Queues {
		info, err := b.inspector.GetQueueInfo(q)
		if errors.Is(err, asynq.ErrQueueNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		n += info.Pending + info.Active + info.Scheduled + info.Retry
	}
	return n
}

// A job that ends the process is out of the way after the third time, and takes
// nobody with it.
func TestWorker_PoisonIsQuarantined(t *testing.T) {
	t.Parallel()
	redis, smtp := testenv.Redis(t), testenv.SMTP(t)
	b := setup(t, quick(), redis, smtp)
	poison := b.send(t, tasks.Email{To: "poison@example.com", Subject: crashSubject, Body: "x"}, tasks.MaxRetry(1))
	const neighbours = 9
	for i := range neighbours {
		b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)), tasks.MaxRetry(1))
	}
	deaths := 0
	for {
		p := spawn(t, redis, smtp)
		died := make(chan error, 1)
		go func() { died <- p.wait() }()
		var state asynq.TaskState
		eventually(t, "the process dies or the job is archived", func() bool {
			info, err := b.inspector.GetTaskInfo(poison.Queue, poison.ID)
			if err == nil {
				state = info.State
			}
			return len(died) > 0 || state == asynq.TaskStateArchived
		})
		if state == asynq.TaskStateArchived {
			break
		}
		if deaths++; deaths > ledger.MaxCrashes {
			t.Fatalf("the process died %d times", deaths)
		}
	}
	if deaths != ledger.MaxCrashes {
		t.Errorf("quarantined after %d deaths, want %d", deaths, ledger.MaxCrashes)
	}
	if info := b.info(t, poison); !strings.HasPrefix(info.LastErr, reasonPoison) {
		t.Errorf("archived with %q", info.LastErr)
	}
	eventually(t, "the neighbours are delivered", func() bool { return len(copies(smtp)) == neighbours })
	for to, n := range copies(smtp) {
		if n != 1 {
			t.Errorf("%s got %d copies", to, n)
		}
	}
}

// SIGTERM in mid-run, over and over: nothing lost, nothing twice.
func TestWorker_RollingRestart(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	smtp := testenv.SMTP(t, testenv.Delay(20*time.Millisecond, testenv.StageVerdict))
	b := setup(t, quick(), redis, smtp)
	const jobs, restarts = 1000, 5
	for i := range jobs {
		b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)))
	}
	for k := range restarts {
		p := spawn(t, redis, smtp)
		eventually(t, "the worker has sent some", func() bool { return smtp.Count() > (k+1)*100 })
		p.signal(t, syscall.SIGTERM)
		if err := p.wait(); err != nil {
			t.Fatalf("the worker did not end well: %v", err)
		}
	}
	spawn(t, redis, smtp)
	eventually(t, "all are delivered", func() bool { return len(copies(smtp)) == jobs && b.left(t) == 0 })
	for to, n := range copies(smtp) {
		if n != 1 {
			t.Errorf("%s got %d copies", to, n)
		}
	}
}

// A job that cannot finish in time is handed back before the process ends, at no
// cost, and goes out once.
func TestWorker_ShutdownHandsBack(t *testing.T) {
	t.Parallel()
	redis, smtp := testenv.Redis(t), testenv.SMTP(t, testenv.Hang(testenv.StageRcpt).Times(1))
	cfg := quick()
	cfg.ShutdownTimeout = 3 * time.Second
	first := setup(t, cfg, redis, smtp)
	first.start(t)
	r := first.send(t, welcome("ada@example.com"))
	eventually(t, "the message hangs", func() bool {
		return strings.Contains(strings.Join(smtp.Commands(), "\n"), "RCPT")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := first.worker.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	second := setup(t, cfg, redis, smtp)
	second.start(t)
	info := second.waitState(t, r, asynq.TaskStateCompleted)
	if info.Retried != 0 {
		t.Errorf("charged %d attempts", info.Retried)
	}
	if n := copies(smtp)["ada@example.com"]; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

// A frozen process loses its jobs to another and sends none of them when it wakes.
func TestWorker_FrozenAndThawed(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t)
	smtp := testenv.SMTP(t, testenv.Delay(300*time.Millisecond, testenv.StageData))
	b := setup(t, quick(), redis, smtp)
	frozen := spawn(t, redis, smtp)
	for i := range 10 {
		b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)))
	}
	eventually(t, "the first worker is at work", func() bool {
		return strings.Contains(strings.Join(smtp.Commands(), "\n"), "RCPT")
	})
	frozen.signal(t, syscall.SIGSTOP)
	other := spawn(t, redis, smtp)
	eventually(t, "the other worker has delivered all", func() bool { return len(copies(smtp)) == 10 && b.left(t) == 0 })
	frozen.signal(t, syscall.SIGCONT)
	frozen.signal(t, syscall.SIGTERM)
	if err := frozen.wait(); err != nil {
		t.Errorf("the thawed worker did not end well: %v", err)
	}
	other.signal(t, syscall.SIGTERM)
	if err := other.wait(); err != nil {
		t.Errorf("the other worker did not end well: %v", err)
	}
	for to, n := range copies(smtp) {
		if n != 1 {
			t.Errorf("%s got %d copies", to, n)
		}
	}
}

// Redis goes away for ten seconds in mid-run and comes back with what it had
// acknowledged: all delivered, none twice.
func TestWorker_RedisAwayInMidRun(t *testing.T) {
	t.Parallel()
	redis := testenv.Redis(t, testenv.AOF())
	smtp := testenv.SMTP(t, testenv.Delay(10*time.Millisecond, testenv.StageVerdict))
	b := setup(t, quick(), redis, smtp)
	const jobs = 1000
	for i := range jobs {
		b.send(t, welcome(fmt.Sprintf("p%d@example.com", i)))
	}
	b.start(t)
	eventually(t, "some are sent", func() bool { return smtp.Count() > 200 })
	redis.Kill()
	time.Sleep(10 * time.Second)
	redis.Restart()
	eventually(t, "all are delivered", func() bool { return len(copies(smtp)) == jobs && b.left(t) == 0 }, func() string {
		return fmt.Sprintf("%d of %d delivered", len(copies(smtp)), jobs)
	})
	for to, n := range copies(smtp) {
		if n != 1 {
			t.Errorf("%s got %d copies", to, n)
		}
	}
}
