package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestID_ReadsWhatForWrote(t *testing.T) {
	t.Parallel()
	e := Email{V: 1, Subject: "s", Body: "b", Class: "transactional"}
	for _, id := range []int{0, 7, 12_345_678, 123_456_789} {
		text, err := json.Marshal(e.For(id))
		if err != nil {
			t.Fatal(err)
		}
		if got := PayloadID(text); got != id {
			t.Errorf("%s is number %d, want %d", text, got, id)
		}
	}
	if got := PayloadID([]byte(`{"v":1}`)); got != -1 {
		t.Errorf("a payload without a recipient is number %d", got)
	}
}

// conversation drives a process over pipes, as the benchmark does.
type conversation struct {
	t     *testing.T
	in    io.WriteCloser
	lines *bufio.Scanner
}

func converse(t *testing.T, run func(ctx context.Context, in io.Reader, out io.Writer) error) *conversation {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(t.Context(), inR, outW)
		_ = outW.Close()
		done <- err
	}()
	c := &conversation{t, inW, bufio.NewScanner(outR)}
	t.Cleanup(func() {
		_ = inW.Close()
		if err := <-done; err != nil {
			t.Errorf("the process ends with %v", err)
		}
	})
	if !c.lines.Scan() || c.lines.Text() != `"ready"` {
		t.Fatalf("it begins with %q", c.lines.Text())
	}
	return c
}

func (c *conversation) ask(r Request) (a Answer) {
	c.t.Helper()
	line, err := json.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		c.t.Fatal(err)
	}
	if !c.lines.Scan() {
		c.t.Fatalf("no answer to %s", line)
	}
	if err := json.Unmarshal(c.lines.Bytes(), &a); err != nil {
		c.t.Fatal(err)
	}
	return a
}

func TestWork_CountsWhatRan(t *testing.T) {
	t.Parallel()
	var handle func(int)
	stopped := 0
	c := converse(t, func(ctx context.Context, in io.Reader, out io.Writer) error {
		defer func() {
			if stopped != 2 {
				t.Errorf("%d workers were stopped, want 2", stopped)
			}
		}()
		return Work(ctx, Config{Replicas: 2}, in, out, func(_ context.Context, _ Config, h func(int)) (func() error, error) {
			handle = h
			return func() error { stopped++; return nil }, nil
		})
	})
	c.ask(Request{Do: Reset, Base: 100, Jobs: 70, Mode: Stamp})
	before := now()
	var wg sync.WaitGroup
	for id := 100; id < 169; id++ {
		wg.Go(func() { handle(id) })
	}
	wg.Wait()
	if a := c.ask(Request{Do: Count}); a.Done != 69 || a.Running != 0 {
		t.Errorf("%+v, want 69 done", a)
	}
	handle(169)
	if a := c.ask(Request{Do: Wait}); a.First < before || a.Nth < a.First || a.Nth > now() {
		t.Errorf("begin %d, end %d, between %d and now", a.First, a.Nth, before)
	}
	handle(169) // again
	handle(99)  // of the round before
	a := c.ask(Request{Do: Report})
	if a.Done != 72 || a.Twice != 1 || a.Foreign != 1 {
		t.Errorf("%d done, %d twice, %d foreign; want 72, 1, 1", a.Done, a.Twice, a.Foreign)
	}
	if want := append(slices.Repeat([]byte{0xff}, 8), 0x3f, 0, 0, 0, 0, 0, 0, 0); !slices.Equal(a.Seen, want) {
		t.Errorf("seen %x, want 70 bits: %x", a.Seen, want)
	}
	if len(a.At) != 70 || slices.Min(a.At) < before {
		t.Errorf("%d starts from %d on, want 70 from %d on", len(a.At), slices.Min(a.At), before)
	}
	if a := c.ask(Request{Do: "dance"}); a.Error == "" {
		t.Error("it knows how to dance")
	}
}

// worker is a worker whose jobs come from the test.
func worker(t *testing.T) (c *conversation, handle func(id int)) {
	t.Helper()
	c = converse(t, func(ctx context.Context, in io.Reader, out io.Writer) error {
		return Work(ctx, Config{Replicas: 1}, in, out, func(_ context.Context, _ Config, h func(int)) (func() error, error) {
			handle = h
			return func() error { return nil }, nil
		})
	})
	return c, handle
}

