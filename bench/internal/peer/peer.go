// Package peer is how a contender of bench/engine is driven: a worker and a producer, each a process of its own, that
// take requests on standard input and answer on standard output, one line of JSON each, until the input ends.
//
// It imports the standard library only: the contender that is a module of its own uses it too.
package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to connect to and what to run. It is the last argument of both processes, as JSON.
type Config struct {
	// Redis is the address and DB the database of the Redis systems.
	Redis string `json:"redis,omitempty"`
	DB    int    `json:"db,omitempty"`
	// Postgres is the connection string of the others.
	Postgres string `json:"postgres,omitempty"`
	// Queues are of equal weight. Job n goes to queue n modulo their number.
	Queues []string `json:"queues"`
	// Concurrency is the number of jobs at once, over all queues of a replica.
	Concurrency int `json:"concurrency"`
	// Replicas is the number of workers in the process, each with connections of its own.
	Replicas int `json:"replicas"`
	// Keep is whether completed jobs stay in the store. River's do anyway.
	Keep bool `json:"keep"`
	// Email is the payload of every job, but for the recipient.
	Email Email `json:"email"`
}

// Share is a replica's concurrency for one queue, for systems that give each queue its own: rounded up, in their favour.
func (c Config) Share() int { return (c.Concurrency + len(c.Queues) - 1) / len(c.Queues) }

// Queue is where job id goes.
func (c Config) Queue(id int) string { return c.Queues[id%len(c.Queues)] }

// Email is the payload, in the fields and the order of tasks.Email.
type Email struct {
	V       int    `json:"v"`
	To      string `json:"to"`
	Subject string `json:"subject"`
	Body    string `json:"body"`
	Class   string `json:"class"`
}

// For is the email of job id.
func (e Email) For(id int) Email {
	e.To = fmt.Sprintf("%08d@example.com", id)
	return e
}

// ID is the number in a recipient of For, or -1.
func ID(to string) int {
	digits, _, _ := strings.Cut(to, "@")
	id, err := strconv.Atoi(digits)
	if err != nil {
		return -1
	}
	return id
}

var recipient = []byte(`"to":"`)

// PayloadID is ID of an encoded Email.
func PayloadID(payload []byte) int {
	_, after, _ := bytes.Cut(payload, recipient)
	digits, _, _ := bytes.Cut(after, []byte("@"))
	return ID(string(digits))
}

// What a worker can be asked to do.
const (
	// Reset begins a round: jobs Base to Base+Jobs-1 are expected, to be treated by Mode.
	Reset = "reset"
	// Mark makes First the next start of a job and the Jobs-th end from now the one to Wait for.
	Mark    = "mark"
	Wait    = "wait"
	Count   = "count"   // Running and Done
	Report  = "report"  // everything about the round
	Release = "release" // let the handlers of Mode Block end
	Collect = "collect" // collect garbage and return it to the system
)

// What a producer can be asked to do.
const (
	// Enqueue puts jobs Base to Base+Jobs-1 into their queues, the way that How says.
	Enqueue = "enqueue"
	// Ping does so one by one, between Least and Most milliseconds after each other; At tells when each was begun.
	Ping = "ping"
	// Delay does so at once, with delays between Least and Most whole milliseconds; At tells when each is due.
	Delay  = "delay"
	Pause  = "pause"
	Resume = "resume"
	Left   = "left"  // jobs that are not done; failed ones are an error
	Clear  = "clear" // forget all jobs
	Size   = "size"  // Bytes that the jobs take
)

// Ways to enqueue.
const (
	One  = "one"  // one after the other
	Many = "many" // one by one, from Callers callers at once
	Bulk = "bulk" // with whatever the system has for many jobs at once
)

// Callers is how many callers enqueue at once.
const Callers = 64

// Modes of a worker's handlers.
const (
	Tally = "tally" // only count
	Stamp = "stamp" // note the time of the start
	Block = "block" // do not end before Release
)

