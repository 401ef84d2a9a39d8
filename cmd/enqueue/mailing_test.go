package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/tasks"
)

// newTestMailing returns a mailing of the CSV in r that accepts everything.
func newTestMailing(tb testing.TB, r io.Reader) *mailing {
	tb.Helper()
	src, err := newCSVSource(newScanner(r), emailLayout, "")
	if err != nil {
		tb.Fatal(err)
	}
	return &mailing{
		src:      src,
		item:     emailItem(tasks.Email{Template: "welcome"}),
		check:    func(map[string]any) error { return nil },
		key:      func(r record) string { return foldKey("test", fmt.Sprint(r.line)) },
		options:  func(time.Time) []tasks.Option { return nil },
		enqueue:  dryRun,
		retryFor: retryFor,
		rejects:  &rejects{path: filepath.Join(tb.TempDir(), "rejected"), header: src.header()},
		reject:   func(int, problem) {},
		notify:   func(string) {},
	}
}

// rows is an endless-enough CSV that is never in memory: row n is made when it is read.
type rows struct {
	n, count int
	format   string // of a row, with its number
	rest     []byte
}

func newRows(count int, header, format string) *rows {
	return &rows{count: count, format: format, rest: []byte(header)}
}

func (r *rows) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.n == r.count {
			return 0, io.EOF
		}
		r.n++
		r.rest = fmt.Appendf(r.rest, r.format, r.n)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

const goodRow = "patient%07d@example.com,Ada\n"

// fake stands in for the producer: fail decides about each item by its position in the whole run.
type fake struct {
	calls int
	fail  func(call int, e tasks.Email) error
	sent  map[string]int // jobs by recipient
}

func (f *fake) enqueue(_ context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
	return func(yield func(int, tasks.Result) bool) {
		i := 0
		for item := range items {
			f.calls++
			var err error
			if f.fail != nil {
				err = f.fail(f.calls, item.Email)
			}
			if err == nil {
				f.sent[item.Email.To]++
			}
			if !yield(i, tasks.Result{Receipt: tasks.Receipt{EnqueuedAt: time.Now()}, Err: err}) {
				return
			}
			i++
		}
	}
}

func TestMailing_Run_RetriesWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newTestMailing(t, newRows(3000, "to,name\n", goodRow))
		back := time.Now().Add(10 * time.Second)
		f := &fake{sent: map[string]int{}, fail: func(call int, _ tasks.Email) error {
			if call > 1000 && time.Now().Before(back) {
				return errors.New("connection refused")
			}
			return nil
		}}
		m.enqueue = f.enqueue
		var notes []string
		m.notify = func(text string) { notes = append(notes, text) }

		if err := m.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := (counts{enqueued: 3000}); m.counts != want || len(f.sent) != 3000 {
			t.Errorf("counts = %+v, recipients %d, want %+v", m.counts, len(f.sent), want)
		}
		if len(notes) != 1 || notes[0] != "Redis does not take jobs: connection refused: trying again for up to 30s" {
			t.Errorf("notes = %q, want one", notes)
		}
		if waited := time.Since(back); waited > retryMaxWait {
			t.Errorf("went on %v after Redis was back", waited)
		}
	})
}

func TestMailing_Run_GivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newTestMailing(t, newRows(3000, "to,name\n", goodRow))
		f := &fake{sent: map[string]int{}, fail: func(call int, _ tasks.Email) error {
			if call > 1000 {
				return errors.New("connection refused")
			}
			return nil
		}}
		m.enqueue = f.enqueue
		started := time.Now()
		err := m.run(t.Context())
		if err == nil || err.Error() != "connection refused" {
			t.Errorf("error = %v", err)
		}
		if took := time.Since(started); took > retryFor {
			t.Errorf("gave up after %v", took)
		}
		// Row 1001 is on line 1002: the header is the first.
		if m.counts.enqueued != 1000 || m.resume != 1002 {
			t.Errorf("enqueued %d, resume from %d, want 1000 and 1002", m.counts.enqueued, m.resume)
		}
	})
}

func TestMailing_Run_Interrupted(t *testing.T) {
	t.Parallel()
	m := newTestMailing(t, newRows(1_000_000, "to,name\n", goodRow))
	ctx, cancel := context.WithCancelCause(t.Context())
	signal := errors.New("interrupt signal received")
	f := &fake{sent: map[string]int{}, fail: func(call int, _ tasks.Email) error {
		if call == 777 {
			cancel(signal)
		}
		return nil
	}}
	m.enqueue = f.enqueue
	if err := m.run(ctx); !errors.Is(err, signal) {
		t.Errorf("error = %v, want the signal", err)
	}
	// What was handed out is finished, nothing else is begun.
	if m.counts.enqueued != 777 || m.resume != 779 {
		t.Errorf("enqueued %d, resume from %d, want 777 and 779", m.counts.enqueued, m.resume)
	}
}

