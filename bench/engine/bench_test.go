package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/bench/internal/report"
	"github.com/medicalink/postroom/tasks"
)

// All systems carry the same bytes: what tasks.Email encodes to is what the others are given.
func TestBenchEmail_IsOurPayload(t *testing.T) {
	t.Parallel()
	e := benchEmail().For(12_345)
	theirs, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	email := postroomProducer{config: peer.Config{Email: benchEmail()}}.email(12_345)
	email.V = tasks.Version // the producer sets it
	ours, err := json.Marshal(email)
	if err != nil {
		t.Fatal(err)
	}
	if string(ours) != string(theirs) || len(ours) != payloadBytes {
		t.Errorf("ours has %d bytes and theirs %d, want %d of each and no difference:\n%s\n%s", len(ours), len(theirs), payloadBytes, ours, theirs)
	}
	if err := email.Validate(); err != nil {
		t.Errorf("the producer would refuse it: %v", err)
	}
	if id := peer.PayloadID(ours); id != 12_345 {
		t.Errorf("the handler reads number %d", id)
	}
}

func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	// Ten jobs, in two words of bytes as the peers send them.
	bits := func(low, high byte) []byte { return []byte{low, high, 0, 0, 0, 0, 0, 0} }
	for _, tt := range []struct {
		name    string
		answers []peer.Answer
		wrong   string
	}{
		{"one worker", []peer.Answer{{Done: 10, First: 7, Seen: bits(0xff, 0x03)}}, ""},
		{"two workers", []peer.Answer{{Done: 4, First: 9, Seen: bits(0x0f, 0)}, {Done: 6, First: 7, Seen: bits(0xf0, 0x03)}}, ""},
		{"a worker without jobs", []peer.Answer{{Done: 10, First: 7, Seen: bits(0xff, 0x03)}, {Seen: bits(0, 0)}}, ""},
		{"one lost", []peer.Answer{{Done: 9, First: 7, Seen: bits(0xff, 0x01)}}, "9 ran"},
		{"one twice in a worker", []peer.Answer{{Done: 11, First: 7, Twice: 1, Seen: bits(0xff, 0x03)}}, "1 of them twice"},
		{"one in both workers", []peer.Answer{{Done: 5, First: 7, Seen: bits(0x1f, 0)}, {Done: 6, First: 7, Seen: bits(0xf0, 0x03)}}, "1 of them twice"},
		{"one lost and one in both workers", []peer.Answer{{Done: 5, First: 7, Seen: bits(0x1f, 0)}, {Done: 5, First: 7, Seen: bits(0xf0, 0x01)}}, "9 ran, 1 of them twice"},
		{"one of another round", []peer.Answer{{Done: 11, First: 7, Foreign: 1, Seen: bits(0xff, 0x03)}}, "1 runs were of other rounds"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			first, _, err := exactlyOnce(tt.answers, 10)
			switch {
			case tt.wrong == "" && (err != nil || first != 7):
				t.Errorf("first %d (%v), want 7", first, err)
			case tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)):
				t.Errorf("%v, want an error with %q", err, tt.wrong)
			}
		})
	}
}

func TestLateness_CountsWhatStartedBeforeItsTime(t *testing.T) {
	t.Parallel()
	late, early := lateness([]int64{1_000_000, 2_000_000, 3_000_000}, []int64{1_002_500, 1_999_500, 2_900_000})
	if want := []float64{2.5, -0.5, -100}; !slices.Equal(late, want) || early != 1 {
		t.Errorf("late %v, %d early; want %v and 1: half a millisecond is within the tolerance", late, early, want)
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line, from string
		ok         bool
	}{
		{"+1339518083.107412 [0 127.0.0.1:60866] \"keys\" \"*\"\r\n", "127.0.0.1:60866", true},
		{"+1339518083.107412 [2 lua] \"get\" \"[0 no]\"\r\n", "lua", true},
		{"+1339518083.107412 [0 unix:/tmp/redis.sock] \"ping\"\r\n", "unix:/tmp/redis.sock", true},
		{"+OK\r\n", "", false},
	} {
		if from, ok := origin(tt.line); from != tt.from || ok != tt.ok {
			t.Errorf("%q is from %q (%v), want %q (%v)", tt.line, from, ok, tt.from, tt.ok)
		}
	}
}

