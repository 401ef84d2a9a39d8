package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/ledger"
	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/internal/wake"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/tasks"
)

const (
	// fleetSize is the number of worker processes, one of which dies at a time.
	fleetSize = 3

	// stalled is how long nothing may happen before the test gives up: three times
	// the lease that a job waits for which was fetched and not begun.
	stalled = 90 * time.Second

	// countedNames holds the name of each counting worker by its process id.
	countedNames = "test:workers"
)

// countedRuns holds each start of a job of queue, as "id process number".
func countedRuns(queue string) string { return "test:runs:" + queue }

// countingWorker is a worker process whose handler writes down that it started,
// works for up to 10 ms, and tells the ledger that the message is sent.
func countingWorker() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(4) // the test process is gone
	}()
	cfg, err := rediskit.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	rdb, err := rediskit.Open(ctx, cfg)
	if err != nil {
		return err
	}
	mail, err := newMailer("smtp://127.0.0.1:1") // never asked to send
	if err != nil {
		return err
	}
	w, err := New(quick(), rdb, nil, mail, zerolog.New(os.Stderr).Level(zerolog.WarnLevel).With().Timestamp().Logger())
	if err != nil {
		return err
	}
	runs, err := rdb.Dedicated("runs").AutoPipeline()
	if err != nil {
		return err
	}
	var number atomic.Int64
	w.handlers[tasks.TypeEmail] = func(ctx context.Context, j *job, a *ledger.Attempt) *failure {
		// A set, so that a command which go-redis repeats is not a second run.
		run := fmt.Sprintf("%s %s %d", j.id, w.name[:8], number.Add(1))
		if err := runs.SAdd(ctx, countedRuns(j.queue), run).Err(); err != nil && ctx.Err() == nil {
			a.Release(ctx)
			return fail(OutcomeRetry, reasonInternal, err)
		}
		select {
		case <-time.After(rand.N(10 * time.Millisecond)):
		case <-ctx.Done():
			a.Release(ctx)
			return ended(ctx)
		}
		a.Sent(ctx, "test", "")
		return nil
	}
	if err := rdb.HSet(ctx, countedNames, os.Getpid(), w.name).Err(); err != nil {
		return err
	}
	if err := w.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(w.Stop(stopping), rdb.Close())
}

// fleet is a number of counting workers in processes of their own.
type fleet struct {
	redis  *testenv.RedisServer
	rdb    *rediskit.Client
	queues []string
	log    string
	alive  []*process
}

func newFleet(t *testing.T, rdb *rediskit.Client, server *testenv.RedisServer) *fleet {
	t.Helper()
	f := &fleet{redis: server, rdb: rdb, log: filepath.Join(t.TempDir(), "workers.log")}
	f.queues = slices.Sorted(maps.Keys(quick().Queues))
	t.Cleanup(func() {
		for _, p := range f.alive {
			_ = p.cmd.Process.Kill()
			_ = p.wait()
		}
		if t.Failed() {
			text, _ := os.ReadFile(f.log)
			t.Logf("log of the workers:\n%s", tail(string(text), 80))
		}
	})
	for range fleetSize {
		f.start(t)
	}
	return f
}

func (f *fleet) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(f.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(os.Args[0]), log: f.log}
	p.cmd.Env = append(os.Environ(), childVariable+"="+childCounts, "REDIS_URL="+f.redis.URL())
	p.cmd.Stderr = log
	// It ends with the test process, however that ends.
	if _, err := p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait = sync.OnceValue(p.cmd.Wait)
	f.alive = append(f.alive, p)
}

// killBusy picks a process at random, freezes it, looks at what it runs, and
// kills it. It returns the jobs that were running, or none if the process was
// let go again: because it ran nothing, or because its death would be the third
// for a job, which the ledger would then rightly take for the cause.
func (f *fleet) killBusy(t *testing.T, random *rand.Rand) (running []string) {
	t.Helper()
	i := random.IntN(len(f.alive))
	p := f.alive[i]
	name, err := f.rdb.HGet(t.Context(), countedNames, strconv.Itoa(p.cmd.Process.Pid)).Result()
	if errors.Is(err, redis.Nil) {
		return nil // it has not started yet
	}
	if err != nil {
		t.Fatal(err)
	}
	p.freeze(t)
	running, spare := f.runningIn(t, name)
	if spare || len(running) == 0 {
		p.signal(t, syscall.SIGCONT)
		return nil
	}
	p.kill(t)
	f.alive = slices.Delete(f.alive, i, i+1)
	f.start(t)
	return running
}

// freeze stops the process and returns when it has stopped.
func (p *process) freeze(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			t.Fatal(err)
		case !status.Stopped():
			t.Fatalf("a worker ended by itself: exit status %d, signal %v", status.ExitStatus(), status.Signal())
		default:
			return
		}
	}
}