// A line refused behind the one to resume from must not be in the rejected file: the next run adds it.
func TestMailing_Run_RejectsBelongToOneRun(t *testing.T) {
	t.Parallel()
	input := "to,name\na@example.com,A\nbad\nb@example.com,B\nworse\nc@example.com,C\n"
	path := filepath.Join(t.TempDir(), "rejected")
	ctx, cancel := context.WithCancel(t.Context())

	first := newTestMailing(t, strings.NewReader(input))
	first.rejects.path = path
	first.limiter = rate.NewLimiter(rate.Inf, 100)
	first.enqueue = (&fake{sent: map[string]int{}, fail: func(_ int, e tasks.Email) error {
		if e.To == "b@example.com" {
			cancel()
			return errors.New("connection refused")
		}
		return nil
	}}).enqueue
	if err := first.run(ctx); err == nil {
		t.Fatal("the run went on")
	}
	if err := first.rejects.close(); err != nil {
		t.Fatal(err)
	}
	if first.resume != 4 || first.counts.rejected != 1 {
		t.Errorf("resume from %d, rejected %d, want 4 and 1", first.resume, first.counts.rejected)
	}

	second := newTestMailing(t, strings.NewReader(input))
	second.rejects.path, second.rejects.continued = path, true
	second.from = first.resume
	if err := errors.Join(second.rejects.begin(), second.run(t.Context()), second.rejects.close()); err != nil {
		t.Fatal(err)
	}
	if want := (counts{enqueued: 2, rejected: 1}); second.counts != want {
		t.Errorf("second run: %+v, want %+v", second.counts, want)
	}
	got, err := os.ReadFile(path)
	if want := "to,name\nbad\nworse\n"; err != nil || string(got) != want {
		t.Errorf("rejected = %q, %v, want %q", got, err, want)
	}
}

func TestMailing_Run_RejectedFileFails(t *testing.T) {
	t.Parallel()
	m := newTestMailing(t, strings.NewReader("to,name\na@example.com,A\nbad\nb@example.com,B\n"))
	m.rejects.path = filepath.Join(t.TempDir(), "absent", "rejected")
	err := m.run(t.Context())
	if !errors.Is(err, os.ErrNotExist) || m.resume != 3 {
		t.Errorf("error = %v, resume from %d, want line 3", err, m.resume)
	}
}

func TestMailing_Run_LongLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2*maxRecord) + "\n"
	m := newTestMailing(t, strings.NewReader("to,name\na@example.com,A\n"+long+"b@example.com,B\n"))
	if err := errors.Join(m.run(t.Context()), m.rejects.close()); err != nil {
		t.Fatal(err)
	}
	if want := (counts{enqueued: 2, rejected: 1}); m.counts != want || m.resume != 5 {
		t.Errorf("counts = %+v, resume %d", m.counts, m.resume)
	}
	if got, err := os.ReadFile(m.rejects.path); err != nil || string(got) != "to,name\n"+long {
		t.Errorf("rejected file has %d bytes, %v", len(got), err)
	}
}

func TestMailing_Run_Rate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newTestMailing(t, newRows(1000, "to,name\n", goodRow))
		m.limiter = rate.NewLimiter(100, 10)
		started := time.Now()
		if err := m.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took < 9900*time.Millisecond || took > 10*time.Second {
			t.Errorf("1000 at 100/s took %v", took)
		}
	})
}

// Not parallel: it measures the process's memory.
func TestMailing_Run_ConstantMemory(t *testing.T) { //nolint:paralleltest // see above
	const count = 400_000
	measure := func(format string) (peak uint64, c counts) {
		m := newTestMailing(t, newRows(count, "to,name,clinic\n", format))
		done := 0
		sample := func() {
			if done++; done%(count/10) != 0 {
				return
			}
			runtime.GC()
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			peak = max(peak, s.HeapAlloc)
		}
		m.enqueue = func(_ context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
			return func(yield func(int, tasks.Result) bool) {
				i := 0
				for range items {
					sample()
					if !yield(i, tasks.Result{}) {
						return
					}
					i++
				}
			}
		}
		m.reject = func(int, problem) { sample() }
		if err := errors.Join(m.run(t.Context()), m.rejects.close()); err != nil {
			t.Fatal(err)
		}
		if peak == 0 {
			t.Fatal("memory was never measured")
		}
		return peak, m.counts
	}
	// 64 bytes a row make 25 MB: a run that kept them would show.
	const limit = 20 << 20
	if peak, c := measure("patient%07d@example.com,Ada,\"Riverside Family Health, North\"\n"); peak > limit || c.enqueued != count {
		t.Errorf("good rows: %d enqueued with %d bytes in use, limit %d", c.enqueued, peak, limit)
	}
	if peak, c := measure("patient%07d@example.com,Riverside Family Health, much too short\"\n"); peak > limit || c.rejected != count {
		t.Errorf("bad rows: %d rejected with %d bytes in use, limit %d", c.rejected, peak, limit)
	}
}

