package ratelimit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

const (
	// DefaultTimeout is the zero value of [Config].Timeout.
	DefaultTimeout = 500 * time.Millisecond
	// MaxSlidingLimit is the highest limit of a [SlidingWindow], which remembers
	// every admitted call of a window: 110 kB for a key.
	MaxSlidingLimit = 10_000
	// MaxWindow is the longest window.
	MaxWindow = 366 * 24 * time.Hour
)

// maxKey is the length from which a key is replaced by its hash: keys can come
// from request headers, and Redis would keep any length.
const maxKey = 128

// Algorithm is how calls are counted.
type Algorithm int

const (
	// SlidingWindow remembers when each call was admitted. It is exact: at most
	// limit calls in any interval of the window's length. The calls may come all
	// at once. The default.
	SlidingWindow Algorithm = iota
	// GCRA (the generic cell rate algorithm of ATM, a leaky bucket) remembers one
	// time. After a burst it admits one call each window/limit. It needs little
	// memory and has no upper limit.
	GCRA
)

// OnError is what happens to calls while Redis does not answer.
type OnError int

const (
	// FailOpen admits them: the limit protects against too much, and not serving
	// anybody would be worse.
	FailOpen OnError = iota + 1
	// FailClosed refuses them: the limit protects something that must never be
	// exceeded, such as attempts to guess a code.
	FailClosed
)

// Config holds what is the same for all keys of a limiter.
type Config struct {
	// Algorithm is SlidingWindow by default.
	Algorithm Algorithm

	// OnError has no default: it must be FailOpen or FailClosed.
	OnError OnError

	// Burst is how many calls GCRA admits at once to a key that was idle. In any
	// window it admits at most limit+Burst-1: with 1 never more than the limit, but
	// evenly spaced only. Default, and at most: the limit. Not for SlidingWindow.
	Burst int

	// Timeout is the longest time that a decision may take before OnError makes
	// it, retries included: without it a hung Redis holds every call for
	// seconds. A dead Redis is tried again too, so that while it is down every
	// call can take that long. Default 500 ms. A context that ends earlier wins.
	Timeout time.Duration
}

// Result is a decision. If Err is set, Redis was not heard and OnError decided:
// then only Allowed and Limit have a meaning.
type Result struct {
	Allowed bool
	Limit   int
	// Remaining is how many calls would be admitted now, after this one.
	Remaining int
	// ResetAfter is the time until the whole limit (with GCRA: the whole burst) is
	// available again if no call comes.
	ResetAfter time.Duration
	// RetryAfter is the time until this call could be admitted, if nobody else
	// comes first; 0 if it was.
	RetryAfter time.Duration
	// Err is why Redis gave no decision, for a log.
	Err error

	at int64 // the server's time of the decision, in microseconds
}

// ErrUnavailable is wrapped by the error of [Limiter.Allow] when Redis did not
// answer and calls are refused for that.
var ErrUnavailable = errors.New("rate limit unavailable")

// Stats counts the decisions of a limiter since it was made.
type Stats struct {
	Allowed      uint64 // admitted by Redis
	Denied       uint64 // refused by Redis
	FailedOpen   uint64 // admitted because Redis did not answer
	FailedClosed uint64 // refused because Redis did not answer
}

// Limiter decides about calls. It is safe for concurrent use.
type Limiter struct {
	client *rediskit.Client
	cfg    Config
	script *redis.Script

	allowed, denied, failedOpen, failedClosed atomic.Uint64
}

