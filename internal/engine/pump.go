package engine

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxFinish and maxTake bound the jobs that one script call ends or takes, and
	// with them the time for which it keeps Redis from its other clients.
	maxFinish = 128
	maxTake   = 256

	// maxWait bounds the wait for work inside one answer. asynq sets the end of a
	// job's lease before it asks, so the wait is at the expense of the lease.
	maxWait = time.Second

	// exchangeTimeout bounds one exchange with Redis.
	exchangeTimeout = 10 * time.Second
)

// pump is the one goroutine that speaks with Redis about jobs. It goes round and
// round: the ends of jobs that have gathered go out, and for the slots that they
// free jobs come in, both in one round trip. While Redis is at it, asynq starts
// the jobs of the round before and new ends gather, so that none waits for the
// other. When there is nothing to take it tells the watcher, and waits.
//
// It takes no more than the free slots: a job in its memory is about to start.
type pump struct {
	fetch    *fetcher
	slots    *slots
	rdb      redis.UniversalClient
	stopping <-chan struct{}

	idle    chan struct{} // tells the watcher that the pump has begun to wait for work
	turn    chan struct{} // something has changed
	got     chan struct{} // there is an answer for asynq
	quit    chan struct{}
	done    chan struct{}
	once    sync.Once   // closes quit
	asleep  atomic.Bool // there are free slots and nothing is known to take
	running atomic.Bool

	mu    sync.Mutex // owns the fields below
	asked bool       // asynq has asked in a way that is known
	lease time.Duration
	ready []fetched
	ends  []*ending
	err   error // of the last fetch, for asynq
	look  bool  // there may be something to take
	woken bool  // by a marker, which is gone now
	held  bool  // jobs were left behind that a slot of their queue could take
	again time.Time
	empty int           // calls of asynq's current round that are known to find nothing
	room  chan struct{} // closed when a queue that was full or shut may have room; nil if nobody waits
}

func newPump(rdb redis.UniversalClient, f *fetcher, s *slots, stopping <-chan struct{}) *pump {
	return &pump{
		fetch: f, slots: s, rdb: rdb, stopping: stopping, look: true,
		idle: make(chan struct{}, 1), turn: make(chan struct{}, 1), got: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
}

// notify wakes whoever waits on c, and nobody twice.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// answer fills in the result of one fetch of asynq's. asynq asks for one queue
// after the other until it gets a job; the answer may be of any queue, for a job
// says itself where it belongs. expiry is the end that asynq gives its lease.
func (p *pump) answer(ctx context.Context, cmd *redis.Cmd, expiry time.Time) error {
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	for wait := true; ; {
		p.mu.Lock()
		switch {
		case len(p.ready) > 0:
			next := p.ready[0]
			p.ready = p.ready[1:]
			p.empty = 0
			p.mu.Unlock()
			cmd.SetVal(next.msg)
			return nil
		case p.err != nil:
			err := p.err
			p.err = nil
			p.mu.Unlock()
			cmd.SetErr(err)
			return err
		case p.empty > 0:
			p.empty--
			p.mu.Unlock()
			return nothing(cmd)
		case !wait:
			p.empty = len(p.fetch.queues) - 1
			p.mu.Unlock()
			return nothing(cmd)
		}
		p.asked = true
		p.lease = time.Until(expiry)
		p.slots.asked()
		p.mu.Unlock()
		notify(p.turn)
		select {
		case <-p.got:
		case <-timer.C:
			wait = false
		case <-ctx.Done():
			wait = false
		case <-p.stopping:
			wait = false
		}
	}
}

func nothing(cmd *redis.Cmd) error {
	cmd.SetErr(redis.Nil)
	return redis.Nil
}

// finish says that e's job ended, and returns what asynq's own script would have.
func (p *pump) finish(ctx context.Context, e *ending) error {
	p.mu.Lock()
	p.ends = append(p.ends, e)
	p.mu.Unlock()
	notify(p.turn)
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return ctx.Err() // the end may still be written, like that of a call whose answer was lost
	}
}

// wake makes the pump look for work. It reports whether there is a free slot.
func (p *pump) wake() bool {
	if p.slots.free() < 1 {
		return false
	}
	p.mu.Lock()
	p.look, p.woken = true, true
	p.mu.Unlock()
	notify(p.turn)
	return true
}

// mayHaveRoom returns a channel that is closed when a queue that has no room now may
// have some.
func (p *pump) mayHaveRoom() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room == nil {
		p.room = make(chan struct{})
	}
	return p.room
}

// madeRoom is called with mu held.
func (p *pump) madeRoom() {
	if p.room != nil {
		close(p.room)
		p.room = nil
	}
}

// freed is called when a job ended without the pump.
func (p *pump) freed() {
	p.mu.Lock()
	p.madeRoom()
	p.look = p.look || p.held
	p.mu.Unlock()
	notify(p.turn)
}

// start runs the pump until close.
func (p *pump) start() {
	p.running.Store(true)
	go p.run()
}