// A Redis that dies under a run and comes back loses nothing and doubles nothing; one that stays away
// ends the run at a line from which another run goes on, as exactly.
func TestMailing_Run_RedisDies(t *testing.T) {
	t.Parallel()
	const count = 20_000
	server := testenv.Redis(t, testenv.AOF())
	client := server.Open(t)
	producer, err := tasks.NewProducer(client, tasks.FromService("enqueue"))
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int64
	newRun := func(from int) *mailing {
		m := newTestMailing(t, newRows(count, "to,name\n", goodRow))
		m.from = from
		m.enqueue = func(ctx context.Context, items iter.Seq[tasks.Item]) iter.Seq2[int, tasks.Result] {
			return func(yield func(int, tasks.Result) bool) {
				for i, r := range producer.EnqueueMany(ctx, items) {
					if r.Err == nil {
						accepted.Add(1)
					}
					if !yield(i, r) {
						return
					}
				}
			}
		}
		return m
	}
	// waitFor waits until n rows have been accepted.
	waitFor := func(n int64) {
		for deadline := time.Now().Add(time.Minute); accepted.Load() < n; {
			if time.Now().After(deadline) {
				t.Fatalf("%d rows accepted after a minute", accepted.Load())
			}
			time.Sleep(time.Millisecond) // polling the run
		}
	}

	// The first run survives one restart, and not the second death.
	first := newRun(0)
	var forGood atomic.Bool
	first.notify = func(string) {
		if forGood.Load() {
			first.retryFor = 0
		}
	}
	ended := make(chan error)
	go func() { ended <- first.run(t.Context()) }()
	waitFor(3000)
	server.Kill()
	server.Restart()
	waitFor(8000)
	forGood.Store(true)
	server.Kill()
	if err := <-ended; err == nil {
		t.Fatal("the run ended well without Redis")
	}
	server.Restart()

	second := newRun(first.resume)
	if err := second.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	jobs, err := allJobs(client)
	if err != nil {
		t.Fatal(err)
	}
	if err := onePerRecipient(jobs); err != nil {
		t.Error(err)
	}
	if len(jobs) != count {
		t.Errorf("%d jobs in Redis, want %d", len(jobs), count)
	}
	// Every row is in exactly one of these, but for rows whose answer was lost at the first run's end:
	// they are in Redis and the second run found them there.
	reported := first.counts.enqueued + second.counts.enqueued
	if first.counts.duplicates != 0 || reported > count || reported+second.counts.duplicates < count {
		t.Errorf("first run %+v up to line %d, second run %+v: do not add up to %d", first.counts, first.resume, second.counts, count)
	}
}

// Whatever the input, each of its records is sent or refused, and the rejected file holds exactly the
// refused ones.
func FuzzMailing_Run(f *testing.F) {
	f.Add([]byte("to,name\r\na@example.com,Ada\r\n\"b@example.com\r\nBcc: c@example.com\",Bob\r\n\r\nbad\n"), false)
	f.Add([]byte("to\n\"a@example.com\nb@example.com\n\"c@example.com\"\n"), false)
	f.Add([]byte("{\"to\":\"a@example.com\"}\n{}\n\n{\"to\":\"two@@example.com\"}\n{"), true)
	f.Fuzz(func(t *testing.T, in []byte, lines bool) {
		open := func() (src source, err error) {
			s := newScanner(bytes.NewReader(in))
			if lines {
				return newJSONLSource(s, emailLayout, "")
			}
			return newCSVSource(s, emailLayout, "")
		}
		src, err := open()
		if err != nil {
			return // not a list of recipients at all
		}
		m := newTestMailing(t, strings.NewReader("to\n"))
		m.src, m.rejects.header = src, src.header()
		refused := map[int]bool{}
		m.reject = func(line int, _ problem) { refused[line] = true }
		if err := errors.Join(m.run(t.Context()), m.rejects.close()); err != nil {
			t.Fatal(err)
		}

		again, err := open()
		if err != nil {
			t.Fatal(err)
		}
		total, want := 0, ""
		for ; ; total++ {
			r, err := again.next()
			if err != nil {
				break
			}
			if refused[r.line] {
				want += r.raw
			}
		}
		if want != "" {
			want = src.header() + want
		}
		got, err := os.ReadFile(m.rejects.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if m.counts.total() != total || m.counts.rejected != len(refused) || string(got) != want {
			t.Errorf("%d records, counts %+v, %d refused, rejected file %q, want %q", total, m.counts, len(refused), got, want)
		}
	})
}
