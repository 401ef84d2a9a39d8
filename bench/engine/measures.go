package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/peer"
	"github.com/medicalink/postroom/bench/internal/report"
)

// figure names what was measured: of a system, in a case of a measure.
type figure struct{ measure, row, system, name string }

// results holds the values of the rounds.
type results map[figure][]float64

func (r results) add(measure, row, system, name string, value float64) {
	f := figure{measure, row, system, name}
	r[f] = append(r[f], value)
}

// spread is false for what was not measured.
func (r results) spread(measure, row, system, name string) (report.Spread, bool) {
	values := r[figure{measure, row, system, name}]
	if len(values) == 0 {
		return report.Spread{}, false
	}
	return report.SpreadOf(values, func(v float64) float64 { return v }), true
}

// ratio is that of a to b in each round.
func (r results) ratio(measure, row, name, a, b string) (report.Spread, bool) {
	as, bs := r[figure{measure, row, a, name}], r[figure{measure, row, b, name}]
	var ratios []float64
	for i := range min(len(as), len(bs)) {
		if as[i] > 0 && bs[i] > 0 {
			ratios = append(ratios, as[i]/bs[i])
		}
	}
	if len(ratios) == 0 {
		return report.Spread{}, false
	}
	return report.SpreadOf(ratios, func(v float64) float64 { return v }), true
}

// Measures and the figures that they give.
const (
	processing = "process"
	enqueueing = "enqueue"
	both       = "both"
	pickup     = "pickup"
	delayed    = "delay"
	idle       = "idle"
	memory     = "memory"
	scaling    = "scale"
	backlog    = "backlog"

	rate       = "jobs/s"
	workerCPU  = "worker CPU s per million jobs"
	storeCPU   = "store CPU s per million jobs"
	totalCPU   = "CPU s per million jobs"
	median     = "p50 ms"
	p99        = "p99 ms"
	longest    = "max ms"
	early      = "early"
	calls      = "commands/s"
	inner      = "commands in scripts/s"
	workerLoad = "worker ms/s"
	storeLoad  = "store ms/s"
	waiting    = "bytes per waiting job"
	running    = "bytes per running job"
)

var measureList = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{processing, (*bench).measureProcessing},
	{enqueueing, (*bench).measureEnqueueing},
	{both, (*bench).measureBoth},
	{pickup, (*bench).measurePickup},
	{delayed, (*bench).measureDelay},
	{idle, (*bench).measureIdle},
	{memory, (*bench).measureMemory},
	{scaling, (*bench).measureScaling},
	{backlog, (*bench).measureBacklog},
}

func measureNames() []string {
	var names []string
	for _, m := range measureList {
		names = append(names, m.name)
	}
	return names
}