func (p *pump) run() {
	defer close(p.done)
	for {
		// Handlers that are about to end may join: batches get twice as large at a low
		// concurrency, and nobody waits.
		runtime.Gosched()
		runtime.Gosched()
		round, again := p.next()
		if len(round.ends) > 0 || round.want > 0 {
			p.exchange(round)
			continue
		}
		if !p.sleep(again) {
			return
		}
	}
}

// round is what one exchange with Redis is about.
type round struct {
	ends []*ending
	taking
}

// next decides what to do next; if nothing, until when.
func (p *pump) next() (r round, again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.ends), maxFinish)
	r.ends = p.ends[:n:n]
	if p.ends = p.ends[n:]; len(p.ends) == 0 {
		p.ends = nil
	}
	if n > 0 {
		p.slots.release(r.ends)
		p.madeRoom()
		p.look = p.look || p.held
	}
	if !p.again.IsZero() && !time.Now().Before(p.again) {
		p.look, p.again = true, time.Time{}
		p.madeRoom()
	}
	free := p.slots.free()
	if p.look && p.asked && p.err == nil && free > 0 && !p.stopped() {
		p.look, p.held, p.again = false, false, time.Time{}
		lease := time.Now().Add(p.lease).Unix()
		r.taking, p.again = p.fetch.plan(min(free, maxTake), lease, p.woken)
		p.woken = false
		if !r.open() {
			r.want, p.held = 0, true
		}
	}
	p.asleep.Store(n == 0 && r.want == 0 && !p.look && free > 0)
	return r, p.again
}

func (p *pump) stopped() bool {
	select {
	case <-p.stopping:
		return true
	default:
		return false
	}
}

// sleep waits for something to do, and returns false at the end.
func (p *pump) sleep(again time.Time) bool {
	if p.asleep.Load() {
		notify(p.idle)
	}
	var timer <-chan time.Time
	if !again.IsZero() {
		t := time.NewTimer(time.Until(again))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-p.turn:
	case <-timer:
	case <-p.quit:
		return false
	}
	p.asleep.Store(false)
	return true
}

// exchange ends and takes jobs.
func (p *pump) exchange(r round) {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTimeout)
	defer cancel()
	var found found
	var err error
	if p.fetch.cluster {
		finishByQueue(ctx, p.rdb, r.ends)
		if r.want > 0 {
			found, err = p.fetch.takeByQueue(ctx, p.rdb, r.taking)
		}
	} else {
		found, err = p.inOneTrip(ctx, r)
	}
	for _, e := range r.ends {
		close(e.done)
	}
	if r.want == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range found.jobs {
		p.slots.take(j.job, time.Now())
	}
	p.ready = append(p.ready, found.jobs...)
	p.held = p.held || found.held
	if at := found.opens; !at.IsZero() && (p.again.IsZero() || at.Before(p.again)) {
		p.again = at
	}
	if err != nil || len(found.jobs) >= r.want {
		p.look = true
	}
	if err != nil && len(found.jobs) == 0 { // what was taken must run
		p.err = err
	}
	if len(p.ready) > 0 || p.err != nil {
		notify(p.got)
	}
}

// inOneTrip does both in one round trip: Redis runs the second script after the
// first.
func (p *pump) inOneTrip(ctx context.Context, r round) (found, error) {
	var calls []scriptCall
	if len(r.ends) > 0 {
		calls = append(calls, finishing(r.ends))
	}
	if r.want > 0 {
		calls = append(calls, r.call(p.fetch.queues))
	}
	replies := runScripts(ctx, p.rdb, calls)
	if len(r.ends) > 0 {
		settle(r.ends, replies[0])
	}
	if r.want == 0 {
		return found{}, nil
	}
	return p.fetch.read(replies[len(replies)-1], p.fetch.queues)
}

// scriptCall is a call of a script of ours.
type scriptCall struct {
	script *redis.Script
	keys   []string
	args   []any
}

func (c scriptCall) run(ctx context.Context, rdb redis.Scripter) *redis.Cmd {
	return c.script.Run(ctx, rdb, c.keys, c.args...)
}

// runScripts runs the calls one after the other, in one round trip if Redis knows
// the scripts.
func runScripts(ctx context.Context, rdb redis.UniversalClient, calls []scriptCall) []*redis.Cmd {
	replies := make([]*redis.Cmd, len(calls))
	if len(calls) == 1 {
		replies[0] = calls[0].run(ctx, rdb)
		return replies
	}
	pipe := rdb.Pipeline()
	for i, c := range calls {
		replies[i] = pipe.EvalSha(ctx, c.script.Hash(), c.keys, c.args...)
	}
	_, _ = pipe.Exec(ctx) // each reply has its error
	for i, c := range calls {
		if redis.HasErrorPrefix(replies[i].Err(), "NOSCRIPT") {
			replies[i] = c.run(ctx, rdb)
		}
	}
	return replies
}

// close ends the pump and returns what asynq has not started. It bears a second
// call, and one without a run.
func (p *pump) close() []fetched {
	p.once.Do(func() { close(p.quit) })
	if p.running.Load() {
		<-p.done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.ready
	p.ready = nil
	return left
}

// errCutShort is an answer of a script of ours that is not what it returns.
var errCutShort = errors.New("the script's answer is cut short")