// Request is one line to a process.
type Request struct {
	Do    string `json:"do"`
	Base  int    `json:"base,omitempty"`
	Jobs  int    `json:"jobs,omitempty"`
	Mode  string `json:"mode,omitempty"`
	How   string `json:"how,omitempty"`
	Least int    `json:"least,omitempty"` // ms
	Most  int    `json:"most,omitempty"`  // ms
}

// Answer is one line from a process. Times are Unix microseconds.
type Answer struct {
	Error   string  `json:"error,omitempty"`
	Begin   int64   `json:"begin,omitempty"` // of an Enqueue
	End     int64   `json:"end,omitempty"`
	Running int     `json:"running,omitempty"`
	Done    int     `json:"done,omitempty"`
	Twice   int     `json:"twice,omitempty"`   // starts of a job that had started
	Foreign int     `json:"foreign,omitempty"` // starts of a job of another round
	First   int64   `json:"first,omitempty"`   // start of a job
	Nth     int64   `json:"nth,omitempty"`     // end of the job waited for
	Seen    []byte  `json:"seen,omitempty"`    // a bit for each job that started, the lowest bit first
	At      []int64 `json:"at,omitempty"`      // for each job
	Left    int     `json:"left,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
}

func now() int64 { return time.Now().UnixMicro() }

// serve answers requests until the input ends.
func serve(in io.Reader, out io.Writer, answer func(Request) (Answer, error)) error {
	encoder := json.NewEncoder(out)
	if err := encoder.Encode("ready"); err != nil {
		return err
	}
	decoder := json.NewDecoder(bufio.NewReader(in))
	for {
		var r Request
		if err := decoder.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read request: %w", err)
		}
		a, err := answer(r)
		if err != nil {
			a.Error = err.Error()
		}
		if err := encoder.Encode(a); err != nil {
			return err
		}
	}
}

// Counter is what the handlers of a worker call.
type Counter struct{ round atomic.Pointer[round] }

// round is never nil once a Counter is in use.
type round struct {
	base, jobs int
	mode       string
	seen       []atomic.Uint64
	at         []atomic.Int64
	release    chan struct{}

	running, done, twice, foreign atomic.Int64
	first, nth, target            atomic.Int64
	reached                       atomic.Pointer[chan struct{}]
}

func newRound(r Request) *round {
	n := &round{base: r.Base, jobs: r.Jobs, mode: r.Mode, seen: make([]atomic.Uint64, (r.Jobs+63)/64), release: make(chan struct{})}
	if r.Mode == Stamp {
		n.at = make([]atomic.Int64, r.Jobs)
	}
	n.mark(r.Jobs)
	return n
}

func (r *round) mark(jobs int) {
	reached := make(chan struct{})
	r.reached.Store(&reached)
	r.first.Store(0)
	r.nth.Store(0)
	r.target.Store(r.done.Load() + int64(jobs))
}

// Handle is the whole work of a job.
func (c *Counter) Handle(id int) {
	r := c.round.Load()
	if r.first.Load() == 0 {
		r.first.CompareAndSwap(0, now())
	}
	r.running.Add(1)
	switch n := id - r.base; {
	case n < 0 || n >= r.jobs:
		r.foreign.Add(1)
	default:
		if bit := uint64(1) << (n % 64); r.seen[n/64].Or(bit)&bit != 0 {
			r.twice.Add(1)
		}
		if r.mode == Stamp {
			r.at[n].Store(now())
		}
	}
	if r.mode == Block {
		<-r.release
	}
	r.running.Add(-1)
	if r.done.Add(1) == r.target.Load() {
		r.nth.Store(now())
		close(*r.reached.Load())
	}
}

func (r *round) report() Answer {
	a := Answer{
		Running: int(r.running.Load()), Done: int(r.done.Load()), Twice: int(r.twice.Load()), Foreign: int(r.foreign.Load()),
		First: r.first.Load(), Nth: r.nth.Load(),
	}
	for i := range r.seen {
		for word, n := r.seen[i].Load(), 0; n < 8; n++ {
			a.Seen = append(a.Seen, byte(word>>(8*n)))
		}
	}
	for i := range r.at {
		a.At = append(a.At, r.at[i].Load())
	}
	return a
}

// Work runs cfg.Replicas workers, which call the handler with the number of each job, and obeys. The end of ctx ends
// its waiting; what ends the workers is the end of the input.
func Work(ctx context.Context, cfg Config, in io.Reader, out io.Writer, start func(context.Context, Config, func(id int)) (stop func() error, err error)) (err error) {
	var c Counter
	c.round.Store(newRound(Request{}))
	for range cfg.Replicas {
		stop, err := start(context.WithoutCancel(ctx), cfg, c.Handle)
		if err != nil {
			return fmt.Errorf("start worker: %w", err)
		}
		defer func() { _ = stop() }() // what it was needed for has been counted
	}
	return serve(in, out, func(request Request) (Answer, error) {
		r := c.round.Load()
		switch request.Do {
		case Reset:
			c.round.Store(newRound(request))
		case Mark:
			r.mark(request.Jobs)
		case Wait:
			select {
			case <-*r.reached.Load():
			case <-ctx.Done():
				return Answer{}, context.Cause(ctx)
			}
			return Answer{First: r.first.Load(), Nth: r.nth.Load()}, nil
		case Count:
			return Answer{Running: int(r.running.Load()), Done: int(r.done.Load())}, nil
		case Report:
			return r.report(), nil
		case Release:
			close(r.release)
		case Collect:
			debug.FreeOSMemory()
		default:
			return Answer{}, fmt.Errorf("a worker does not know how to %s", request.Do)
		}
		return Answer{}, nil
	})
}

// Producer is a system's side that enqueues.
type Producer interface {
	// Add enqueues one job.
	Add(ctx context.Context, id int, delay time.Duration) error
	// Bulk enqueues many.
	Bulk(ctx context.Context, base, jobs int) error
	Pause(context.Context) error
	Resume(context.Context) error
	Left(context.Context) (int, error)
	Clear(context.Context) error
	Size(context.Context) (int64, error)
}

// Produce obeys.
func Produce(ctx context.Context, p Producer, in io.Reader, out io.Writer) error {
	return serve(in, out, func(r Request) (a Answer, err error) {
		switch r.Do {
		case Enqueue:
			a.Begin = now()
			err = enqueue(ctx, p, r)
			a.End = now()
		case Ping:
			for id := r.Base; id < r.Base+r.Jobs && err == nil; id++ {
				time.Sleep(time.Duration(r.Least*1000+rand.IntN((r.Most-r.Least)*1000)) * time.Microsecond)
				a.At = append(a.At, now())
				err = p.Add(ctx, id, 0)
			}
		case Delay:
			for id := r.Base; id < r.Base+r.Jobs && err == nil; id++ {
				delay := r.Least + rand.IntN(r.Most-r.Least)
				if delay%1000 == 0 {
					delay++ // whole seconds are the easy case
				}
				a.At = append(a.At, now()+int64(delay)*1000)
				err = p.Add(ctx, id, time.Duration(delay)*time.Millisecond)
			}
		case Pause:
			err = p.Pause(ctx)
		case Resume:
			err = p.Resume(ctx)
		case Left:
			a.Left, err = p.Left(ctx)
		case Clear:
			err = p.Clear(ctx)
		case Size:
			a.Bytes, err = p.Size(ctx)
		default:
			err = fmt.Errorf("a producer does not know how to %s", r.Do)
		}
		return a, err
	})
}

func enqueue(ctx context.Context, p Producer, r Request) error {
	switch r.How {
	case Bulk:
		return p.Bulk(ctx, r.Base, r.Jobs)
	case Many:
		return AddMany(ctx, p, r.Base, r.Jobs)
	}
	for id := r.Base; id < r.Base+r.Jobs; id++ {
		if err := p.Add(ctx, id, 0); err != nil {
			return err
		}
	}
	return nil
}

// AddMany enqueues one by one from many callers at once.
func AddMany(ctx context.Context, p Producer, base, jobs int) error {
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	for range Callers {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= jobs {
					return
				}
				if err := p.Add(ctx, base+n, 0); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}