// runningIn returns the jobs that the worker called name has begun and not
// ended, and whether one of them must be spared another death.
func (f *fleet) runningIn(t *testing.T, name string) (ids []string, spare bool) {
	t.Helper()
	var active []*redis.StringSliceCmd
	f.pipelined(t, func(p redis.Pipeliner) {
		for _, q := range f.queues {
			active = append(active, p.LRange(t.Context(), "asynq:{"+q+"}:active", 0, -1))
		}
	})
	records := map[string]*redis.SliceCmd{}
	f.pipelined(t, func(p redis.Pipeliner) {
		for _, list := range active {
			for _, id := range list.Val() {
				records[id] = p.HMGet(t.Context(), ledger.JobKey(id), ledger.OwnerField, "starts")
			}
		}
	})
	for id, record := range records {
		if record.Val()[0] != name {
			continue
		}
		ids = append(ids, id)
		spare = spare || record.Val()[1] == strconv.Itoa(ledger.MaxCrashes)
	}
	return ids, spare
}

func (f *fleet) pipelined(t *testing.T, fill func(p redis.Pipeliner)) {
	t.Helper()
	if _, err := f.rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		fill(p)
		return nil
	}); err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
}

// sum adds up what a command says of each queue.
func (f *fleet) sum(t *testing.T, ask func(p redis.Pipeliner, queue string) *redis.IntCmd) (n int) {
	t.Helper()
	var answers []*redis.IntCmd
	f.pipelined(t, func(p redis.Pipeliner) {
		for _, q := range f.queues {
			answers = append(answers, ask(p, q))
		}
	})
	for _, c := range answers {
		n += int(c.Val())
	}
	return n
}

// zcard counts the jobs in one of asynq's sorted sets.
func (f *fleet) zcard(t *testing.T, state string) int {
	t.Helper()
	return f.sum(t, func(p redis.Pipeliner, q string) *redis.IntCmd { return p.ZCard(t.Context(), "asynq:{"+q+"}:"+state) })
}

// started counts the runs.
func (f *fleet) started(t *testing.T) int {
	t.Helper()
	return f.sum(t, func(p redis.Pipeliner, q string) *redis.IntCmd { return p.SCard(t.Context(), countedRuns(q)) })
}

// left counts what is in each of asynq's states but completed.
func (f *fleet) left(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, list := range []string{"pending", "active"} {
		n[list] = f.sum(t, func(p redis.Pipeliner, q string) *redis.IntCmd { return p.LLen(t.Context(), "asynq:{"+q+"}:"+list) })
	}
	for _, set := range []string{"lease", "scheduled", "retry", "archived"} {
		n[set] = f.zcard(t, set)
	}
	n["due"] = f.sum(t, func(p redis.Pipeliner, q string) *redis.IntCmd { return p.ZCard(t.Context(), wake.DueKey(q)) })
	maps.DeleteFunc(n, func(_ string, count int) bool { return count == 0 })
	return n
}

