package engine

import (
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/internal/wake"
)

const (
	// lookInterval is how often a process looks whether a job waits that nobody
	// announced: a stock client's, the dashboard's, one whose marker was lost. Up
	// to a half more at random keeps a fleet out of step.
	lookInterval = time.Second

	// listenTime is how long one BLPOP waits for a marker.
	listenTime = 25 * time.Second

	// shortListen is the same on a server that does not tell a connection's id, so
	// that nobody can end the wait: a Redis in memory, or rules without CLIENT ID.
	shortListen = time.Second

	// unblockInterval is how often the end of a wait is asked for at shutdown.
	unblockInterval = 20 * time.Millisecond
	unblockTimeout  = time.Second

	// callTimeout bounds the watcher's other calls.
	callTimeout = 3 * time.Second
)

// watcher knows when there is work: it listens to the markers of producers while
// the pump is idle, brings delayed jobs into their queues when they are due,
// and looks by itself once in a while. These three take the place of asynq's
// polling, which its fetch and forward loops would do for each queue.
type watcher struct {
	rdb     redis.UniversalClient
	name    string // unique in the fleet
	pump    *pump
	queues  []queue
	log     zerolog.Logger
	cluster bool

	stopping <-chan struct{}
	poke     chan struct{} // a delayed job is due soon
	quiet    atomic.Bool   // the last look found no job at all
	wg       sync.WaitGroup
}

func newWatcher(rdb redis.UniversalClient, p *pump, log zerolog.Logger) *watcher {
	return &watcher{
		rdb: rdb, name: crand.Text(), pump: p, queues: p.fetch.queues, cluster: p.fetch.cluster,
		stopping: p.stopping, poke: make(chan struct{}, 1), log: log,
	}
}

func (w *watcher) start() {
	w.wg.Go(w.run)
	if !w.cluster {
		w.wg.Go(func() { w.listen(w.queues) })
		return
	}
	// One BLPOP cannot wait for keys of several slots.
	for i := range w.queues {
		w.wg.Go(func() { w.listen(w.queues[i : i+1]) })
	}
}

// stop waits for the watcher to end. A connection that hangs is left to its
// timeout.
func (w *watcher) stop() {
	ended := make(chan struct{})
	go func() {
		w.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(callTimeout):
	}
}

func (w *watcher) stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// run forwards delayed jobs at their time and looks for unannounced work.
func (w *watcher) run() {
	due := time.Time{} // of the next delayed job that is ours to forward
	next := time.Now() // look
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		at := next
		if !due.IsZero() && due.Before(at) {
			at = due
		}
		timer.Reset(time.Until(at))
		var forward bool
		select {
		case <-w.stopping:
			return
		case <-w.poke:
			forward = true
		case <-timer.C:
			forward = !due.IsZero() && !time.Now().Before(due)
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		var err error
		if now := time.Now(); !now.Before(next) {
			next = now.Add(lookInterval + rand.N(lookInterval/2))
			var n int64
			n, err = w.count(ctx)
			forward = forward || n > 0
			w.quiet.Store(err == nil && n == 0)
		}
		if err == nil && forward {
			var found finding
			found, err = w.forward(ctx)
			due = time.Time{}
			if found.due >= 0 {
				due = time.Now().Add(found.due)
			}
			if found.waiting {
				w.pump.wake()
			}
		}
		cancel()
		if err != nil {
			// The next look tries again; asynq's own calls log and back off.
			w.log.Debug().Err(err).Msg("could not look for work")
		}
	}
}

// count returns how many of the keys exist that hold jobs for this process:
// pending, delayed, running or left by a dead worker. One command, so that a large
// idle fleet costs Redis next to nothing.
func (w *watcher) count(ctx context.Context) (int64, error) {
	if !w.cluster {
		var keys []string
		for _, q := range w.queues {
			keys = append(keys, jobKeys(q.name)...)
		}
		return w.rdb.Exists(ctx, keys...).Result()
	}
	counts := make([]*redis.IntCmd, len(w.queues))
	if _, err := w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, q := range w.queues {
			counts[i] = p.Exists(ctx, jobKeys(q.name)...)
		}
		return nil
	}); err != nil {
		return 0, err
	}
	n := int64(0)
	for _, c := range counts {
		n += c.Val()
	}
	return n, nil
}

func jobKeys(queue string) []string {
	p := prefixOf(queue)
	return []string{p + "pending", p + "scheduled", p + "retry", p + "lease"}
}

