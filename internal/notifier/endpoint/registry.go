package endpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/rediskit"
)

const (
	// FailingLimit is how long an endpoint may fail in a row before it is disabled.
	FailingLimit = 5 * 24 * time.Hour
	// failingGap ends a row: two messages that failed with nothing sent in between for
	// longer say nothing about that time. It is twice the longest wait between two
	// tries of a message.
	failingGap = 48 * time.Hour

	// cacheFor is how long a process goes by what it has read.
	cacheFor = 5 * time.Second

	// maxTries bounds the attempts to change an endpoint that others change too.
	maxTries = 10
)

var (
	// ErrNotFound is wrapped if no endpoint has the id.
	ErrNotFound = errors.New("no such endpoint")
	// ErrExists is wrapped by [Registry.Add] if an endpoint has the id.
	ErrExists = errors.New("an endpoint of that id exists")
	// ErrFull is wrapped by [Registry.Add] if there are [MaxEndpoints].
	ErrFull = fmt.Errorf("the registry has %d endpoints: remove some first", MaxEndpoints)
)

// Registry holds the endpoints of a namespace. It is safe for concurrent use.
type Registry struct {
	rdb    redis.UniversalClient
	prefix string // of keys, up to the id
	index  string
	now    func() time.Time

	mu    sync.Mutex // owns what follows
	cache map[string]cached
	// changes counts own writes, so that a read that began before one is not kept.
	changes uint64
}

type cached struct {
	endpoint Endpoint
	until    time.Time
}

// NewRegistry returns the registry of a namespace in rdb. namespace is the
// QUEUE_NAMESPACE of the workers.
func NewRegistry(rdb redis.UniversalClient, namespace string) *Registry {
	tag := ""
	if namespace != "" {
		tag = namespace + ":"
	}
	return &Registry{
		rdb: rdb, prefix: "postroom:endpoint:{" + tag, index: "postroom:endpoints:" + namespace,
		now: time.Now, cache: make(map[string]cached),
	}
}

func (r *Registry) key(id string) string { return r.prefix + id + "}" }

// KEYS[1] the set of ids. ARGV: id, limit. Returns 0 if there is no room.
var enlistScript = redis.NewScript(`
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 and redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('SADD', KEYS[1], ARGV[1])
return 1`)

const now = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

// KEYS[1] the endpoint. ARGV: record. Returns 0 if it exists; the same record is
// go-redis repeating a call whose answer was lost.
var createScript = redis.NewScript(now + `
local had = redis.call('HGET', KEYS[1], 'record')
if had then return had == ARGV[1] and 1 or 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[1], 'created', now)
return 1`)

// ARGV: old record, new record. Returns -1 if there is none, 0 if it is another by now.
var replaceScript = redis.NewScript(`
local had = redis.call('HGET', KEYS[1], 'record')
if not had then return -1 end
if had == ARGV[2] then return 1 end
if had ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2])
return 1`)

// ARGV: reason. Returns 0 if it does not exist. The first reason stays.
var disableScript = redis.NewScript(now + `
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'disabled_at', now) == 1 then redis.call('HSET', KEYS[1], 'disabled_for', ARGV[1]) end
return 1`)

var enableScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'disabled_at', 'disabled_for', 'failing', 'failed')
return 1`)

// ARGV: limit ms, gap ms, reason. Returns 1 if this failure disabled it.
var failScript = redis.NewScript(now + `
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local h = redis.call('HMGET', KEYS[1], 'failing', 'failed', 'disabled_at')
local since = tonumber(h[1] or now)
if not h[2] or now - tonumber(h[2]) > tonumber(ARGV[2]) then since = now end
redis.call('HSET', KEYS[1], 'failing', since, 'failed', now)
if h[3] or now - since < tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'disabled_at', now, 'disabled_for', ARGV[3])
return 1`)

// Add registers e and returns it as it is now: Created is Redis's time, and so are the
// times of keys that have none. The error of an e that makes no sense is that of
// [Endpoint.Validate].
func (r *Registry) Add(ctx context.Context, e Endpoint) (Endpoint, error) {
	if err := e.Validate(); err != nil {
		return Endpoint{}, err
	}
	at, err := r.rdb.Time(ctx).Result()
	if err != nil {
		return Endpoint{}, fmt.Errorf("add endpoint: %w", err)
	}
	e.Keys = slices.Clone(e.Keys)
	for i := range e.Keys {
		if e.Keys[i].Created.IsZero() {
			e.Keys[i].Created = at.Truncate(time.Millisecond)
		}
	}
	record, err := encode(e)
	if err != nil {
		return Endpoint{}, err
	}
	// The id comes first: an id without an endpoint is passed over, an endpoint
	// without its id would be lost.
	room, err := enlistScript.Run(ctx, r.rdb, []string{r.index}, e.ID, MaxEndpoints).Bool()
	if err != nil {
		return Endpoint{}, fmt.Errorf("add endpoint: %w", err)
	}
	if !room {
		return Endpoint{}, fmt.Errorf("add endpoint: %w", ErrFull)
	}
	defer r.forget(e.ID)
	created, err := createScript.Run(ctx, r.rdb, []string{r.key(e.ID)}, record).Bool()
	if err != nil {
		return Endpoint{}, fmt.Errorf("add endpoint: %w", err)
	}
	if !created {
		return Endpoint{}, fmt.Errorf("add endpoint: %w", ErrExists)
	}
	added, _, err := r.load(ctx, e.ID)
	return added, err
}

// Get returns the endpoint as it is now or was at most 5 s ago. Its error wraps
// [ErrNotFound] if there is none.
func (r *Registry) Get(ctx context.Context, id string) (Endpoint, error) {
	r.mu.Lock()
	c, ok := r.cache[id]
	changes := r.changes
	r.mu.Unlock()
	if ok && r.now().Before(c.until) {
		return c.endpoint, nil
	}
	e, _, err := r.load(ctx, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.cache, id)
		return Endpoint{}, err
	}
	if changes == r.changes {
		r.cache[id] = cached{endpoint: e, until: r.now().Add(cacheFor)}
	}
	return e, nil
}

// forget drops what is cached of an endpoint that this process has changed.
func (r *Registry) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.cache, id)
	r.changes++
}

// load returns an endpoint and its record.
func (r *Registry) load(ctx context.Context, id string) (Endpoint, string, error) {
	if err := CheckID(id); err != nil {
		return Endpoint{}, "", fmt.Errorf("read endpoint: %w: %w", ErrNotFound, err)
	}
	fields, err := r.rdb.HGetAll(ctx, r.key(id)).Result()
	if err != nil {
		return Endpoint{}, "", fmt.Errorf("read endpoint: %w", err)
	}
	e, err := parse(id, fields)
	return e, fields["record"], err
}

func parse(id string, fields map[string]string) (Endpoint, error) {
	record, ok := fields["record"]
	if !ok {
		return Endpoint{}, fmt.Errorf("read endpoint: %w", ErrNotFound)
	}
	e, err := decode(id, record)
	if err != nil {
		return Endpoint{}, err
	}
	e.Created, e.FailingSince = millis(fields["created"]), millis(fields["failing"])
	if at := millis(fields["disabled_at"]); !at.IsZero() {
		e.Disabled = &Disabled{At: at, Reason: fields["disabled_for"]}
	}
	return e, nil
}

// millis returns the time of a field, zero if there is none.
func millis(field string) time.Time {
	ms, err := strconv.ParseInt(field, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// List returns the endpoints in the order of their ids.
func (r *Registry) List(ctx context.Context) ([]Endpoint, error) {
	ids, err := r.rdb.SMembers(ctx, r.index).Result()
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	var list []Endpoint
	slices.Sort(ids)
	for some := range slices.Chunk(ids, 100) {
		replies := make([]*redis.MapStringStringCmd, len(some))
		_, err := r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, id := range some {
				replies[i] = pipe.HGetAll(ctx, r.key(id))
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list endpoints: %w", err)
		}
		for i, id := range some {
			e, err := parse(id, replies[i].Val())
			if errors.Is(err, ErrNotFound) {
				continue // being added or removed
			}
			if err != nil {
				return nil, err
			}
			list = append(list, e)
		}
	}
	return list, nil
}

// Remove takes the endpoint out of the registry.
func (r *Registry) Remove(ctx context.Context, id string) error {
	defer r.forget(id)
	had, err := r.rdb.Del(ctx, r.key(id)).Result()
	if err != nil {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	if err := r.rdb.SRem(ctx, r.index, id).Err(); err != nil {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	if had == 0 {
		return fmt.Errorf("remove endpoint: %w", ErrNotFound)
	}
	return nil
}

// Disable ends sending to the endpoint. reason is for people, one line of at most 200
// bytes; that of an endpoint which is disabled already stays.
func (r *Registry) Disable(ctx context.Context, id, reason string) error {
	if len(reason) > 200 {
		return fmt.Errorf("disable endpoint: the reason has %d bytes, the limit is 200", len(reason))
	}
	return r.change(ctx, "disable endpoint", id, disableScript, reason)
}

// Enable begins sending again, with a clean record.
func (r *Registry) Enable(ctx context.Context, id string) error {
	return r.change(ctx, "enable endpoint", id, enableScript)
}

func (r *Registry) change(ctx context.Context, what, id string, script *redis.Script, args ...any) error {
	defer r.forget(id)
	found, err := script.Run(ctx, r.rdb, []string{r.key(id)}, args...).Bool()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !found {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return nil
}

// RotateKey makes secret the newest key. The others go on signing for grace, or until
// they retire if that is earlier; with no grace they are gone at once. At most
// [MaxKeys] keys stay.
func (r *Registry) RotateKey(ctx context.Context, id string, secret rediskit.Secret, grace time.Duration) (Endpoint, error) {
	if grace < 0 || grace > MaxGrace {
		return Endpoint{}, fmt.Errorf("rotate key: the grace is %s: want 0 to %s", grace, MaxGrace)
	}
	defer r.forget(id)
	for range maxTries {
		e, record, err := r.load(ctx, id)
		if err != nil {
			return Endpoint{}, fmt.Errorf("rotate key: %w", err)
		}
		at, err := r.rdb.Time(ctx).Result()
		if err != nil {
			return Endpoint{}, fmt.Errorf("rotate key: %w", err)
		}
		at = at.Truncate(time.Millisecond)
		keys := []Key{{Secret: secret, Created: at}}
		for _, k := range e.Live(at) {
			if k.Secret == secret {
				continue // go-redis, or the caller, repeats a call whose answer was lost
			}
			if end := at.Add(grace); k.Retires.IsZero() || end.Before(k.Retires) {
				k.Retires = end
			}
			if grace > 0 && len(keys) < MaxKeys {
				keys = append(keys, k)
			}
		}
		e.Keys = keys
		if err := e.Validate(); err != nil {
			return Endpoint{}, fmt.Errorf("rotate key: %w", err)
		}
		changed, err := encode(e)
		if err != nil {
			return Endpoint{}, err
		}
		switch n, err := replaceScript.Run(ctx, r.rdb, []string{r.key(id)}, record, changed).Int(); {
		case err != nil:
			return Endpoint{}, fmt.Errorf("rotate key: %w", err)
		case n < 0:
			return Endpoint{}, fmt.Errorf("rotate key: %w", ErrNotFound)
		case n > 0:
			return e, nil
		}
	}
	return Endpoint{}, errors.New("rotate key: others keep changing this endpoint; try again")
}

// Delivered records that e, as Get returned it, took a message: it is not failing. It
// asks Redis only if e was failing.
func (r *Registry) Delivered(ctx context.Context, e Endpoint) error {
	if e.FailingSince.IsZero() {
		return nil
	}
	defer r.forget(e.ID)
	if err := r.rdb.HDel(ctx, r.key(e.ID), "failing", "failed").Err(); err != nil {
		return fmt.Errorf("record delivery: %w", err)
	}
	return nil
}

// Failed records that e did not take a message, and reports whether that was one too
// many: after [FailingLimit] without any delivery, it is disabled. A row of failures
// ends with a delivery, or when nothing was sent for 48 hours.
func (r *Registry) Failed(ctx context.Context, e Endpoint) (disabled bool, err error) {
	disabled, err = failScript.Run(ctx, r.rdb, []string{r.key(e.ID)},
		FailingLimit.Milliseconds(), failingGap.Milliseconds(), DisabledFailing).Bool()
	if err != nil {
		return false, fmt.Errorf("record failure: %w", err)
	}
	if disabled || e.FailingSince.IsZero() {
		r.forget(e.ID)
	}
	return disabled, nil
}
