package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

// Defaults of the zero fields of [Config].
const (
	DefaultLockTTL       = 3 * time.Second
	DefaultLoadTimeout   = 30 * time.Second
	DefaultBypassTimeout = 500 * time.Millisecond
)

// batch is how many keys of GetMany and SetMany go to the server at once: more
// would hold up its other clients.
const batch = 500

// ErrNotFound is what a loader returns, wrapped or not, when the thing does not
// exist. [Config.NegativeTTL] says for how long that is remembered.
var ErrNotFound = errors.New("not found")

// OnError says what a read does when Redis fails.
type OnError int

// The choices. There is no default: a service that fails with its cache and one
// that sends its whole load to the database are both bad surprises.
const (
	// Fail returns the error: for a source that would not bear the whole load.
	Fail OnError = iota + 1
	// Bypass goes on as if the key were missing, and counts the error in
	// [Stats].Errors. GetOrLoad still runs the loader once for all callers of
	// this process.
	Bypass
)

// Config says how a cache keeps its values.
type Config struct {
	// TTL is how long a value is kept, at least 1 ms. Required: how old may an
	// answer be?
	TTL time.Duration

	// Jitter shortens every TTL by a random part of it, from 0 up to this
	// fraction, so that values stored together do not expire together. From 0 to
	// less than 1. Default 0.
	Jitter float64

	// NegativeTTL is how long GetOrLoad remembers that a loader returned
	// [ErrNotFound]. Default 0: the next caller asks the loader again.
	NegativeTTL time.Duration

	// OnError is what reads do when Redis fails: [Fail] or [Bypass]. Required.
	// Set, SetMany and Delete always return their error: a lost one leaves the
	// old value to be read until its TTL ends, and only the caller knows whether
	// that matters.
	OnError OnError

	// Timeout bounds each answer of Redis, retries included. Default: 500 ms with
	// Bypass, because a hung cache must not cost more than none; with Fail only
	// the context and the client's own timeouts count.
	Timeout time.Duration

	// LockTTL is how long the lock of GetOrLoad outlives a process that died; one
	// that lives renews it. At least 10 ms. Default 3 s.
	LockTTL time.Duration

	// LoadTimeout bounds one run of a loader, and how long a process waits for
	// the load of another one. Default 30 s.
	LoadTimeout time.Duration
}

func (c Config) withDefaults() (Config, error) {
	if c.Timeout == 0 && c.OnError == Bypass {
		c.Timeout = DefaultBypassTimeout
	}
	if c.LockTTL == 0 {
		c.LockTTL = DefaultLockTTL
	}
	if c.LoadTimeout == 0 {
		c.LoadTimeout = DefaultLoadTimeout
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("cache config: "+format, args...)) }
	if c.TTL < time.Millisecond {
		bad("TTL %v: say how long a value may be kept, at least 1ms", c.TTL)
	}
	if !(c.Jitter >= 0 && c.Jitter < 1) { // false for NaN as well
		bad("Jitter %v: want a fraction of the TTL, from 0 to less than 1", c.Jitter)
	}
	if c.NegativeTTL != 0 && c.NegativeTTL < time.Millisecond {
		bad("NegativeTTL %v: want 0 (do not remember) or at least 1ms", c.NegativeTTL)
	}
	if c.OnError != Fail && c.OnError != Bypass {
		bad("OnError is not set: choose cache.Fail or cache.Bypass for the time when Redis is down")
	}
	if c.Timeout < 0 {
		bad("Timeout %v: must not be negative", c.Timeout)
	}
	if c.LockTTL < 10*time.Millisecond {
		bad("LockTTL %v: want at least 10ms", c.LockTTL)
	}
	if c.LoadTimeout < time.Millisecond {
		bad("LoadTimeout %v: want at least 1ms", c.LoadTimeout)
	}
	return c, errors.Join(errs...)
}

// Option changes one call.
type Option struct{ ttl time.Duration }

// TTL keeps the values of this call for d, at least 1 ms, instead of
// [Config.TTL]. [Config.Jitter] still applies.
func TTL(d time.Duration) Option { return Option{ttl: d} }

// Stats counts what a cache did since the process started. The numbers only
// grow.
type Stats struct {
	Hits         uint64 // values found, remembered absences included
	Misses       uint64 // values not found
	Loads        uint64 // runs of a loader
	LoadErrors   uint64 // loaders that failed; ErrNotFound is no failure
	LockWaits    uint64 // loads that first waited for another process
	DecodeErrors uint64 // values that could not be decoded; also counted in Misses
	Errors       uint64 // failed calls of Redis
}