func TestInfoField(t *testing.T) {
	t.Parallel()
	text := "# Memory\r\nused_memory_rss:99\r\nused_memory:1234\r\n"
	if n, err := infoField(text, "used_memory"); n != 1234 || err != nil {
		t.Errorf("%d (%v), want 1234", n, err)
	}
	if _, err := infoField(text, "used"); err == nil {
		t.Error("a field that is not there is found")
	}
}

func TestSystem_SizeFollowsTheSpeed(t *testing.T) {
	t.Parallel()
	s := &session{system: &system{jobs: map[string]int{}}, bench: &bench{options: options{span: 500 * time.Millisecond}}}
	if got := s.size("row"); got != firstJobs {
		t.Errorf("at first %d, want %d", got, firstJobs)
	}
	for speed, want := range map[float64]int{100: fewestJobs, 41_250: 20_600, 1e9: mostJobs} {
		s.resize("row", speed)
		if got := s.size("row"); got != want {
			t.Errorf("at %.0f/s %d jobs in half a second, want %d", speed, got, want)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	all := []string{"a", "b", "c"}
	if got, err := choose("only", "", all); err != nil || !slices.Equal(got, all) {
		t.Errorf("nothing chosen gives %v (%v), want all", got, err)
	}
	if got, err := choose("only", "c,a", all); err != nil || !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("c and a give %v (%v), want them in our order", got, err)
	}
	if _, err := choose("only", "a,d", all); err == nil || !strings.Contains(err.Error(), `"d"`) {
		t.Errorf("an unknown name gives %v", err)
	}
}

func TestShare_IsRoundedUp(t *testing.T) {
	t.Parallel()
	c := peer.Config{Concurrency: 100, Queues: make([]string, 6)}
	if got := c.Share(); got != 17 {
		t.Errorf("100 over 6 queues is %d each, want 17", got)
	}
}

// sample has figures of every kind: ours is twice as good throughout.
func sample() *bench {
	b := &bench{options: options{rounds: 2, backlog: 1_000_000}, results: results{}, contenders: []*system{{name: ours}, {name: bullmq}}}
	row := processingRow(1, 100)
	for round := range 2 {
		v := float64(1000 * (round + 1))
		b.results.add(processing, row, ours, rate, 2*v)
		b.results.add(processing, row, bullmq, rate, v)
		b.results.add(processing, row, ours, totalCPU, v)
		b.results.add(processing, row, bullmq, totalCPU, 2*v)
		for system, ms := range map[string]float64{ours: 1, bullmq: 2} {
			b.results.add(pickup, "", system, p99, ms*v)
			for n := range 100 {
				b.results.add(pickup, "", system, samples, ms*float64(n+1+100*round))
			}
		}
	}
	return b
}

func TestBench_Factor(t *testing.T) {
	t.Parallel()
	b := sample()
	row := processingRow(1, 100)
	for _, c := range []struct {
		measure, row string
		column
	}{{processing, row, column{rate, whole, more}}, {processing, row, column{totalCPU, tenths, less}}, {pickup, "", column{p99, decimals, less}}} {
		if got, ok := b.factor(c.measure, c.row, bullmq, c.column); !ok || got != 2 {
			t.Errorf("%s: ours is %v times better (%v), want 2", c.name, got, ok)
		}
	}
	if got, ok := b.factor(processing, row, river, column{rate, whole, more}); ok {
		t.Errorf("what was not measured is %v times worse", got)
	}
}

// The quantiles of a latency are those of all samples, whatever the rounds had.
func TestBench_FigurePoolsSamples(t *testing.T) {
	t.Parallel()
	s, ok := sample().figure(pickup, "", ours, p99)
	if want := (report.Spread{Median: 198, Min: 1000, Max: 2000}); !ok || s != want {
		t.Errorf("%+v (%v), want %+v", s, ok, want)
	}
}

func TestBench_Cell(t *testing.T) {
	t.Parallel()
	b, row, c := sample(), processingRow(1, 100), column{rate, whole, more}
	for system, want := range map[string]string{
		ours:   "**3,000** (2,000 – 4,000)",
		bullmq: "1,500 (1,000 – 2,000) · **2.0 ×**",
		river:  "–",
	} {
		if got := b.cell(processing, row, system, c); got != want {
			t.Errorf("%s: %q, want %q", system, got, want)
		}
	}
}

func TestBench_Goals(t *testing.T) {
	t.Parallel()
	b, row := sample(), processingRow(1, 100)
	for _, tt := range []struct {
		got, want goal
	}{
		{b.times("n", processing, row, bullmq, column{rate, whole, more}, 2), goal{"n", "≥ 2 × bullmq", "2.0 ×", "yes"}},
		{b.times("n", processing, row, bullmq, column{rate, whole, more}, 2.5), goal{"n", "≥ 2.5 × bullmq", "2.0 ×", "no"}},
		{b.times("n", processing, row, bullmq, column{totalCPU, tenths, less}, 5), goal{"n", "≤ 1/5 of bullmq", "1/2.0", "no"}},
		{b.times("n", processing, row, river, column{rate, whole, more}, 2), goal{"n", "≥ 2 × river", "not measured", ""}},
		{b.most("n", pickup, "", p99, " ms", 198), goal{"n", "≤ 198 ms", "198.00 ms", "yes"}},
		{b.most("n", pickup, "", p99, " ms", 197), goal{"n", "≤ 197 ms", "198.00 ms", "no"}},
		{b.most("n", delayed, "", p99, " ms", 1), goal{"n", "≤ 1 ms", "not measured", ""}},
	} {
		if tt.got != tt.want {
			t.Errorf("%+v, want %+v", tt.got, tt.want)
		}
	}
}

// Every table has a cell for each column, and what was not measured is left out.
func TestBench_Sections(t *testing.T) {
	t.Parallel()
	sections := sample().sections()
	var titles []string
	for _, s := range sections {
		titles = append(titles, s.Title)
		for _, row := range s.Rows {
			if len(row) != len(s.Header) {
				t.Errorf("%s: %d cells under %d headings: %v", s.Title, len(row), len(s.Header), row)
			}
		}
	}
	if want := []string{"Processed, jobs/s", "CPU, seconds per million jobs", "Idle pick-up, ms"}; !slices.Equal(titles, want) {
		t.Errorf("%q, want %q", titles, want)
	}
}

func TestBench_Pictures(t *testing.T) {
	t.Parallel()
	pictures := sample().pictures()
	if len(pictures) != 2 || pictures["engine-throughput.svg"] == nil || pictures["engine-latency.svg"] == nil {
		t.Errorf("%d pictures, want one of throughput and one of latency: nothing was scaled", len(pictures))
	}
	for name := range pictures {
		if pictureLabels[name] == "" {
			t.Errorf("%s has no label, so the report does not show it", name)
		}
	}
}

// What goes wrong with one system is noted and does not end the run; the end of the run does.
func TestBench_Attempt(t *testing.T) {
	t.Parallel()
	b := &bench{progress: io.Discard, measuring: pickup}
	s, wrong := &system{name: bullmq}, errors.New("one job ran twice")
	if err := b.attempt(t.Context(), s, func() error { return nil }); err != nil || len(b.problems) != 0 {
		t.Errorf("nothing went wrong and is %v, %v", err, b.problems)
	}
	if err := b.attempt(t.Context(), s, func() error { return wrong }); err != nil {
		t.Errorf("a problem ends the run: %v", err)
	}
	if len(b.problems) != 1 || !errors.Is(b.problems[0], wrong) || !strings.HasPrefix(b.problems[0].Error(), "pickup, bullmq: ") {
		t.Errorf("noted %v, want what went wrong with whom", b.problems)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("time is over")
	cancel(over)
	if err := b.attempt(ctx, s, func() error { return wrong }); !errors.Is(err, over) {
		t.Errorf("the end of the run gives %v", err)
	}
}

func TestPerSecond_TakesMicroseconds(t *testing.T) {
	t.Parallel()
	if got := perSecond(3000, 1_000_000, 1_500_000); math.Abs(got-6000) > 1e-9 {
		t.Errorf("3,000 jobs in half a second are %v a second", got)
	}
}