// listen waits for markers whenever the pump is idle.
func (w *watcher) listen(queues []queue) {
	var line line
	defer line.close()
	failures := 0
	for {
		for !w.pump.asleep.Load() {
			select {
			case <-w.pump.idle:
			case <-w.stopping:
				return
			}
		}
		if w.stopped() {
			return
		}
		key, err := line.pop(w, queues)
		switch {
		case w.stopped():
			w.pass(key)
			return
		case err == nil:
			failures = 0
			w.heard(key, queues)
		case !errors.Is(err, redis.Nil):
			failures = min(failures+1, 8)
			w.rest(failures)
		}
	}
}

// heard acts on a marker. One that this process can do nothing with goes back,
// for another.
func (w *watcher) heard(key string, queues []queue) {
	for _, q := range queues {
		switch key {
		case wake.DelayedKey(q.name):
			select {
			case w.poke <- struct{}{}:
			default:
			}
			return
		case wake.Key(q.name):
			if n, _ := w.pump.fetch.open(q); n < 1 || !w.pump.wake() {
				w.pass(key)
			}
			return
		}
	}
}

var passScript = redis.NewScript(wake.Lua + `wake(KEYS[1])`)

// pass sets a marker that was taken and not used. If it fails the look of another
// worker finds the job.
func (w *watcher) pass(key string) {
	if key == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := passScript.Run(ctx, w.rdb, []string{key}).Err(); err != nil && !errors.Is(err, redis.Nil) {
		w.log.Debug().Err(err).Msg("could not pass a wake-up on")
	}
}

// rest waits after a failure, longer each time, half of it at random.
func (w *watcher) rest(failures int) {
	t := time.NewTimer(backoff(failures))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.stopping:
	}
}

// line is a connection on which one listener waits for markers. It knows its id,
// so that another connection can end the wait.
type line struct {
	node *redis.Client
	conn *redis.Conn
	id   int64 // 0: unknown
}

// pop waits for a marker of queues that this process has slots for, and returns
// its key. It returns without one when a queue that it left out has room again, so
// that it can be called anew with that one among the others.
func (l *line) pop(w *watcher, queues []queue) (string, error) {
	room := w.pump.mayHaveRoom() // before the queues are looked at, to miss nothing
	var keys []string
	var full []queue
	for _, q := range queues {
		if n, _ := w.pump.fetch.open(q); n > 0 {
			keys = append(keys, wake.Key(q.name))
		} else {
			full = append(full, q)
		}
	}
	for _, q := range queues {
		keys = append(keys, wake.DelayedKey(q.name))
	}
	if err := l.open(w.rdb, keys[0]); err != nil {
		return "", err
	}
	patience := listenTime
	if l.id == 0 {
		patience = shortListen
	}
	// The context ends the attempts on a Redis that is away.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	node, id := l.node, l.id
	w.wg.Go(func() {
		if w.await(ctx, full, room) && id != 0 {
			w.unblock(ctx, node, id)
		}
		if w.stopped() {
			cancel()
		}
	})
	reply, err := l.conn.BLPop(ctx, patience, keys...).Result()
	if err != nil {
		if !errors.Is(err, redis.Nil) {
			l.close()
		}
		return "", err
	}
	return reply[0], nil
}

// await returns true when one of the queues that were full has room again, or at
// shutdown, and false when ctx ends.
func (w *watcher) await(ctx context.Context, full []queue, room <-chan struct{}) bool {
	if len(full) == 0 {
		room = nil
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.stopping:
			return true
		case <-room:
		}
		room = w.pump.mayHaveRoom()
		for _, q := range full {
			if n, _ := w.pump.fetch.open(q); n > 0 {
				return true
			}
		}
	}
}

// unblock ends the wait of connection id. The command may be on its way yet, so
// the end is repeated, until ctx says that the wait is over.
func (w *watcher) unblock(ctx context.Context, node *redis.Client, id int64) {
	ctx, cancel := context.WithTimeout(ctx, unblockTimeout)
	defer cancel()
	tick := time.NewTicker(unblockInterval)
	defer tick.Stop()
	for {
		_ = node.ClientUnblock(ctx, id).Err() // the next tick tries again
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *line) open(rdb redis.UniversalClient, key string) error {
	if l.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	switch c := rdb.(type) {
	case *redis.ClusterClient:
		node, err := c.MasterForKey(ctx, key)
		if err != nil {
			return err
		}
		l.node = node
	case *redis.Client:
		l.node = c
	default:
		return errors.New("listen for work: the client is neither a *redis.Client nor a *redis.ClusterClient")
	}
	conn := l.node.Conn()
	id, err := conn.ClientID(ctx).Result()
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return errors.Join(err, conn.Close())
	}
	l.conn, l.id = conn, id
	return nil
}

func (l *line) close() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}