// Cache keeps values of type T under one name. It is safe for concurrent use.
type Cache[T any] struct {
	client *rediskit.Client
	prefix string
	cfg    Config

	mu      sync.Mutex // owns flights
	flights map[string]*flight
	wg      sync.WaitGroup

	hits, misses, loads, loadErrors, lockWaits, decodeErrors, errors atomic.Uint64
}

// cacheName leaves out the colon: "a:b" with key "c" would meet "a" with key
// "b:c". Braces would change the cluster slot of every key.
var cacheName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// reserved are the names under which other packages keep their keys.
var reserved = []string{"session", "ratelimit"}

// Of returns the cache called name, whose keys are {service}:{name}:{key}. The
// name is 1 to 63 lower-case letters, digits, - and _, beginning with a letter.
// Two caches with the same name and service share their values, so they need
// the same T. Of does not talk to the server.
func Of[T any](client *rediskit.Client, name string, cfg Config) (*Cache[T], error) {
	cfg, err := cfg.withDefaults()
	if !cacheName.MatchString(name) || slices.Contains(reserved, name) {
		err = errors.Join(err, fmt.Errorf("cache config: name %q: want 1 to 63 lower-case letters, digits, - and _,"+
			" beginning with a letter, and not one of %q", name, reserved))
	}
	if client == nil || client.Service() == "" {
		err = errors.Join(err, errors.New("cache config: the client has no service: set SERVICE_NAME (rediskit.Config.Service)"))
	}
	if err != nil {
		return nil, err
	}
	return &Cache[T]{client: client, prefix: client.Key(name, ""), cfg: cfg, flights: make(map[string]*flight)}, nil
}

// Stats returns the counters.
func (c *Cache[T]) Stats() Stats {
	return Stats{
		Hits:         c.hits.Load(),
		Misses:       c.misses.Load(),
		Loads:        c.loads.Load(),
		LoadErrors:   c.loadErrors.Load(),
		LockWaits:    c.lockWaits.Load(),
		DecodeErrors: c.decodeErrors.Load(),
		Errors:       c.errors.Load(),
	}
}

// Get returns the value of key and whether there is one. A missing value, one
// that cannot be decoded and a remembered absence are not errors. With [Bypass]
// the only error is that of ctx.
func (c *Cache[T]) Get(ctx context.Context, key string) (value T, found bool, err error) {
	if err := checkKey(key); err != nil {
		return value, false, err
	}
	value, what, err := c.read(ctx, c.prefix+key)
	return value, what == isValue, err
}

// GetMany returns the values found among keys. In a cluster the keys are asked
// for in one pipeline for each node.
func (c *Cache[T]) GetMany(ctx context.Context, keys ...string) (map[string]T, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	found := make(map[string]T, len(keys))
	for part := range slices.Chunk(keys, batch) {
		raws, err := c.fetch(ctx, part)
		if err = c.failed(ctx, "get many from cache", err); err != nil {
			return nil, err
		}
		if raws == nil {
			c.misses.Add(uint64(len(part)))
			continue
		}
		for i, raw := range raws {
			if value, what := c.decode(raw); what == isValue {
				found[part[i]] = value
			}
		}
	}
	return found, nil
}

// fetch returns what is stored under keys, nothing where nothing is.
func (c *Cache[T]) fetch(ctx context.Context, keys []string) ([][]byte, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	raws := make([][]byte, len(keys))
	if !c.client.Config().Cluster {
		full := make([]string, len(keys))
		for i, key := range keys {
			full[i] = c.prefix + key
		}
		values, err := c.client.MGet(ctx, full...).Result()
		if err != nil {
			return nil, err
		}
		for i, value := range values {
			text, _ := value.(string) // nil if missing
			raws[i] = []byte(text)
		}
		return raws, nil
	}
	pipe := c.client.Pipeline()
	cmds := make([]*redis.StringCmd, len(keys))
	for i, key := range keys {
		cmds[i] = pipe.Get(ctx, c.prefix+key)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	for i, cmd := range cmds {
		raw, err := cmd.Bytes()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, err // Exec returns only the first error, which may be a miss
		}
		raws[i] = raw
	}
	return raws, nil
}

// Set stores value under key.
func (c *Cache[T]) Set(ctx context.Context, key string, value T, opts ...Option) error {
	ttl, err := c.ttl(opts)
	if err = errors.Join(err, checkKey(key)); err != nil {
		return err
	}
	raw, err := encode(value)
	if err != nil {
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	return c.wrote("set in cache", c.client.Set(ctx, c.prefix+key, raw, c.jittered(ttl)).Err())
}

// SetMany stores values in pipelines. It is not atomic: after an error some may
// be stored.
func (c *Cache[T]) SetMany(ctx context.Context, values map[string]T, opts ...Option) error {
	ttl, err := c.ttl(opts)
	if err != nil {
		return err
	}
	raws := make(map[string][]byte, len(values))
	keys := make([]string, 0, len(values))
	for key, value := range values {
		raw, err := encode(value)
		if err = errors.Join(checkKey(key), err); err != nil {
			return err
		}
		raws[key] = raw
		keys = append(keys, key)
	}
	for part := range slices.Chunk(keys, batch) {
		if err := c.setPart(ctx, part, raws, ttl); err != nil {
			return c.wrote("set many in cache", err)
		}
	}
	return nil
}

func (c *Cache[T]) setPart(ctx context.Context, keys []string, raws map[string][]byte, ttl time.Duration) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	pipe := c.client.Pipeline()
	for _, key := range keys {
		pipe.Set(ctx, c.prefix+key, raws[key], c.jittered(ttl))
	}
	_, err := pipe.Exec(ctx)
	return err
}

