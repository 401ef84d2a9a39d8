package cache

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long a load waits before it asks again whether another process is done:
// short at first, because most loads take milliseconds.
const (
	minWait = 2 * time.Millisecond
	maxWait = 50 * time.Millisecond
)

var (
	// acquire returns what the key holds, or nil when the caller now holds the
	// lock. A retry after a lost reply finds its own token. ARGV[3] is a value
	// that the caller could not decode: it counts as missing.
	acquire = redis.NewScript(`
local v = redis.call('GET', KEYS[1])
if v and v ~= ARGV[1] and v ~= ARGV[3] then return v end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false`)

	// settle replaces the caller's own lock by a value, or by nothing.
	settle = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

	// extend renews the caller's own lock.
	extend = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)
)

// errExited is what callers get when a loader ended its goroutine.
var errExited = errors.New("load for cache: the loader called runtime.Goexit")

// flight is one load that callers of this process share. done is closed after
// the other fields are set.
type flight struct {
	done     chan struct{}
	raw      []byte
	err      error
	panicked *panicError
}

// panicError is what the callers of a loader that panicked panic with.
type panicError struct {
	value any
	stack []byte
}

// Error shows the loader's stack, since the caller's does not lead there.
func (p *panicError) Error() string {
	return fmt.Sprintf("cache loader panicked: %v\n\n%s", p.value, p.stack)
}

// Unwrap returns what the loader panicked with if that is an error.
func (p *panicError) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// GetOrLoad returns the value of key, loading and storing it if it is missing.
// All callers that want the same missing key at the same time, in all processes
// that use the cache, share one run of load, with the first caller's options.
//
// The error of load is returned to all of these callers and not kept, except
// [ErrNotFound], which is kept for [Config.NegativeTTL] and then returned
// without asking load. A panic of load becomes a panic of its callers.
//
// A caller whose ctx ends gets its error at once, while the load goes on for the
// others and for the cache: load is given a context with the values of the first
// caller's, without its end, that lasts for [Config.LoadTimeout]. A caller that
// changed the source should [Cache.Delete] the key first; a load that another
// process began before that may still answer its own callers.
func (c *Cache[T]) GetOrLoad(
	ctx context.Context, key string, load func(ctx context.Context) (T, error), opts ...Option,
) (value T, err error) {
	ttl, err := c.ttl(opts)
	if err = errors.Join(err, checkKey(key)); err != nil {
		return value, err
	}
	full := c.prefix + key
	value, what, err := c.read(ctx, full)
	switch {
	case err != nil || what == isValue:
		return value, err
	case what == isAbsence:
		return value, ErrNotFound
	}
	f := c.join(ctx, full, ttl, load, what == isUnknown)
	select {
	case <-f.done:
	case <-ctx.Done():
		return value, fmt.Errorf("load for cache: %w", context.Cause(ctx))
	}
	if f.panicked != nil {
		panic(f.panicked)
	}
	if f.err != nil {
		return value, f.err
	}
	// Each caller decodes its own copy: callers that share a map or a pointer
	// would race, and a loaded value must not differ from a cached one.
	if err := json.Unmarshal(f.raw, &value); err != nil {
		return *new(T), fmt.Errorf("load for cache: %T cannot be read back from its JSON", value)
	}
	return value, nil
}

// Wait returns when no load is under way. Loads outlive callers that gave up;
// a service that ends calls Wait after its last GetOrLoad and before it closes
// the client.
func (c *Cache[T]) Wait() { c.wg.Wait() }

// join returns the flight of key, starting it if there is none. alone means that
// Redis has just failed and is bypassed.
func (c *Cache[T]) join(
	ctx context.Context, full string, ttl time.Duration, load func(context.Context) (T, error), alone bool,
) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[full]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{}), err: errExited}
	c.flights[full] = f
	ctx = context.WithoutCancel(ctx)
	c.wg.Go(func() {
		defer close(f.done)
		defer c.forget(full, f)
		f.raw, f.err = c.fly(ctx, f, full, ttl, load, alone)
	})
	return f
}

// forget lets the next caller of key start a new flight, if f is the present one
// or nil.
func (c *Cache[T]) forget(full string, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil || c.flights[full] == f {
		delete(c.flights, full)
	}
}

