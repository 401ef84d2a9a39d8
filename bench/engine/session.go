package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"slices"
	"time"

	"github.com/medicalink/postroom/bench/internal/child"
	"github.com/medicalink/postroom/bench/internal/peer"
)

// Bounds of one round and of a process's start, whatever is wrong with them.
const (
	roundLimit = 2 * time.Minute
	startLimit = time.Minute
)

// spec is what runs of a system.
type spec struct {
	queues      int
	concurrency int // of a replica
	processes   int // of workers
	replicas    int // in a process
	keep        bool
}

// session is a system with its processes.
type session struct {
	*system
	bench    *bench
	spec     spec
	producer *child.Process
	workers  []*child.Process
}

func (b *bench) config(s *system, sp spec) peer.Config {
	c := peer.Config{Concurrency: sp.concurrency, Replicas: max(1, sp.replicas), Keep: sp.keep, Email: b.email}
	if s.name == river {
		c.Postgres = b.database
	} else {
		c.Redis, c.DB = b.address(), databases[s.name]
	}
	for i := range sp.queues {
		name := fmt.Sprintf("email:q%d", i)
		if s.name == bullmq || s.name == river {
			name = fmt.Sprintf("email-q%d", i) // a colon is not allowed
		}
		c.Queues = append(c.Queues, name)
	}
	return c
}

// open starts a producer, which forgets all jobs, and the workers.
func (b *bench) open(ctx context.Context, s *system, sp spec) (_ *session, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, errors.New("it does not get ready"))
	defer cancel()
	session := &session{system: s, bench: b, spec: sp}
	defer func() {
		if err != nil {
			err = errors.Join(err, session.close())
		}
	}()
	if session.producer, err = session.spawn(ctx, "produce"); err != nil {
		return nil, err
	}
	if _, err := session.produce(ctx, peer.Request{Do: peer.Clear}); err != nil {
		return nil, err
	}
	for range sp.processes {
		w, err := session.spawn(ctx, "work")
		if err != nil {
			return nil, err
		}
		session.workers = append(session.workers, w)
	}
	return session, nil
}

func (s *session) spawn(ctx context.Context, role string) (*child.Process, error) {
	config, err := json.Marshal(s.bench.config(s.system, s.spec))
	if err != nil {
		return nil, err
	}
	program, args := s.bench.program, []string{"peer", role, s.name}
	o := child.Options{Dir: s.bench.work, Talk: true}
	switch s.name {
	case bullmq:
		script, err := filepath.Abs(filepath.Join(bullmqFolder, "peer.mjs"))
		if err != nil {
			return nil, err
		}
		program, args = "node", []string{"--expose-gc", script, role}
		o.Env = []string{"NODE_ENV=production"}
	case river:
		program, args = s.bench.river, []string{role}
	}
	p, err := child.Spawn(o, fmt.Sprintf("%s-%s-%d", s.name, role, len(s.workers)), program, append(args, string(config))...)
	if err != nil {
		return nil, err
	}
	if _, err := p.Line(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", role, err), p.Stop())
	}
	return p, nil
}

// endProducer leaves the workers alone.
func (s *session) endProducer() error {
	if s.producer == nil {
		return nil
	}
	err := s.producer.Stop()
	s.producer = nil
	return err
}

func (s *session) close() error {
	err := s.endProducer()
	for _, w := range slices.Backward(s.workers) {
		err = errors.Join(err, w.Stop())
	}
	s.workers = nil
	return err
}