// Delete removes keys, and remembered absences of them. Call it after the change
// of the source: a load that is under way then is not kept, here or in another
// process. Deleting what is not there is not an error.
func (c *Cache[T]) Delete(ctx context.Context, keys ...string) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	for part := range slices.Chunk(keys, batch) {
		if err := c.deletePart(ctx, part); err != nil {
			return c.wrote("delete from cache", err)
		}
	}
	return nil
}

func (c *Cache[T]) deletePart(ctx context.Context, keys []string) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if len(keys) == 1 {
		c.forget(c.prefix+keys[0], nil)
		return c.client.Del(ctx, c.prefix+keys[0]).Err()
	}
	pipe := c.client.Pipeline()
	for _, key := range keys {
		c.forget(c.prefix+key, nil)
		pipe.Del(ctx, c.prefix+key)
	}
	_, err := pipe.Exec(ctx)
	return err
}

// content is what a key holds.
type content int

const (
	isMissing content = iota
	isValue
	isAbsence // a remembered ErrNotFound
	isUnknown // Redis failed and is bypassed
)

// JSON begins with neither of these, so what is stored needs no envelope and
// other programs can read it.
const (
	absence  = "!absent"
	lockSign = "!lock:"
)

func isLock(raw []byte) bool {
	return len(raw) > len(lockSign) && string(raw[:len(lockSign)]) == lockSign
}

func (c *Cache[T]) read(ctx context.Context, full string) (value T, what content, err error) {
	bounded, cancel := c.bound(ctx)
	defer cancel()
	raw, err := c.client.Get(bounded, full).Bytes()
	if err != nil && !errors.Is(err, redis.Nil) {
		c.misses.Add(1)
		return value, isUnknown, c.failed(ctx, "get from cache", err)
	}
	value, what = c.decode(raw)
	return value, what, nil
}

// decode also counts.
func (c *Cache[T]) decode(raw []byte) (value T, what content) {
	if string(raw) == absence {
		c.hits.Add(1)
		return value, isAbsence
	}
	if len(raw) > 0 && !isLock(raw) {
		if err := json.Unmarshal(raw, &value); err == nil {
			c.hits.Add(1)
			return value, isValue
		}
		c.decodeErrors.Add(1)
		value = *new(T) // it may be half filled
	}
	c.misses.Add(1)
	return value, isMissing
}

// bound applies Config.Timeout.
func (c *Cache[T]) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.cfg.Timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.cfg.Timeout)
}

// failed decides what the error of a read means for the caller, whose own
// context is ctx.
func (c *Cache[T]) failed(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	c.errors.Add(1)
	if c.cfg.OnError == Bypass {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// wrote counts and wraps the error of a write.
func (c *Cache[T]) wrote(what string, err error) error {
	if err == nil {
		return nil
	}
	c.errors.Add(1)
	return fmt.Errorf("%s: %w", what, err)
}

func (c *Cache[T]) ttl(opts []Option) (time.Duration, error) {
	ttl := c.cfg.TTL
	for _, opt := range opts {
		ttl = opt.ttl
	}
	if ttl < time.Millisecond {
		return 0, fmt.Errorf("cache: TTL %v: want at least 1ms", ttl)
	}
	return ttl, nil
}

// jittered never returns less than 1 ms, which would mean "for ever".
func (c *Cache[T]) jittered(ttl time.Duration) time.Duration {
	if most := time.Duration(float64(ttl) * c.cfg.Jitter); most > 0 {
		ttl -= rand.N(most)
	}
	return max(ttl, time.Millisecond)
}

func encode[T any](value T) ([]byte, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		// The cause may quote the value.
		return nil, fmt.Errorf("encode for cache: %T has no JSON form", value)
	}
	return raw, nil
}

func checkKey(key string) error {
	if key == "" {
		return errors.New("cache: the key is empty")
	}
	return nil
}

func checkKeys(keys []string) error {
	if slices.Contains(keys, "") {
		return errors.New("cache: a key is empty")
	}
	return nil
}
