package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// Retention is how long a sent or parked job is remembered. It must outlast
	// every redelivery and every rerun by hand of a job that still exists.
	Retention = 7 * 24 * time.Hour

	// openRetention is how long the record of a job that was never sent is
	// kept: longer than any job waits for its next attempt.
	openRetention = 30 * 24 * time.Hour

	// MaxCrashes is the number of starts that ended with the death of the
	// process after which a job is not started again.
	MaxCrashes = 3

	// isolateAfter is the number of such starts after which the job must run alone.
	isolateAfter = 2

	// journalInterval is the pause between two attempts to write the journal.
	journalInterval = 300 * time.Millisecond

	// writeTimeout bounds one write that must happen although the attempt's own
	// context is over.
	writeTimeout = 3 * time.Second
)

// ErrSuperseded is returned by [Attempt.Commit] when the job was taken over by a
// later attempt: this one must not send.
var ErrSuperseded = errors.New("the job was taken over by a later attempt")

// Verdict is what Begin found out about a job.
type Verdict int

const (
	// Go means the attempt may run; the [Attempt] is valid only then.
	Go Verdict = iota
	// Sent means the message was accepted earlier: acknowledge the job, send nothing.
	Sent
	// Busy means another live process is between Commit and the end of its attempt.
	Busy
	// Doubtful means an earlier attempt ended, or died, between the final dot and
	// the relay's answer. The caller decides by the job's class.
	Doubtful
	// Isolate means the job crashed its process before and must be begun again
	// with nothing else running beside it.
	Isolate
	// Poison means the job crashed its process [MaxCrashes] times.
	Poison
)

// Record is what is known of earlier attempts.
type Record struct {
	Verdict  Verdict
	Attempts int           // starts so far, this one included if it may run
	Crashes  int           // starts that ended with the process
	Provider string        // where the doubtful or sent message went
	Age      time.Duration // since the state was written, by Redis' clock
	Since    time.Duration // since the first attempt began, by Redis' clock
}

// Ledger writes the record. Safe for concurrent use.
type Ledger struct {
	pipe   *redis.AutoPipeliner
	worker string
	seq    atomic.Uint64

	mu      sync.Mutex
	journal map[string]*entry // by job id: what Redis has yet to hear
	kick    chan struct{}
	stop    chan struct{}
	done    chan struct{}
}

// entry is one write that Redis refused or did not answer.
type entry struct {
	script *redis.Script
	args   []any
	sent   bool
}

// New returns a ledger that writes through rdb on behalf of the process worker,
// whose life is told by the key [WorkerKey]. Calls of concurrent handlers share
// round trips. It starts nothing; see [Ledger.Start].
func New(rdb redis.UniversalClient, worker string) (*Ledger, error) {
	pipe, err := rdb.AsyncAutoPipeline()
	if err != nil {
		return nil, fmt.Errorf("pipeline the ledger: %w", err)
	}
	return &Ledger{
		pipe:    pipe,
		worker:  worker,
		journal: make(map[string]*entry),
		kick:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}, nil
}

// JobKey is the key of a job's record.
func JobKey(id string) string { return "postroom:job:{" + id + "}" }

// WorkerKey exists while the process called worker lives.
func WorkerKey(worker string) string { return "postroom:worker:" + worker }

// OwnerField is the field of a job's record that names the process at work on it.
const OwnerField = "owner"

// KEYS[1] the job's record
// ARGV: owner, token, alone (1 or 0), max crashes, isolate after, ttl ms, resend (1: begin although in doubt)
// Returns {verdict, attempts, crashes, provider, age ms, owner, since ms}. The same token
// twice is go-redis repeating a call whose answer was lost.
var beginScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'state', 'starts', 'attempts', 'provider', 'at', 'owner', 'first')
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local state = h[1] or ''
local starts = tonumber(h[2] or '0')
local attempts = tonumber(h[3] or '0')
local age = 0
if h[5] then age = now - tonumber(h[5]) end
local first = tonumber(h[7] or now)
local function answer(verdict) return {verdict, attempts, starts, h[4] or '', age, h[6] or '', now - first} end

if state == 'sent' then return answer('sent') end
if redis.call('HGET', KEYS[1], 'token') == ARGV[2] then starts = starts - 1 return answer('go') end
if state == 'sending' and ARGV[7] ~= '1' then return answer('doubt') end
if starts >= tonumber(ARGV[4]) then return answer('poison') end
if starts >= tonumber(ARGV[5]) and ARGV[3] ~= '1' then return answer('isolate') end
attempts = attempts + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'token', ARGV[2], 'starts', starts + 1, 'attempts', attempts, 'first', first)
if state ~= '' then redis.call('HDEL', KEYS[1], 'state', 'at') end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return answer('go')`)

// ARGV: token, provider.
var commitScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', 'sending', 'provider', ARGV[2], 'at', t[1] * 1000 + math.floor(t[2] / 1000))
return 1`)

