package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/report"
	"github.com/medicalink/postroom/rediskit"
)

// roundLimit bounds one round, whatever is wrong with it.
const roundLimit = 3 * time.Minute

// bench is everything that runs: Redis, the sink and the systems to measure.
type bench struct {
	redis, sink *child.Process
	redisPort   int
	smtpPort    int
	control     string // the sink's
	load        string // of the machine, before the run
	systems     []*system
	stops       []func() error // in the order of starting
}

// system is one contender.
type system struct {
	name   string
	jobs   int // a round
	worker *child.Process
	queue  queue
	rounds []measurement
}

// queue is the producer's side of a system.
type queue interface {
	pause(context.Context) error
	resume(context.Context) error
	// load queues n emails to prefix0@example.com, prefix1@….
	load(ctx context.Context, prefix string, n int) error
	// left counts the jobs that are not done; failed ones are an error.
	left(context.Context) (int, error)
}

// measurement is one round of one system.
type measurement struct {
	mails               int
	bytes               int64
	span                time.Duration // first to last acceptance
	worker, redis, sink time.Duration // CPU
}

func (m measurement) rate() float64 { return float64(m.mails-1) / m.span.Seconds() }

func (m measurement) per1000(cpu time.Duration) float64 {
	return cpu.Seconds() / float64(m.mails) * 1000
}

// sinkStats is what the sink's /stats tells; see bench/sink.
type sinkStats struct {
	Messages, Recipients, Foreign int
	Bytes                         int64
	First, Last                   time.Time
}

func start(ctx context.Context, o options, work string, stderr io.Writer) (b *bench, err error) {
	b = &bench{load: report.Load()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	for _, program := range []string{"redis-server", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			return b, fmt.Errorf("find %s: %w; `task setup` installs it", program, err)
		}
	}
	root, err := os.Getwd()
	if err != nil {
		return b, fmt.Errorf("find the repository: %w", err)
	}
	fmt.Fprintln(stderr, "building …")
	programs := []string{"build", "-trimpath", "-o", work + string(filepath.Separator), "./bench/sink"}
	if o.only != "bullmq" {
		programs = append(programs, "./cmd/worker")
	}
	build := exec.CommandContext(ctx, "go", programs...)
	build.Stderr = stderr
	if err := build.Run(); err != nil {
		return b, fmt.Errorf("build worker and sink: %w", err)
	}
	if b.redis, b.redisPort, err = child.Redis(ctx, work, o.aof); err != nil {
		return b, err
	}
	b.add(b.redis)
	if err := b.startSink(ctx, work); err != nil {
		return b, err
	}
	rdb, err := rediskit.Open(ctx, b.redisConfig())
	if err != nil {
		return b, err
	}
	b.stops = append(b.stops, rdb.Close)
	if o.only != "bullmq" {
		if err := b.startPostroom(ctx, o, work, rdb); err != nil {
			return b, err
		}
	}
	if o.only != "postroom" {
		if err := b.startBullMQ(ctx, o, work, filepath.Join(root, "bench", "mail", "bullmq"), stderr); err != nil {
			return b, err
		}
	}
	return b, nil
}

// stop ends everything in the opposite order of starting.
func (b *bench) stop() error {
	var errs []error
	for _, stop := range slices.Backward(b.stops) {
		errs = append(errs, stop())
	}
	b.stops = nil
	return errors.Join(errs...)
}

func (b *bench) add(p *child.Process) { b.stops = append(b.stops, p.Stop) }

func (b *bench) redisConfig() rediskit.Config {
	cfg, err := rediskit.ParseURL(b.redisURL())
	if err != nil {
		panic(err) // the URL is ours
	}
	cfg.ClientName = "bench"
	return cfg
}

func (b *bench) redisURL() string { return fmt.Sprintf("redis://127.0.0.1:%d", b.redisPort) }

func (b *bench) startSink(ctx context.Context, work string) (err error) {
	if b.sink, err = child.Spawn(child.Options{Dir: work, Talk: true}, "sink-log", filepath.Join(work, "sink")); err != nil {
		return err
	}
	b.add(b.sink)
	line, err := b.sink.Line(ctx)
	if err != nil {
		return err
	}
	var addresses struct{ SMTP, Control string }
	if err := json.Unmarshal([]byte(line), &addresses); err != nil {
		return fmt.Errorf("read the sink's addresses: %w", err)
	}
	_, port, err := net.SplitHostPort(addresses.SMTP)
	if err != nil {
		return fmt.Errorf("read the sink's address: %w", err)
	}
	b.control = "http://" + addresses.Control
	b.smtpPort, err = strconv.Atoi(port)
	return err
}

func (b *bench) ask(ctx context.Context, method, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, b.control+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the sink: %w", err)
	}
	defer resp.Body.Close()
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// round fills the paused queue of s, lets it run and measures.
func (b *bench) round(ctx context.Context, s *system, number, jobs int) (m measurement, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, roundLimit, errors.New("the round took too long"))
	defer cancel()
	prefix := fmt.Sprintf("%s-%d-", s.name, number)
	if err := s.queue.pause(ctx); err != nil {
		return m, fmt.Errorf("pause: %w", err)
	}
	if err := s.queue.load(ctx, prefix, jobs); err != nil {
		return m, fmt.Errorf("load: %w", err)
	}
	if err := b.ask(ctx, http.MethodPost, "/reset?prefix="+url.QueryEscape(prefix), nil); err != nil {
		return m, err
	}
	before, err := b.cpu(s)
	if err != nil {
		return m, err
	}
	if err := s.queue.resume(ctx); err != nil {
		return m, fmt.Errorf("resume: %w", err)
	}
	var stats sinkStats
	if err := child.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		err := errors.Join(s.worker.Alive(), b.ask(ctx, http.MethodGet, "/stats", &stats))
		return stats.Messages >= jobs, err
	}); err != nil {
		return m, fmt.Errorf("%d of %d messages arrived: %w\n%s", stats.Messages, jobs, err, s.worker.Tail())
	}
	if err := child.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		left, err := s.queue.left(ctx)
		return left == 0, err
	}); err != nil {
		return m, fmt.Errorf("finish: %w", err)
	}
	after, err := b.cpu(s)
	if err != nil {
		return m, err
	}
	if err := b.ask(ctx, http.MethodGet, "/stats", &stats); err != nil {
		return m, err
	}
	if stats.Messages != jobs || stats.Recipients != jobs || stats.Foreign != 0 {
		return m, fmt.Errorf("%d jobs gave %d messages to %d different recipients, and %d to others",
			jobs, stats.Messages, stats.Recipients, stats.Foreign)
	}
	return measurement{
		mails: jobs, bytes: stats.Bytes, span: stats.Last.Sub(stats.First),
		worker: after[0] - before[0], redis: after[1] - before[1], sink: after[2] - before[2],
	}, nil
}

func (b *bench) cpu(s *system) (used [3]time.Duration, err error) {
	for i, p := range []*child.Process{s.worker, b.redis, b.sink} {
		if used[i], err = p.CPU(); err != nil {
			return used, err
		}
	}
	return used, nil
}