func TestWork_MarksFromNowOn(t *testing.T) {
	t.Parallel()
	c, handle := worker(t)
	c.ask(Request{Do: Reset, Jobs: 10})
	handle(0)
	handle(1)
	c.ask(Request{Do: Mark, Jobs: 3})
	marked := now()
	for id := range 3 {
		handle(2 + id)
	}
	if a := c.ask(Request{Do: Wait}); a.First < marked || a.Nth < a.First {
		t.Errorf("from %d to %d, marked at %d", a.First, a.Nth, marked)
	}
	if a := c.ask(Request{Do: Report}); a.Done != 5 || a.Twice != 0 {
		t.Errorf("%+v, want 5 done", a)
	}
}

func TestWork_BlocksUntilReleased(t *testing.T) {
	t.Parallel()
	c, handle := worker(t)
	c.ask(Request{Do: Reset, Jobs: 3, Mode: Block})
	var wg sync.WaitGroup
	for id := range 3 {
		wg.Go(func() { handle(id) })
	}
	for c.ask(Request{Do: Count}).Running < 3 {
		time.Sleep(time.Millisecond)
	}
	c.ask(Request{Do: Release})
	c.ask(Request{Do: Wait})
	wg.Wait()
	if a := c.ask(Request{Do: Count}); a.Done != 3 || a.Running != 0 {
		t.Errorf("%+v, want 3 done", a)
	}
}

// shelf is a producer in memory.
type shelf struct {
	mu     sync.Mutex
	ids    []int
	delays []time.Duration
	bulks  int
}

var errFull = errors.New("the shelf is full")

func (s *shelf) Add(_ context.Context, id int, delay time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ids) == 1000 {
		return errFull
	}
	s.ids = append(s.ids, id)
	s.delays = append(s.delays, delay)
	return nil
}

func (s *shelf) Bulk(ctx context.Context, base, jobs int) error {
	s.bulks++
	for id := base; id < base+jobs; id++ {
		if err := s.Add(ctx, id, 0); err != nil {
			return err
		}
	}
	return nil
}

func (*shelf) Pause(context.Context) error         { return nil }
func (*shelf) Resume(context.Context) error        { return nil }
func (s *shelf) Left(context.Context) (int, error) { return len(s.ids), nil }
func (s *shelf) Clear(context.Context) error {
	s.ids, s.delays = nil, nil
	return nil
}
func (s *shelf) Size(context.Context) (int64, error) { return int64(len(s.ids)), nil }

func TestProduce_EnqueuesEachOnce(t *testing.T) {
	t.Parallel()
	s := &shelf{}
	c := converse(t, func(ctx context.Context, in io.Reader, out io.Writer) error { return Produce(ctx, s, in, out) })
	for _, how := range []string{One, Many, Bulk} {
		a := c.ask(Request{Do: Enqueue, How: how, Base: 5, Jobs: 300})
		if a.Error != "" || a.Begin == 0 || a.End < a.Begin {
			t.Errorf("%s: %+v", how, a)
		}
		slices.Sort(s.ids)
		if len(s.ids) != 300 || s.ids[0] != 5 || s.ids[299] != 304 || len(slices.Compact(s.ids)) != 300 {
			t.Errorf("%s: %d jobs, want 5 to 304 once each", how, len(s.ids))
		}
		if a := c.ask(Request{Do: Left}); a.Left != 300 {
			t.Errorf("%s: %d left", how, a.Left)
		}
		c.ask(Request{Do: Clear})
	}
	if s.bulks != 1 {
		t.Errorf("%d calls were in bulk", s.bulks)
	}
	if a := c.ask(Request{Do: Enqueue, How: Many, Jobs: 1001}); !strings.Contains(a.Error, errFull.Error()) {
		t.Errorf("a job that was refused goes unsaid: %+v", a)
	}
}

func TestProduce_DelaysAreNotWholeSeconds(t *testing.T) {
	t.Parallel()
	s := &shelf{}
	c := converse(t, func(ctx context.Context, in io.Reader, out io.Writer) error { return Produce(ctx, s, in, out) })
	before := now()
	a := c.ask(Request{Do: Delay, Jobs: 200, Least: 999, Most: 1002})
	if len(a.At) != 200 || len(s.delays) != 200 {
		t.Fatalf("%d times for %d jobs, want 200", len(a.At), len(s.delays))
	}
	for i, d := range s.delays {
		if d < 999*time.Millisecond || d >= 1002*time.Millisecond || d%time.Second == 0 {
			t.Errorf("a delay of %s, want 999 to 1,001 ms and not 1 s", d)
		}
		if due := a.At[i] - d.Microseconds(); due < before || due > now() {
			t.Errorf("job %d was due %d µs after it was enqueued, want %s", i, a.At[i]-before, d)
		}
	}
}