func ask(ctx context.Context, p *child.Process, r peer.Request) (a peer.Answer, err error) {
	line, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	if err := p.Tell(ctx, string(line), &a); err != nil {
		return a, fmt.Errorf("%s: %w", r.Do, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", r.Do, a.Error)
	}
	return a, nil
}

func (s *session) produce(ctx context.Context, r peer.Request) (peer.Answer, error) {
	return ask(ctx, s.producer, r)
}

// all asks every worker.
func (s *session) all(ctx context.Context, r peer.Request) ([]peer.Answer, error) {
	answers := make([]peer.Answer, len(s.workers))
	for i, w := range s.workers {
		var err error
		if answers[i], err = ask(ctx, w, r); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// begin tells the workers what to expect, and takes the numbers of so many jobs.
func (s *session) begin(ctx context.Context, mode string, jobs int) (base int, err error) {
	base = s.next
	s.next += jobs
	_, err = s.all(ctx, peer.Request{Do: peer.Reset, Base: base, Jobs: jobs, Mode: mode})
	return base, err
}

// pauseSettles is how long a pause may take to reach the workers of a system that tells them by a message.
const pauseSettles = 100 * time.Millisecond

// pause returns when nothing runs any more.
func (s *session) pause(ctx context.Context) error {
	if _, err := s.produce(ctx, peer.Request{Do: peer.Pause}); err != nil {
		return err
	}
	last := -1
	return child.Poll(ctx, pauseSettles, func() (bool, error) {
		done, running, err := s.count(ctx)
		quiet := done == last && running == 0
		last = done
		return quiet, err
	})
}

func (s *session) resume(ctx context.Context) error {
	_, err := s.produce(ctx, peer.Request{Do: peer.Resume})
	return err
}

func (s *session) enqueue(ctx context.Context, how string, base, jobs int) (peer.Answer, error) {
	return s.produce(ctx, peer.Request{Do: peer.Enqueue, How: how, Base: base, Jobs: jobs})
}

func (s *session) count(ctx context.Context) (done, running int, err error) {
	answers, err := s.all(ctx, peer.Request{Do: peer.Count})
	for _, a := range answers {
		done += a.Done
		running += a.Running
	}
	return done, running, err
}

// finish waits until so many jobs are done and none is left in the store, and returns when that was. One worker says
// itself when it is done; several are asked, now and then.
func (s *session) finish(ctx context.Context, jobs int) (end time.Time, err error) {
	if len(s.workers) == 1 {
		_, err = ask(ctx, s.workers[0], peer.Request{Do: peer.Wait})
	} else {
		err = child.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
			done, _, err := s.count(ctx)
			return done >= jobs, err
		})
	}
	if err != nil {
		return end, s.stuck(err)
	}
	err = child.Poll(ctx, time.Millisecond, func() (bool, error) {
		a, err := s.produce(ctx, peer.Request{Do: peer.Left})
		end = time.Now()
		return a.Left == 0, err
	})
	if err != nil {
		return end, s.stuck(err)
	}
	return end, nil
}

// stuck adds what the processes said.
func (s *session) stuck(err error) error {
	for _, p := range append(slices.Clone(s.workers), s.producer) {
		if p != nil && p.Tail() != "" {
			err = fmt.Errorf("%w\n%s", err, p.Tail())
		}
	}
	return err
}

// verify adds the workers' reports up: it fails unless each of the jobs ran exactly once. first is when the first
// began; at is, in mode Stamp, when each did.
func (s *session) verify(ctx context.Context, jobs int) (first int64, at []int64, err error) {
	answers, err := s.all(ctx, peer.Request{Do: peer.Report})
	if err != nil {
		return 0, nil, err
	}
	if first, at, err = exactlyOnce(answers, jobs); err == nil {
		s.bench.checked += jobs
	}
	return first, at, err
}

func exactlyOnce(answers []peer.Answer, jobs int) (first int64, at []int64, err error) {
	seen := make([]byte, (jobs+63)/64*8)
	var done, twice, foreign, distinct int
	for _, a := range answers {
		done, twice, foreign = done+a.Done, twice+a.Twice, foreign+a.Foreign
		if a.First > 0 && (first == 0 || a.First < first) {
			first = a.First
		}
		for i, b := range a.Seen[:min(len(a.Seen), len(seen))] {
			twice += bits.OnesCount8(seen[i] & b)
			seen[i] |= b
		}
		at = a.At
	}
	for _, b := range seen {
		distinct += bits.OnesCount8(b)
	}
	if done != jobs || distinct != jobs || twice != 0 || foreign != 0 {
		return 0, nil, fmt.Errorf("of %d jobs %d ran, %d of them twice or more, %d runs ended, %d runs were of other rounds", jobs, distinct, twice, done, foreign)
	}
	return first, at, nil
}

// usage is CPU time so far.
type usage struct{ workers, store time.Duration }

func (s *session) cpu() (u usage, err error) {
	for _, w := range s.workers {
		used, err := w.CPU()
		if err != nil {
			return u, err
		}
		u.workers += used
	}
	// Postgres is a family of processes.
	u.store, err = s.store.FamilyCPU()
	return u, err
}

func (u usage) since(before usage) usage {
	return usage{u.workers - before.workers, u.store - before.store}
}