// advance polls until ok, for as long as the workers get on with their work. It
// is false if they do not.
func (f *fleet) advance(t *testing.T, what string, ok func() bool) bool {
	t.Helper()
	last, since := -1, time.Now()
	for !ok() {
		if now := f.counter(t, "processed") + f.started(t); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > stalled {
			t.Errorf("nothing happened for %v, waiting until %s; %d runs, left: %v", stalled, what, f.started(t), f.left(t))
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// enqueue gives the queues jobs in turn. Every 50th is delayed; those of one
// queue are kept when they are done. It returns the number of these.
func (f *fleet) enqueue(t *testing.T, jobs int, random *rand.Rand) (kept int) {
	t.Helper()
	producer, err := tasks.NewProducer(f.rdb, tasks.FromService("worker-test"))
	if err != nil {
		t.Fatal(err)
	}
	items := func(yield func(tasks.Item) bool) {
		for i := range jobs {
			item := tasks.Item{Email: tasks.Email{To: "ada@example.com", Subject: "x", Body: "x"}}
			switch i % 3 {
			case 0:
				item.Options = []tasks.Option{tasks.Priority(tasks.Critical), tasks.Retention(0)}
			case 1:
				item.Options = []tasks.Option{tasks.Priority(tasks.Default), tasks.Retention(0)}
			case 2:
				item.Options = []tasks.Option{tasks.Priority(tasks.Bulk), tasks.Retention(time.Hour)}
				kept++
			}
			if i%50 == 0 {
				item.Options = append(item.Options, tasks.Delay(time.Duration(random.Int64N(int64(20*time.Second)))))
			}
			if !yield(item) {
				return
			}
		}
	}
	for i, r := range producer.EnqueueMany(t.Context(), items) {
		if r.Err != nil {
			t.Fatalf("job %d: %v", i, r.Err)
		}
	}
	return kept
}

// runs counts the runs of each job.
func (f *fleet) runs(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, q := range f.queues {
		// SSCAN may name a member twice.
		seen := map[string]bool{}
		scan := f.rdb.SScan(t.Context(), countedRuns(q), 0, "", 5000).Iterator()
		for scan.Next(t.Context()) {
			if run := scan.Val(); !seen[run] {
				seen[run] = true
				id, _, _ := strings.Cut(run, " ")
				n[id]++
			}
		}
		if err := scan.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// counter adds up one of asynq's counters.
func (f *fleet) counter(t *testing.T, name string) (n int) {
	t.Helper()
	for _, q := range f.queues {
		v, err := f.rdb.Get(t.Context(), "asynq:{"+q+"}:"+name).Int()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		n += v
	}
	return n
}

// hashes counts the jobs that Redis still holds, in whatever state.
func (f *fleet) hashes(t *testing.T) int {
	t.Helper()
	found := map[string]bool{}
	scan := f.rdb.Scan(t.Context(), 0, "asynq:{*}:t:*", 5000).Iterator()
	for scan.Next(t.Context()) {
		found[scan.Val()] = true
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// kill -9, a hundred times: no job is lost, and none runs again but those that
// were running in a process as it was killed.
func TestWorker_KilledAHundredTimes(t *testing.T) {
	// Not parallel: it needs both cores, and the other tests need their clocks.
	jobs, kills := 200_000, 100
	if testing.Short() {
		jobs, kills = jobs/10, kills/10
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	server := testenv.Redis(t)
	f := newFleet(t, server.Open(t), server)

	begin := time.Now()
	kept := f.enqueue(t, jobs, random)
	enqueued := time.Since(begin)

	// By progress and not by the clock, so that however fast the machine is, all
	// kills fall into the run.
	points := make([]int, kills)
	for i := range points {
		points[i] = random.IntN(jobs * 95 / 100)
	}
	slices.Sort(points)
	died := map[string]int{} // by job: the deaths of its process while it ran
	running, calledOff := 0, 0
	for _, point := range points {
		if !f.advance(t, fmt.Sprintf("%d jobs have started", point), func() bool { return f.started(t) >= point }) ||
			!f.advance(t, "a busy process is killed", func() bool {
				ids := f.killBusy(t, random)
				for _, id := range ids {
					died[id]++
				}
				if running += len(ids); len(ids) == 0 {
					calledOff++
				}
				return len(ids) > 0
			}) {
			break
		}
	}
	killed := time.Since(begin)
	f.advance(t, "the queues are empty", func() bool { return len(f.left(t)) == 0 })
	drained := time.Since(begin)
	for _, p := range f.alive {
		p.signal(t, syscall.SIGTERM)
	}
	for _, p := range f.alive {
		if err := p.wait(); err != nil {
			t.Errorf("a worker did not end well: %v", err)
		}
	}

	runs, extra, unexplained := f.runs(t), 0, 0
	for id, n := range runs {
		extra += n - 1
		if n-1 > died[id] {
			unexplained++
			if unexplained <= 20 {
				t.Logf("job %s ran %d times; its process was killed %d times while it ran", id, n, died[id])
			}
		}
	}
	if unexplained > 0 {
		t.Errorf("%d jobs ran again without having been killed", unexplained)
	}
	if lost := jobs - len(runs); lost != 0 {
		t.Errorf("%d of %d jobs never ran", lost, jobs)
	}
	if left := f.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if n := f.hashes(t); n != kept {
		t.Errorf("Redis holds %d jobs; %d are to be kept", n, kept)
	}
	if n := f.zcard(t, "completed"); n != kept {
		t.Errorf("%d jobs are kept as completed, want %d", n, kept)
	}
	if n := f.counter(t, "processed"); n != jobs {
		t.Errorf("asynq counted %d jobs as processed, want %d", n, jobs)
	}
	// A death charged to its job is a failed attempt.
	if n := f.counter(t, "failed"); n != 0 {
		t.Errorf("asynq counted %d attempts as failed", n)
	}
	text, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte("panicked")) || bytes.Contains(text, []byte("DATA RACE")) {
		t.Error("a worker panicked or raced: see its log")
	}
	t.Logf("%d jobs, %d kills of busy processes (%d called off), %d jobs running at them, %d extra runs; enqueued in %.1f s, last kill after %.1f s, empty after %.1f s",
		jobs, kills, calledOff, running, extra, enqueued.Seconds(), killed.Seconds(), drained.Seconds())
}