func (b *bench) measure(ctx context.Context) error {
	for _, m := range measureList {
		if !slices.Contains(b.measures, m.name) {
			continue
		}
		b.measuring = m.name
		if err := m.run(b, ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%6.0f s  "+format+"\n", append([]any{time.Since(b.begun).Seconds()}, args...)...)
}

// alternate opens a session of each system, lets them take turns and closes them. Round 0 is for warming up. A system
// that fails is left out of the case from then on.
func (b *bench) alternate(ctx context.Context, systems []*system, sp spec, rounds int, round func(context.Context, *session, int) error) (err error) {
	var sessions []*session
	defer func() {
		for _, s := range slices.Backward(sessions) {
			err = errors.Join(err, s.close())
		}
	}()
	for _, system := range systems {
		if err := b.attempt(ctx, system, func() error {
			s, err := b.open(ctx, system, sp)
			if err != nil {
				return fmt.Errorf("start: %w", err)
			}
			sessions = append(sessions, s)
			return nil
		}); err != nil {
			return err
		}
	}
	for n := range rounds + 1 {
		for _, s := range slices.Clone(sessions) {
			failed := len(b.problems)
			if err := b.attempt(ctx, s.system, func() error {
				limit, cancel := context.WithTimeoutCause(ctx, roundLimit, errors.New("the round took too long"))
				defer cancel()
				if err := round(limit, s, n); err != nil {
					return fmt.Errorf("round %d: %w", n, err)
				}
				return nil
			}); err != nil {
				return err
			}
			if len(b.problems) > failed {
				sessions = slices.DeleteFunc(sessions, func(other *session) bool { return other == s })
				if err := s.close(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// attempt notes what goes wrong with a system, so that it does not cost the others their figures. It fails when all is
// to end.
func (b *bench) attempt(ctx context.Context, s *system, do func() error) error {
	err := do()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s, %s: %w", b.measuring, s.name, err)
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	b.problems = append(b.problems, err)
	b.say("%v", err)
	return nil
}

// Bounds of the number of jobs in a round; firstJobs is that of the round for warming up.
const (
	fewestJobs = 1_000
	mostJobs   = 250_000
	firstJobs  = 5_000
)

// size is how many jobs of a case take about the span.
func (s *system) size(row string) int {
	if n := s.jobs[row]; n > 0 {
		return n
	}
	return firstJobs
}

func (s *session) resize(row string, perSecond float64) {
	n := int(perSecond * s.bench.span.Seconds())
	s.jobs[row] = min(max(n-n%100, fewestJobs), mostJobs)
}

// drained is what a round of processing gave.
type drained struct {
	rate           float64
	workers, store float64 // CPU s per job
}

// drain fills the paused queues, lets them run empty and measures from the start of the first job until nothing is
// left in the store.
func (s *session) drain(ctx context.Context, jobs int) (d drained, err error) {
	if err := s.pause(ctx); err != nil {
		return d, err
	}
	base, err := s.begin(ctx, peer.Tally, jobs)
	if err != nil {
		return d, err
	}
	if _, err := s.enqueue(ctx, peer.Bulk, base, jobs); err != nil {
		return d, err
	}
	if done, running, err := s.count(ctx); err != nil || done+running > 0 {
		return d, errors.Join(err, fmt.Errorf("%d jobs began although the queue is paused", done+running))
	}
	before, err := s.cpu()
	if err != nil {
		return d, err
	}
	if err := s.resume(ctx); err != nil {
		return d, err
	}
	end, err := s.finish(ctx, jobs)
	if err != nil {
		return d, err
	}
	after, err := s.cpu()
	if err != nil {
		return d, err
	}
	first, _, err := s.verify(ctx, jobs)
	if err != nil {
		return d, err
	}
	used := after.since(before)
	return drained{
		rate:    perSecond(jobs, first, end.UnixMicro()),
		workers: used.workers.Seconds() / float64(jobs),
		store:   used.store.Seconds() / float64(jobs),
	}, nil
}

// perSecond takes times in Unix microseconds.
func perSecond(jobs int, begin, end int64) float64 {
	return float64(jobs) / (float64(max(end-begin, 1)) / 1e6)
}

func (s *session) record(measure, row string, d drained) {
	r := s.bench.results
	r.add(measure, row, s.name, rate, d.rate)
	r.add(measure, row, s.name, workerCPU, d.workers*1e6)
	r.add(measure, row, s.name, storeCPU, d.store*1e6)
	r.add(measure, row, s.name, totalCPU, (d.workers+d.store)*1e6)
}

// processingRow names a case of measure processing.
func processingRow(queues, concurrency int) string {
	if queues == 1 {
		return fmt.Sprintf("1 queue, %s at once", report.Count(concurrency))
	}
	return fmt.Sprintf("%d queues, %s at once", queues, report.Count(concurrency))
}

// kept is what a row says of completed jobs that stay in the store.
func kept(keep bool) string {
	if keep {
		return ", completed ones kept"
	}
	return ""
}

// manyQueues is the other number of queues, beside one.
const manyQueues = 6

func (b *bench) measureProcessing(ctx context.Context) error {
	for _, sp := range b.processingCases() {
		row, systems := processingRow(sp.queues, sp.concurrency)+kept(sp.keep), b.contenders
		if row == processingRow(1, 100) && slices.Contains(b.systems, ours) {
			systems = append(slices.Clone(systems), &system{name: bare, store: b.redis, jobs: map[string]int{}})
		}
		err := b.alternate(ctx, systems, sp, b.rounds, func(ctx context.Context, s *session, round int) error {
			return s.drainRound(ctx, processing, row, round)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) processingCases() []spec {
	var cases []spec
	for _, queues := range []int{1, manyQueues} {
		for _, concurrency := range []int{10, 100, 1000} {
			if !b.quick || concurrency == 100 {
				cases = append(cases, spec{queues: queues, concurrency: concurrency, processes: 1})
			}
		}
	}
	return append(cases, spec{queues: 1, concurrency: 100, processes: 1, keep: true})
}

func (s *session) drainRound(ctx context.Context, measure, row string, round int) error {
	d, err := s.drain(ctx, s.size(measure+row))
	if err != nil {
		return err
	}
	s.resize(measure+row, d.rate)
	s.bench.say("%-8s %-9s %-26s round %d  %9.0f jobs/s  CPU s per million: %.1f worker, %.1f store", measure, s.name, row, round, d.rate, d.workers*1e6, d.store*1e6)
	if round > 0 {
		s.record(measure, row, d)
	}
	return nil
}

var enqueueRows = []struct{ row, how string }{
	{"one by one, 1 caller", peer.One},
	{"one by one, 64 callers", peer.Many},
	{"in bulk", peer.Bulk},
}

func (b *bench) measureEnqueueing(ctx context.Context) error {
	for _, c := range enqueueRows {
		err := b.alternate(ctx, b.contenders, spec{queues: 1}, b.rounds, func(ctx context.Context, s *session, round int) error {
			jobs := s.size(enqueueing + c.row)
			base, err := s.begin(ctx, "", jobs)
			if err != nil {
				return err
			}
			a, err := s.enqueue(ctx, c.how, base, jobs)
			if err != nil {
				return err
			}
			left, err := s.produce(ctx, peer.Request{Do: peer.Left})
			if err != nil {
				return err
			}
			if left.Left != jobs {
				return fmt.Errorf("%d jobs were enqueued and %d are there", jobs, left.Left)
			}
			if _, err := s.produce(ctx, peer.Request{Do: peer.Clear}); err != nil {
				return err
			}
			value := perSecond(jobs, a.Begin, a.End)
			s.resize(enqueueing+c.row, value)
			b.say("%-8s %-9s %-26s round %d  %9.0f jobs/s", enqueueing, s.name, c.row, round, value)
			if round > 0 {
				b.results.add(enqueueing, c.row, s.name, rate, value)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const bothRow = "64 producers, 100 at once"

func (b *bench) measureBoth(ctx context.Context) error {
	return b.alternate(ctx, b.contenders, spec{queues: 1, concurrency: 100, processes: 1}, b.rounds, func(ctx context.Context, s *session, round int) error {
		jobs := s.size(both)
		base, err := s.begin(ctx, peer.Tally, jobs)
		if err != nil {
			return err
		}
		a, err := s.enqueue(ctx, peer.Many, base, jobs)
		if err != nil {
			return err
		}
		end, err := s.finish(ctx, jobs)
		if err != nil {
			return err
		}
		if _, _, err := s.verify(ctx, jobs); err != nil {
			return err
		}
		value := perSecond(jobs, a.Begin, end.UnixMicro())
		s.resize(both, value)
		b.say("%-8s %-9s %-26s round %d  %9.0f jobs/s", both, s.name, "", round, value)
		if round > 0 {
			b.results.add(both, bothRow, s.name, rate, value)
		}
		return nil
	})
}

// Samples of a round: with the default of five rounds, 600 pick-ups and 500 delayed jobs.
const (
	pickupSamples = 120
	delaySamples  = 100
)

// tolerance is how much before its time a delayed job may start without counting as early: BullMQ counts in whole
// milliseconds.
const tolerance = time.Millisecond

func (b *bench) measurePickup(ctx context.Context) error {
	return b.measureLatency(ctx, pickup, peer.Request{Do: peer.Ping, Jobs: pickupSamples, Least: 20, Most: 80})
}

func (b *bench) measureDelay(ctx context.Context) error {
	return b.measureLatency(ctx, delayed, peer.Request{Do: peer.Delay, Jobs: delaySamples, Least: 300, Most: 3000})
}

// measureLatency compares when jobs should have started with when they did.
func (b *bench) measureLatency(ctx context.Context, measure string, r peer.Request) error {
	return b.alternate(ctx, b.contenders, spec{queues: 1, concurrency: 10, processes: 1}, b.rounds, func(ctx context.Context, s *session, round int) error {
		request := r
		if round == 0 {
			request.Jobs /= 4
		}
		var err error
		if request.Base, err = s.begin(ctx, peer.Stamp, request.Jobs); err != nil {
			return err
		}
		asked, err := s.produce(ctx, request)
		if err != nil {
			return err
		}
		if _, err := s.finish(ctx, request.Jobs); err != nil {
			return err
		}
		_, started, err := s.verify(ctx, request.Jobs)
		if err != nil {
			return err
		}
		late, tooEarly := lateness(asked.At, started)
		values := []struct {
			name  string
			value float64
		}{
			{median, report.Quantile(late, 0.5)},
			{p99, report.Quantile(late, 0.99)},
			{longest, slices.Max(late)},
			{early, float64(tooEarly)},
		}
		b.say("%-8s %-9s %-26s round %d  p50 %.2f ms  p99 %.2f ms  max %.2f ms  early %d", measure, s.name, "", round, values[0].value, values[1].value, values[2].value, tooEarly)
		if round == 0 {
			return nil
		}
		for _, v := range values {
			b.results.add(measure, "", s.name, v.name, v.value)
		}
		for _, v := range late {
			b.results.add(measure, "", s.name, samples, v)
		}
		return nil
	})
}

// samples are the single values of all rounds, in ms.
const samples = "samples"

// lateness is in ms, from times in Unix microseconds.
func lateness(asked, started []int64) (late []float64, early int) {
	for i, at := range started {
		d := at - asked[i]
		if d < -tolerance.Microseconds() {
			early++
		}
		late = append(late, float64(d)/1000)
	}
	return late, early
}

// Idle: settle, count and read the CPU time over idleSpan, and then listen for a while to tell what clients send from
// what scripts do.
const (
	idleSettle  = 5 * time.Second
	idleSpan    = 20 * time.Second
	monitorSpan = 10 * time.Second
)

// riverReplicas is how many River clients are started at the most: each has connections of its own, and each connection
// is a process of Postgres.
const riverReplicas = 10

func idleRow(replicas int) string {
	if replicas == 1 {
		return "1 replica"
	}
	return fmt.Sprintf("%d replicas", replicas)
}

func (b *bench) idleReplicas() []int {
	if b.quick {
		return []int{10}
	}
	return []int{1, 10, 100}
}

func (b *bench) measureIdle(ctx context.Context) error {
	for _, replicas := range b.idleReplicas() {
		for _, s := range b.contenders {
			if s.name == river && replicas > riverReplicas {
				continue
			}
			if err := b.attempt(ctx, s, func() error { return b.idleRound(ctx, s, replicas) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) idleRound(ctx context.Context, system *system, replicas int) (err error) {
	s, err := b.open(ctx, system, spec{queues: manyQueues, concurrency: 10, processes: 1, replicas: replicas})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.endProducer(); err != nil {
		return err
	}
	settle, span, listen := idleSettle, idleSpan, monitorSpan
	if b.quick {
		settle, span, listen = 2*time.Second, 6*time.Second, 6*time.Second // BullMQ looks every five seconds
	}
	if err := pass(ctx, settle); err != nil {
		return err
	}
	before, err := s.cpu()
	if err != nil {
		return err
	}
	commands, err := b.commands(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := pass(ctx, span); err != nil {
		return err
	}
	seconds := time.Since(begin).Seconds() * float64(replicas)
	after, err := s.cpu()
	if err != nil {
		return err
	}
	row, used := idleRow(replicas), after.since(before)
	b.results.add(idle, row, s.name, workerLoad, used.workers.Seconds()*1000/seconds)
	b.results.add(idle, row, s.name, storeLoad, used.store.Seconds()*1000/seconds)
	if s.name == river {
		b.say("%-8s %-9s %-26s CPU ms/s per replica: %.2f worker, %.2f store", idle, s.name, row, used.workers.Seconds()*1000/seconds, used.store.Seconds()*1000/seconds)
		return nil
	}
	now, err := b.commands(ctx)
	if err != nil {
		return err
	}
	// One less: the first question counts in the second.
	total := max(0, float64(now-commands-1)) / seconds
	share, err := b.clientShare(ctx, listen)
	if err != nil {
		return err
	}
	b.results.add(idle, row, s.name, calls, total*share)
	b.results.add(idle, row, s.name, inner, total*(1-share))
	b.say("%-8s %-9s %-26s per replica: %.2f commands/s, %.2f in scripts; CPU ms/s: %.2f worker, %.2f store", idle, s.name, row,
		total*share, total*(1-share), used.workers.Seconds()*1000/seconds, used.store.Seconds()*1000/seconds)
	return nil
}

func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Memory: a queue of waitingJobs, and as many running handlers as the highest concurrency.
const (
	waitingJobs = 20_000
	runningJobs = 1_000
)

func (b *bench) measureMemory(ctx context.Context) error {
	err := b.alternate(ctx, b.contenders, spec{queues: 1}, min(b.rounds, 3), func(ctx context.Context, s *session, round int) error {
		if _, err := s.produce(ctx, peer.Request{Do: peer.Clear}); err != nil {
			return err
		}
		before, err := s.produce(ctx, peer.Request{Do: peer.Size})
		if err != nil {
			return err
		}
		base, err := s.begin(ctx, "", waitingJobs)
		if err != nil {
			return err
		}
		if _, err := s.enqueue(ctx, peer.Bulk, base, waitingJobs); err != nil {
			return err
		}
		after, err := s.produce(ctx, peer.Request{Do: peer.Size})
		if err != nil {
			return err
		}
		value := float64(after.Bytes-before.Bytes) / waitingJobs
		b.say("%-8s %-9s %-26s round %d  %9.0f bytes per waiting job", memory, s.name, "", round, value)
		if round > 0 {
			b.results.add(memory, "", s.name, waiting, value)
		}
		_, err = s.produce(ctx, peer.Request{Do: peer.Clear})
		return err
	})
	if err != nil {
		return err
	}
	for range min(b.rounds, 3) {
		for _, s := range b.contenders {
			// A process keeps what it once needed, so each round has a new one.
			if err := b.attempt(ctx, s, func() error { return b.runningRound(ctx, s) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) runningRound(ctx context.Context, system *system) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, roundLimit, errors.New("the round took too long"))
	defer cancel()
	s, err := b.open(ctx, system, spec{queues: 1, concurrency: runningJobs, processes: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	// What the first jobs leave behind is not to be taken for what running ones need.
	if _, err := s.drain(ctx, runningJobs/10); err != nil {
		return err
	}
	base, err := s.begin(ctx, peer.Block, runningJobs)
	if err != nil {
		return err
	}
	before, err := s.resident(ctx)
	if err != nil {
		return err
	}
	if _, err := s.enqueue(ctx, peer.Bulk, base, runningJobs); err != nil {
		return err
	}
	if err := child.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		_, running, err := s.count(ctx)
		return running == runningJobs, err
	}); err != nil {
		return s.stuck(err)
	}
	after, err := s.resident(ctx)
	if err != nil {
		return err
	}
	if _, err := s.all(ctx, peer.Request{Do: peer.Release}); err != nil {
		return err
	}
	if _, err := s.finish(ctx, runningJobs); err != nil {
		return err
	}
	if _, _, err := s.verify(ctx, runningJobs); err != nil {
		return err
	}
	value := float64(after-before) / runningJobs
	b.say("%-8s %-9s %-26s %9.0f bytes per running job", memory, s.name, "", value)
	b.results.add(memory, "", s.name, running, value)
	return nil
}

// resident is the worker's memory after a collection.
func (s *session) resident(ctx context.Context) (int, error) {
	if _, err := s.all(ctx, peer.Request{Do: peer.Collect}); err != nil {
		return 0, err
	}
	return s.workers[0].Resident()
}

func scalingRow(processes int) string {
	if processes == 1 {
		return "1 process"
	}
	return fmt.Sprintf("%d processes", processes)
}

func (b *bench) measureScaling(ctx context.Context) error {
	for _, processes := range []int{1, 2, 4, 8} {
		if b.quick && processes%3 == 2 {
			continue
		}
		// The peers' figures for one and four show where they go.
		systems := slices.DeleteFunc(slices.Clone(b.contenders), func(s *system) bool {
			return s.name != ours && processes != 1 && processes != 4
		})
		row := scalingRow(processes)
		err := b.alternate(ctx, systems, spec{queues: 1, concurrency: 100, processes: processes}, b.rounds, func(ctx context.Context, s *session, round int) error {
			return s.drainRound(ctx, scaling, row, round)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shortQueue is the other length, beside the backlog, and the number of jobs that are timed in both.
const shortQueue = 1_000

func backlogRow(jobs int) string { return report.Count(jobs) + " waiting" }

// backlogTimes is how often the first jobs are timed in a round.
const backlogTimes = 5

// measureBacklog times the same number of jobs at the head of a short queue and of a long one. The long queue is
// filled once and loses a few thousand jobs a round.
func (b *bench) measureBacklog(ctx context.Context) error {
	for _, s := range b.contenders {
		if s.name != ours && s.name != bullmq {
			continue
		}
		if err := b.attempt(ctx, s, func() error { return b.backlogRounds(ctx, s) }); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) backlogRounds(ctx context.Context, system *system) (err error) {
	s, err := b.open(ctx, system, spec{queues: 1, concurrency: 100, processes: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for n := range b.rounds*backlogTimes + 1 {
		if err := s.pause(ctx); err != nil {
			return err
		}
		base, err := s.begin(ctx, peer.Tally, shortQueue)
		if err != nil {
			return err
		}
		if _, err := s.enqueue(ctx, peer.Bulk, base, shortQueue); err != nil {
			return err
		}
		if err := s.head(ctx, shortQueue, n > 0, backlogRow(shortQueue)); err != nil {
			return err
		}
		if _, err := s.finish(ctx, shortQueue); err != nil {
			return err
		}
		if _, _, err := s.verify(ctx, shortQueue); err != nil {
			return err
		}
	}
	if err := s.pause(ctx); err != nil {
		return err
	}
	base, err := s.begin(ctx, peer.Tally, b.backlog)
	if err != nil {
		return err
	}
	b.say("%-8s %-9s filling the queue", backlog, s.name)
	if _, err := s.enqueue(ctx, peer.Bulk, base, b.backlog); err != nil {
		return err
	}
	for n := range b.rounds*backlogTimes + 1 {
		if err := s.head(ctx, shortQueue, n > 0, backlogRow(b.backlog)); err != nil {
			return err
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
	// How many are left is the store's to say; that none ran twice, the worker's.
	answers, err := s.all(ctx, peer.Request{Do: peer.Report})
	if err != nil {
		return err
	}
	left, err := s.produce(ctx, peer.Request{Do: peer.Left})
	if err != nil {
		return err
	}
	if a := answers[0]; a.Twice+a.Foreign > 0 || a.Done+left.Left != b.backlog {
		return fmt.Errorf("of %d jobs %d ran and %d are left; %d ran twice, %d were of other rounds", b.backlog, a.Done, left.Left, a.Twice, a.Foreign)
	}
	_, err = s.produce(ctx, peer.Request{Do: peer.Clear})
	return err
}

// head opens the queue and times the first jobs.
func (s *session) head(ctx context.Context, jobs int, count bool, row string) error {
	if _, err := s.all(ctx, peer.Request{Do: peer.Mark, Jobs: jobs}); err != nil {
		return err
	}
	if err := s.resume(ctx); err != nil {
		return err
	}
	a, err := ask(ctx, s.workers[0], peer.Request{Do: peer.Wait})
	if err != nil {
		return s.stuck(err)
	}
	value := perSecond(jobs, a.First, a.Nth)
	s.bench.say("%-8s %-9s %-26s %9.0f jobs/s", backlog, s.name, row, value)
	if count {
		s.bench.results.add(backlog, row, s.name, rate, value)
	}
	return nil
}

// infoField reads a number from an answer to INFO.
func infoField(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("Redis does not tell its %s", name)
}