// fly returns the value that is stored by now, or loads it.
func (c *Cache[T]) fly(
	ctx context.Context, f *flight, full string, ttl time.Duration, load func(context.Context) (T, error), alone bool,
) ([]byte, error) {
	token := lockSign + rand.Text()
	owned := false
	if !alone {
		var raw string
		var err error
		raw, owned, err = c.await(ctx, full, token)
		switch {
		case err != nil:
			return nil, err
		case raw == absence:
			return nil, ErrNotFound
		case raw != "":
			return []byte(raw), nil
		}
	}
	var settled string // nothing: give the lock back
	lifetime := ttl
	if owned {
		// Deferred, so that a loader that exits its goroutine gives the lock back.
		defer func() { c.settle(ctx, full, token, settled, lifetime) }()
	}
	loadCtx, cancel := context.WithTimeout(ctx, c.cfg.LoadTimeout)
	defer cancel()
	c.wg.Go(func() { c.keep(loadCtx, f, full, token, owned) })
	value, err := c.call(loadCtx, f, load)
	if err != nil {
		if errors.Is(err, ErrNotFound) && c.cfg.NegativeTTL > 0 {
			settled, lifetime = absence, c.cfg.NegativeTTL
		}
		return nil, err
	}
	out, err := encode(value)
	if err != nil {
		return nil, err
	}
	settled = string(out)
	return out, nil
}

// await returns the stored value, or whether the caller owns the lock. Neither
// means that it should load without: Redis is down and bypassed, or another
// process has loaded for too long.
func (c *Cache[T]) await(ctx context.Context, full, token string) (raw string, owned bool, err error) {
	var undecodable string
	until := time.Now().Add(c.cfg.LoadTimeout)
	waiting := false
	for wait := minWait; ; {
		raw, owned, err = c.acquire(ctx, full, token, undecodable)
		if err != nil || owned {
			return "", owned, c.failed(ctx, "lock in cache", err)
		}
		if time.Now().After(until) {
			return "", false, nil
		}
		if !isLock([]byte(raw)) {
			if raw == absence || json.Unmarshal([]byte(raw), new(T)) == nil {
				return raw, false, nil
			}
			undecodable = raw
			continue
		}
		if !waiting {
			waiting = true
			c.lockWaits.Add(1)
		}
		time.Sleep(wait/2 + mathrand.N(wait))
		wait = min(2*wait, maxWait)
	}
}

func (c *Cache[T]) acquire(ctx context.Context, full, token, undecodable string) (raw string, owned bool, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	raw, err = acquire.Run(ctx, c.client, []string{full}, token, c.cfg.LockTTL.Milliseconds(), undecodable).Text()
	if errors.Is(err, redis.Nil) {
		return "", true, nil
	}
	return raw, false, err
}

// settle's error is only counted: the callers have their answer, and the lock
// expires by itself.
func (c *Cache[T]) settle(ctx context.Context, full, token, raw string, ttl time.Duration) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	err := settle.Run(ctx, c.client, []string{full}, token, raw, c.jittered(ttl).Milliseconds()).Err()
	if err != nil {
		c.errors.Add(1)
	}
}

// keep renews the lock until ctx ends: when the load is done, or has taken too
// long. Then it also lets later callers start anew, because a loader that
// ignores its context may never return.
func (c *Cache[T]) keep(ctx context.Context, f *flight, full, token string, owned bool) {
	defer c.forget(full, f)
	tick := time.NewTicker(c.cfg.LockTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !owned {
				continue
			}
			bounded, cancel := c.bound(ctx)
			err := extend.Run(bounded, c.client, []string{full}, token, c.cfg.LockTTL.Milliseconds()).Err()
			cancel()
			if err != nil && ctx.Err() == nil {
				c.errors.Add(1)
			}
		}
	}
}

// call runs load and keeps its panic for the callers.
func (c *Cache[T]) call(ctx context.Context, f *flight, load func(context.Context) (T, error)) (value T, err error) {
	c.loads.Add(1)
	returned := false
	defer func() {
		if !returned {
			if v := recover(); v != nil {
				f.panicked = &panicError{value: v, stack: debug.Stack()}
				err = f.panicked
			}
		}
		if !returned || err != nil && !errors.Is(err, ErrNotFound) {
			c.loadErrors.Add(1)
		}
	}()
	value, err = load(ctx)
	returned = true
	return value, err
}