// New returns a limiter whose state is in client's Redis, under the service's
// prefix. It fails if cfg makes no sense.
func New(client *rediskit.Client, cfg Config) (*Limiter, error) {
	if client == nil {
		return nil, errors.New("make rate limiter: no client")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	l := &Limiter{client: client, cfg: cfg, script: slidingWindow()}
	var errs []error
	switch cfg.Algorithm {
	case SlidingWindow:
		if cfg.Burst != 0 {
			errs = append(errs, errors.New("rate limit config: Burst is for GCRA only: a sliding window admits the limit at once"))
		}
	case GCRA:
		l.script = gcra()
		if cfg.Burst < 0 {
			errs = append(errs, fmt.Errorf("rate limit config: Burst is %d: it must be at least 1", cfg.Burst))
		}
	default:
		errs = append(errs, errors.New("rate limit config: Algorithm must be SlidingWindow or GCRA"))
	}
	if cfg.OnError != FailOpen && cfg.OnError != FailClosed {
		errs = append(errs, errors.New("rate limit config: OnError must be FailOpen or FailClosed:"+
			" say what happens to calls while Redis does not answer"))
	}
	if cfg.Timeout < 0 {
		errs = append(errs, fmt.Errorf("rate limit config: Timeout is %s: it must be positive", cfg.Timeout))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return l, nil
}

// Allow is [Limiter.AllowN] for one call.
func (l *Limiter) Allow(ctx context.Context, key string, limit int, window time.Duration) (Result, error) {
	return l.AllowN(ctx, key, limit, window, 1)
}

// AllowN decides whether n calls of key are within limit in each window, and
// counts them if so: all or none. key says who or what is limited, such as
// "user:123"; windows of different lengths are counted apart, so that one key
// can have a limit for a second and one for a day. The window is counted in
// whole microseconds.
//
// While Redis does not answer (or not before ctx ends), FailOpen returns an admitting Result and no
// error, FailClosed a refusing one and an error that wraps [ErrUnavailable]. Any
// other error is a mistake in the arguments, and refuses.
func (l *Limiter) AllowN(ctx context.Context, key string, limit int, window time.Duration, n int) (Result, error) {
	burst, err := l.check(key, limit, window, n)
	if err != nil {
		return Result{Limit: limit}, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	reply, err := l.script.Run(
		ctx, l.client, []string{l.key(key, window)}, limit, window.Microseconds(), n, burst,
	).Int64Slice()
	if err == nil && len(reply) != 5 {
		err = fmt.Errorf("the script answered with %d numbers", len(reply))
	}
	if err != nil {
		return l.undecided(limit, err)
	}
	micros := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	result := Result{
		Allowed: reply[0] == 1, Limit: limit, Remaining: int(reply[1]),
		ResetAfter: micros(reply[2]), RetryAfter: micros(reply[3]), at: reply[4],
	}
	if result.Allowed {
		l.allowed.Add(1)
	} else {
		l.denied.Add(1)
	}
	return result, nil
}

// check returns the burst that goes with limit, or what is wrong.
func (l *Limiter) check(key string, limit int, window time.Duration, n int) (burst int, err error) {
	burst = limit
	if l.cfg.Burst > 0 {
		burst = min(l.cfg.Burst, limit)
	}
	switch {
	case key == "":
		return 0, errors.New("rate limit: no key: all callers would share one limit")
	case limit < 1:
		return 0, fmt.Errorf("rate limit: the limit is %d: it must be at least 1", limit)
	case l.cfg.Algorithm == SlidingWindow && limit > MaxSlidingLimit:
		return 0, fmt.Errorf("rate limit: the limit is %d: a sliding window has at most %d; use GCRA", limit, MaxSlidingLimit)
	case window < time.Microsecond || window > MaxWindow:
		return 0, fmt.Errorf("rate limit: the window is %s: it must be between 1µs and %s", window, MaxWindow)
	case l.cfg.Algorithm == GCRA && int64(limit) > window.Microseconds():
		return 0, fmt.Errorf("rate limit: %d calls in %s are more than one each microsecond", limit, window)
	case n < 1:
		return 0, fmt.Errorf("rate limit: asked for %d calls: it must be at least 1", n)
	case n > burst:
		return 0, fmt.Errorf("rate limit: asked for %d calls at once, but never more than %d can be admitted", n, burst)
	}
	return burst, nil
}

// undecided applies OnError.
func (l *Limiter) undecided(limit int, err error) (Result, error) {
	result := Result{Limit: limit, Err: fmt.Errorf("ask for rate limit: %w", err)}
	if l.cfg.OnError == FailOpen {
		l.failedOpen.Add(1)
		result.Allowed = true
		return result, nil
	}
	l.failedClosed.Add(1)
	return result, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// key names the state: by algorithm, because each keeps another type, and by
// window, because a log cut to a second cannot serve for a day.
func (l *Limiter) key(key string, window time.Duration) string {
	if len(key) > maxKey {
		sum := sha256.Sum256([]byte(key))
		key = "sha256-" + hex.EncodeToString(sum[:])
	}
	algorithm := "window"
	if l.cfg.Algorithm == GCRA {
		algorithm = "gcra"
	}
	return l.client.Key("ratelimit", algorithm, window.Truncate(time.Microsecond).String(), key)
}

// Stats returns the counters.
func (l *Limiter) Stats() Stats {
	return Stats{
		Allowed: l.allowed.Load(), Denied: l.denied.Load(),
		FailedOpen: l.failedOpen.Load(), FailedClosed: l.failedClosed.Load(),
	}
}