// ARGV: provider, queue id, ttl ms. Unconditional: whoever wrote the dot knows best.
var sentScript = redis.NewScript(`
local t = redis.call('TIME')
redis.call('HDEL', KEYS[1], 'owner', 'token', 'starts')
redis.call('HSET', KEYS[1], 'state', 'sent', 'provider', ARGV[1], 'queue_id', ARGV[2], 'at', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)

// ARGV: token, outcome: 'unsent' forgets the attempt, 'doubt' keeps the state
// sending, 'parked' lets the next start send, which only a person asks for.
var endScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'owner', 'token', 'starts')
if ARGV[2] == 'unsent' then redis.call('HDEL', KEYS[1], 'state', 'at', 'provider') end
if ARGV[2] == 'parked' then redis.call('HSET', KEYS[1], 'state', 'parked') end
return 1`)

// Park of a doubtful job nobody is at work on.
var parkScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'state') ~= 'sending' then return 0 end
redis.call('HDEL', KEYS[1], 'owner', 'token', 'starts')
redis.call('HSET', KEYS[1], 'state', 'parked')
return 1`)

// ARGV: none. A person runs a quarantined job again: it gets its starts back.
var pardonScript = redis.NewScript(`
redis.call('HDEL', KEYS[1], 'owner', 'token', 'starts')
return 1`)

// Options say how an attempt begins.
type Options struct {
	Alone  bool // nothing else runs in this process until the attempt ends
	Resend bool // the caller has decided to send although the job is in doubt
}

// Attempt is one run of a job that may send. End it with exactly one of Sent,
// Release, Doubt or Park.
type Attempt struct {
	l     *Ledger
	id    string
	token string
}

// Begin asks for the right to run job id. The attempt is nil unless the verdict
// is [Go]. An error means Redis gave no answer: do not send.
func (l *Ledger) Begin(ctx context.Context, id string, opts Options) (*Attempt, Record, error) {
	l.mu.Lock()
	waiting, ok := l.journal[id]
	l.mu.Unlock()
	if ok {
		if waiting.sent {
			return nil, Record{Verdict: Sent}, nil
		}
		if err := l.write(ctx, id, waiting); err != nil {
			return nil, Record{}, fmt.Errorf("write the ledger's journal: %w", err)
		}
		l.settled(id, waiting)
	}

	token := l.worker + "/" + strconv.FormatUint(l.seq.Add(1), 36)
	reply, err := l.run(ctx, beginScript, id,
		l.worker, token, flag(opts.Alone), MaxCrashes, isolateAfter, openRetention.Milliseconds(), flag(opts.Resend)).Slice()
	if err != nil {
		// The script may have run although its answer did not come: take the
		// start back, or it would look like a crash one day.
		l.postpone(id, &entry{script: endScript, args: []any{token, "unsent"}})
		return nil, Record{}, fmt.Errorf("begin the attempt in the ledger: %w", err)
	}
	rec, owner, verdict, err := parse(reply)
	if err != nil {
		return nil, Record{}, err
	}
	switch verdict {
	case "go":
		rec.Verdict = Go
		return &Attempt{l: l, id: id, token: token}, rec, nil
	case "sent":
		rec.Verdict = Sent
	case "poison":
		rec.Verdict = Poison
	case "isolate":
		rec.Verdict = Isolate
	case "doubt":
		rec.Verdict = Doubtful
		if owner != "" {
			alive, err := l.alive(ctx, owner)
			if err != nil {
				return nil, Record{}, fmt.Errorf("ask whether the job's owner lives: %w", err)
			}
			if alive {
				rec.Verdict = Busy
			}
		}
	default:
		return nil, Record{}, fmt.Errorf("begin the attempt in the ledger: unknown verdict %q", verdict)
	}
	return nil, rec, nil
}

func parse(reply []any) (rec Record, owner, verdict string, err error) {
	if len(reply) != 7 {
		return rec, "", "", fmt.Errorf("begin the attempt in the ledger: answer of %d fields", len(reply))
	}
	num := func(i int) int64 { n, _ := reply[i].(int64); return n }
	str := func(i int) string { s, _ := reply[i].(string); return s }
	rec = Record{
		Attempts: int(num(1)),
		Crashes:  int(num(2)),
		Provider: str(3),
		Age:      time.Duration(num(4)) * time.Millisecond,
		Since:    time.Duration(num(6)) * time.Millisecond,
	}
	return rec, str(5), str(0), nil
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Commit is the point of no return: call it with all of the body on the wire
// and the final dot not yet. It fails with [ErrSuperseded] if a later attempt
// has the job, and with any other error if Redis gave no answer; in both cases
// the dot must not be written.
func (a *Attempt) Commit(ctx context.Context, provider string) error {
	ok, err := a.l.run(ctx, commitScript, a.id, a.token, provider).Bool()
	if err != nil {
		return fmt.Errorf("record the send in the ledger: %w", err)
	}
	if !ok {
		return ErrSuperseded
	}
	return nil
}

// Sent records that the relay accepted the message. It does not fail: what
// Redis does not take now waits in the journal.
func (a *Attempt) Sent(ctx context.Context, provider, queueID string) {
	a.l.end(ctx, a.id, &entry{
		script: sentScript,
		args:   []any{provider, queueID, Retention.Milliseconds()},
		sent:   true,
	})
}

// Release ends an attempt after which the message is certainly not sent.
func (a *Attempt) Release(ctx context.Context) {
	a.l.end(ctx, a.id, &entry{script: endScript, args: []any{a.token, "unsent"}})
}

// Doubt ends an attempt whose outcome is unknown.
func (a *Attempt) Doubt(ctx context.Context) {
	a.l.end(ctx, a.id, &entry{script: endScript, args: []any{a.token, "doubt"}})
}

// Park ends an attempt whose outcome is unknown and must not be tried again
// unless a person says so by running the archived job.
func (a *Attempt) Park(ctx context.Context) {
	a.l.end(ctx, a.id, &entry{script: endScript, args: []any{a.token, "parked"}})
}

// Park does the same for a doubtful job that nobody is at work on.
func (l *Ledger) Park(ctx context.Context, id string) error {
	if err := l.run(ctx, parkScript, id).Err(); err != nil {
		return fmt.Errorf("park the job in the ledger: %w", err)
	}
	return nil
}

// Pardon forgets a poisonous job's crashes as it goes to the archive, so that a
// person who runs it again from there gives it a fresh chance.
func (l *Ledger) Pardon(ctx context.Context, id string) error {
	if err := l.run(ctx, pardonScript, id).Err(); err != nil {
		return fmt.Errorf("pardon the job in the ledger: %w", err)
	}
	return nil
}

// end writes how an attempt ended, whatever became of the attempt's context, or
// leaves it to the journal.
func (l *Ledger) end(ctx context.Context, id string, e *entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := l.write(ctx, id, e); err == nil {
		return
	}
	l.postpone(id, e)
}

// postpone leaves a write to the journal. What was sent stays sent.
func (l *Ledger) postpone(id string, e *entry) {
	l.mu.Lock()
	if old := l.journal[id]; old == nil || !old.sent {
		l.journal[id] = e
	}
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run calls a script on a job's record in a pipeline with those of other
// handlers. A caller whose context ends does not wait for the pipeline, though
// its call may still be carried out.
func (l *Ledger) run(ctx context.Context, script *redis.Script, id string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx, append([]any{"evalsha", script.Hash(), 1, JobKey(id)}, args...)...)
	if err := l.pipe.Submit(ctx, cmd).WaitContext(ctx); err != nil && ctx.Err() != nil {
		// The pipeline may still write to cmd.
		cmd = redis.NewCmd(ctx)
		cmd.SetErr(err)
	}
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		return script.Eval(ctx, l.pipe, []string{JobKey(id)}, args...)
	}
	return cmd
}

func (l *Ledger) alive(ctx context.Context, worker string) (bool, error) {
	cmd := redis.NewIntCmd(ctx, "exists", WorkerKey(worker))
	if err := l.pipe.Submit(ctx, cmd).WaitContext(ctx); err != nil {
		return false, err
	}
	return cmd.Val() == 1, nil
}

func (l *Ledger) write(ctx context.Context, id string, e *entry) error {
	return l.run(ctx, e.script, id, e.args...).Err()
}

func (l *Ledger) settled(id string, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.journal[id] == e {
		delete(l.journal, id)
	}
}

// Pending is the number of outcomes that Redis has yet to hear.
func (l *Ledger) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.journal)
}

// Start writes the journal in the background until Stop.
func (l *Ledger) Start() {
	go func() {
		defer close(l.done)
		for {
			select {
			case <-l.stop:
				return
			case <-l.kick:
			}
			for l.Pending() > 0 {
				select {
				case <-l.stop:
					return
				case <-time.After(journalInterval):
				}
				l.flush(context.Background())
			}
		}
	}()
}

// Stop ends the background work of Start and tries to write what is left until
// ctx ends. It returns an error that counts what was lost with the process.
func (l *Ledger) Stop(ctx context.Context) error {
	close(l.stop)
	<-l.done
	for l.Pending() > 0 && ctx.Err() == nil {
		l.flush(ctx)
		if l.Pending() > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(journalInterval):
			}
		}
	}
	if n := l.Pending(); n > 0 {
		return fmt.Errorf("stop the ledger: %d outcomes could not be written because Redis did not answer; those jobs will be found in doubt", n)
	}
	return nil
}

// flush writes what it can and stops at the first refusal.
func (l *Ledger) flush(ctx context.Context) {
	l.mu.Lock()
	entries := maps.Clone(l.journal)
	l.mu.Unlock()
	for id, e := range entries {
		wctx, cancel := context.WithTimeout(ctx, writeTimeout)
		err := l.write(wctx, id, e)
		cancel()
		if err != nil {
			return
		}
		l.settled(id, e)
	}
}
