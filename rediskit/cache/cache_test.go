package cache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
)

type user struct {
	Name string `json:"name"`
	Age  int    `json:"age"`
}

var config = cache.Config{TTL: time.Minute, OnError: cache.Fail}

// of returns the cache "user" of c.
func of[T any](tb testing.TB, c *rediskit.Client, cfg cache.Config) *cache.Cache[T] {
	tb.Helper()
	users, err := cache.Of[T](c, "user", cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(users.Wait)
	return users
}

// another opens a further client with the keys of c, as another process would.
func another(tb testing.TB, c *rediskit.Client) *rediskit.Client {
	tb.Helper()
	other, err := rediskit.Open(tb.Context(), c.Config())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = other.Close() })
	return other
}

// serve starts a server of its own for a test that kills it.
func serve(t *testing.T) (*testenv.RedisServer, *rediskit.Client) {
	t.Helper()
	srv := testenv.Redis(t)
	cfg := srv.Config()
	cfg.Service, cfg.MaxRetries = "accounts-service", -1
	c, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return srv, c
}

// eventually polls until ok: the deadline is only for a broken program.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never happened: " + what)
		}
	}
}

func TestOf_config(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, cache, want string
		change            func(*cache.Config)
	}{
		{name: "good", cache: "user"},
		{name: "no TTL", cache: "user", want: "TTL 0s", change: func(c *cache.Config) { c.TTL = 0 }},
		{name: "TTL that Redis would round to nothing", cache: "user", want: "TTL 1µs", change: func(c *cache.Config) { c.TTL = time.Microsecond }},
		{name: "no choice for errors", cache: "user", want: "OnError", change: func(c *cache.Config) { c.OnError = 0 }},
		{name: "unknown choice for errors", cache: "user", want: "OnError", change: func(c *cache.Config) { c.OnError = 3 }},
		{name: "Jitter of everything", cache: "user", want: "Jitter 1:", change: func(c *cache.Config) { c.Jitter = 1 }},
		{name: "Jitter NaN", cache: "user", want: "Jitter NaN", change: func(c *cache.Config) { c.Jitter = math.NaN() }},
		{name: "negative NegativeTTL", cache: "user", want: "NegativeTTL -1s", change: func(c *cache.Config) { c.NegativeTTL = -time.Second }},
		{name: "negative Timeout", cache: "user", want: "Timeout -1s", change: func(c *cache.Config) { c.Timeout = -time.Second }},
		{name: "short LockTTL", cache: "user", want: "LockTTL 1ms", change: func(c *cache.Config) { c.LockTTL = time.Millisecond }},
		{name: "negative LoadTimeout", cache: "user", want: "LoadTimeout -1s", change: func(c *cache.Config) { c.LoadTimeout = -time.Second }},
		{name: "colon in the name", cache: "user:x", want: "name"},
		{name: "hash tag in the name", cache: "{user}", want: "name"},
		{name: "no name", want: "name"},
		{name: "name of the sessions", cache: "session", want: "name"},
		{name: "name of the limits", cache: "ratelimit", want: "name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := config
			if tt.change != nil {
				tt.change(&cfg)
			}
			_, err := cache.Of[user](client, tt.cache, cfg)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestOf_needsService(t *testing.T) {
	t.Parallel()
	cfg := client.Config()
	cfg.Service = ""
	nameless, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nameless.Close() }()
	for _, c := range []*rediskit.Client{nil, nameless} {
		if _, err := cache.Of[user](c, "user", config); err == nil || !strings.Contains(err.Error(), "SERVICE_NAME") {
			t.Errorf("error %v, want one that names SERVICE_NAME", err)
		}
	}
}

func TestCache_GetSetDelete(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, users := t.Context(), of[user](t, c, config)
		if got, found, err := users.Get(ctx, "123"); err != nil || found || got != (user{}) {
			t.Fatalf("a missing key gave %v, %v, %v", got, found, err)
		}
		ada := user{Name: "Ada", Age: 36}
		if err := users.Set(ctx, "123", ada); err != nil {
			t.Fatal(err)
		}
		if got, found, err := users.Get(ctx, "123"); err != nil || !found || got != ada {
			t.Fatalf("got %v, %v, %v", got, found, err)
		}
		// Plain JSON under the key that the old module used.
		raw, err := c.Get(ctx, c.Service()+":user:123").Result()
		if err != nil || raw != `{"name":"Ada","age":36}` {
			t.Errorf("stored %q, %v", raw, err)
		}
		if err := users.Delete(ctx, "123"); err != nil {
			t.Fatal(err)
		}
		if _, found, err := users.Get(ctx, "123"); err != nil || found {
			t.Fatalf("found after Delete: %v, %v", found, err)
		}
		if err := users.Delete(ctx, "123", "never there"); err != nil {
			t.Errorf("deleting what is missing: %v", err)
		}
		want := cache.Stats{Hits: 1, Misses: 2}
		if got := users.Stats(); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

func TestCache_Set_lifetime(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx := t.Context()
		jittered := config
		jittered.Jitter = 0.5
		set := func(users *cache.Cache[int], key string, opts ...cache.Option) error {
			return users.Set(ctx, key, 1, opts...)
		}
		setMany := func(users *cache.Cache[int], key string, opts ...cache.Option) error {
			return users.SetMany(ctx, map[string]int{key: 1}, opts...)
		}
		load := func(users *cache.Cache[int], key string, opts ...cache.Option) error {
			_, err := users.GetOrLoad(ctx, key, func(context.Context) (int, error) { return 1, nil }, opts...)
			return err
		}
		for name, store := range map[string]func(*cache.Cache[int], string, ...cache.Option) error{"Set": set, "SetMany": setMany, "GetOrLoad": load} {
			check := func(what string, cfg cache.Config, least, most time.Duration, opts ...cache.Option) {
				t.Helper()
				seen := make(map[time.Duration]bool)
				for i := range 20 {
					key := fmt.Sprint(name, what, i)
					if err := store(of[int](t, c, cfg), key, opts...); err != nil {
						t.Fatal(err)
					}
					left := c.PTTL(ctx, c.Key("user", key)).Val()
					// A minute for what a busy machine takes between the two calls.
					if left > most || left < least-time.Minute {
						t.Errorf("%s, %s: %v left, want %v to %v", name, what, left, least, most)
					}
					seen[left.Round(time.Minute)] = true
				}
				if least < most && len(seen) < 3 {
					t.Errorf("%s, %s: lifetimes %v are not spread", name, what, slices.Collect(maps.Keys(seen)))
				}
			}
			hour := cache.Config{TTL: time.Hour, OnError: cache.Fail}
			check("TTL", hour, time.Hour, time.Hour)
			check("TTL of the call", hour, 3*time.Hour, 3*time.Hour, cache.TTL(3*time.Hour))
			check("Jitter", jittered, 50*time.Hour, 100*time.Hour, cache.TTL(100*time.Hour))
			if err := store(of[int](t, c, config), "never", cache.TTL(0)); err == nil {
				t.Errorf("%s: stored without a time to live", name)
			}
			if err := store(of[int](t, c, config), ""); err == nil {
				t.Errorf("%s: stored without a key", name)
			}
		}
		if n := c.Exists(ctx, c.Key("user", "never")).Val(); n != 0 {
			t.Error("a refused TTL left a key")
		}
	})
}

func TestCache_expiry(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		users := of[int](t, c, config)
		if err := users.Set(t.Context(), "1", 1, cache.TTL(20*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the value expired", func() bool {
			_, found, err := users.Get(t.Context(), "1")
			return err == nil && !found
		})
	})
}

func TestCache_many(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, numbers := t.Context(), of[int](t, c, config)
		values := make(map[string]int)
		for i := range 1201 { // three batches, every slot range of a cluster
			values[strconv.Itoa(i)] = i
		}
		if err := numbers.SetMany(ctx, values); err != nil {
			t.Fatal(err)
		}
		keys := slices.AppendSeq([]string{"missing", "7", "7"}, maps.Keys(values))
		got, err := numbers.GetMany(ctx, keys...)
		if err != nil || !maps.Equal(got, values) {
			t.Fatalf("got %d values, %v; want %d", len(got), err, len(values))
		}
		if s := numbers.Stats(); s.Hits != 1203 || s.Misses != 1 {
			t.Errorf("stats %+v, want 1203 hits and 1 miss", s)
		}
		if err := numbers.Delete(ctx, keys...); err != nil {
			t.Fatal(err)
		}
		if got, err := numbers.GetMany(ctx, keys...); err != nil || len(got) != 0 {
			t.Errorf("%d values after Delete, %v", len(got), err)
		}
		if got, err := numbers.GetMany(ctx); err != nil || len(got) != 0 {
			t.Errorf("no keys gave %v, %v", got, err)
		}
		if err := errors.Join(numbers.SetMany(ctx, nil), numbers.Delete(ctx)); err != nil {
			t.Error(err)
		}
		if _, err := numbers.GetMany(ctx, "1", ""); err == nil {
			t.Error("GetMany took an empty key")
		}
		if err := numbers.SetMany(ctx, map[string]int{"": 1}); err == nil {
			t.Error("SetMany took an empty key")
		}
		if err := numbers.Delete(ctx, ""); err == nil {
			t.Error("Delete took an empty key")
		}
	})
}

func TestCache_keysWithBraces(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, values := t.Context(), of[string](t, c, config)
		for _, key := range []string{"{a}b", "a}b", "a{b", "a{}b", "}{", "a b\r\nc", "\x00", "ключ", "!lock:x"} {
			for range 2 {
				got, err := values.GetOrLoad(ctx, key, func(context.Context) (string, error) { return key, nil })
				if err != nil || got != key {
					t.Errorf("GetOrLoad(%q) = %q, %v", key, got, err)
				}
			}
		}
		if n := values.Stats().Loads; n != 9 {
			t.Errorf("%d loads, want 9", n)
		}
	})
}

func TestCache_undecodable(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, users := t.Context(), of[user](t, c, config)
		for i, raw := range []string{`{"name":1}`, `{"name":"half`, `"x"`, `not JSON`, `!`, `!lock:`, `{"name":"Ada","age":"old"}`} {
			key := strconv.Itoa(i)
			if err := c.Set(ctx, c.Key("user", key), raw, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
			before := users.Stats()
			if got, found, err := users.Get(ctx, key); err != nil || found || got != (user{}) {
				t.Errorf("%s: Get = %v, %v, %v; want a miss", raw, got, found, err)
			}
			if got, err := users.GetMany(ctx, key); err != nil || len(got) != 0 {
				t.Errorf("%s: GetMany = %v, %v; want a miss", raw, got, err)
			}
			after := users.Stats()
			if after.DecodeErrors != before.DecodeErrors+2 || after.Misses != before.Misses+2 {
				t.Errorf("%s: stats %+v after %+v", raw, after, before)
			}
			ada := user{Name: "Ada"}
			got, err := users.GetOrLoad(ctx, key, func(context.Context) (user, error) { return ada, nil })
			if err != nil || got != ada {
				t.Errorf("%s: GetOrLoad = %v, %v", raw, got, err)
			}
			if got, found, err := users.Get(ctx, key); err != nil || !found || got != ada {
				t.Errorf("%s: not replaced: %v, %v, %v", raw, got, found, err)
			}
		}
	})
}

func TestCache_values(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		ctx, values := t.Context(), of[any](t, c, config)
		for _, want := range []any{nil, "", 0.0, false, "!absent", "null"} {
			if err := values.Set(ctx, "x", want); err != nil {
				t.Fatal(err)
			}
			if got, found, err := values.Get(ctx, "x"); err != nil || !found || got != want {
				t.Errorf("stored %v, got %v, %v, %v", want, got, found, err)
			}
		}
	})
}

func TestCache_errorsHideKeysAndValues(t *testing.T) {
	t.Parallel()
	srv, c := serve(t)
	ctx, users := t.Context(), of[any](t, c, config)
	const key, value = "ada@example.org", "diagnosis"
	unfit := map[string]any{value: func() {}}
	load := func(v any, err error) func(context.Context) (any, error) {
		return func(context.Context) (any, error) { return v, err }
	}
	_, loadErr := users.GetOrLoad(ctx, key, load(unfit, nil))
	errs := []error{users.Set(ctx, key, unfit), users.SetMany(ctx, map[string]any{key: unfit}), loadErr}
	if err := c.LPush(ctx, c.Key("user", key), value).Err(); err != nil { // a key of another type
		t.Fatal(err)
	}
	all := func() {
		_, _, getErr := users.Get(ctx, key)
		_, manyErr := users.GetMany(ctx, key)
		_, loadErr := users.GetOrLoad(ctx, key, load(value, nil))
		if getErr == nil || loadErr == nil {
			t.Error("reading succeeded")
		}
		errs = append(errs, getErr, manyErr, loadErr)
	}
	all()
	srv.Kill()
	all()
	errs = append(errs, users.Set(ctx, key, value), users.SetMany(ctx, map[string]any{key: value}), users.Delete(ctx, key), users.Delete(ctx, key, key))
	for i, err := range errs {
		// MGET answers nothing for a key of another type.
		if err == nil && i != 4 {
			t.Errorf("call %d succeeded", i)
		}
		if err != nil && (strings.Contains(err.Error(), key) || strings.Contains(err.Error(), value)) {
			t.Errorf("call %d tells the key or the value: %v", i, err)
		}
	}
}

func TestCache_redisDown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		breaks func(*testenv.RedisServer)
		mend   func(*testenv.RedisServer)
	}{
		{"killed", (*testenv.RedisServer).Kill, (*testenv.RedisServer).Restart},
		{"frozen", (*testenv.RedisServer).Pause, (*testenv.RedisServer).Resume},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv, c := serve(t)
			ctx := t.Context()
			cfg := cache.Config{TTL: time.Minute, OnError: cache.Fail, Timeout: 100 * time.Millisecond}
			fail := of[int](t, c, cfg)
			cfg.OnError = cache.Bypass
			bypass := of[int](t, c, cfg)
			one := func(context.Context) (int, error) { return 1, nil }
			if err := fail.Set(ctx, "1", 5); err != nil {
				t.Fatal(err)
			}
			tt.breaks(srv)

			_, _, getErr := fail.Get(ctx, "1")
			_, manyErr := fail.GetMany(ctx, "1")
			_, loadErr := fail.GetOrLoad(ctx, "1", one)
			for i, err := range []error{getErr, manyErr, loadErr} {
				if err == nil || errors.Is(err, cache.ErrNotFound) {
					t.Errorf("Fail, read %d: error %v", i, err)
				}
			}
			if s := fail.Stats(); s.Errors != 3 || s.Loads != 0 {
				t.Errorf("Fail: stats %+v, want 3 errors and no load", s)
			}

			if got, found, err := bypass.Get(ctx, "1"); err != nil || found {
				t.Errorf("Bypass: Get = %v, %v, %v; want a miss", got, found, err)
			}
			if got, err := bypass.GetMany(ctx, "1"); err != nil || len(got) != 0 {
				t.Errorf("Bypass: GetMany = %v, %v; want nothing", got, err)
			}
			if got, err := bypass.GetOrLoad(ctx, "1", one); err != nil || got != 1 {
				t.Errorf("Bypass: GetOrLoad = %v, %v", got, err)
			}
			if s := bypass.Stats(); s.Errors != 3 || s.Loads != 1 || s.Misses != 3 {
				t.Errorf("Bypass: stats %+v, want 3 errors and one load", s)
			}

			for name, users := range map[string]*cache.Cache[int]{"Fail": fail, "Bypass": bypass} {
				for i, err := range []error{users.Set(ctx, "1", 2), users.SetMany(ctx, map[string]int{"1": 2}), users.Delete(ctx, "1")} {
					if err == nil {
						t.Errorf("%s: write %d was lost silently", name, i)
					}
				}
				ended, cancel := context.WithCancel(ctx)
				cancel()
				if _, _, err := users.Get(ended, "1"); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: Get of a caller that is gone: %v", name, err)
				}
				if _, err := users.GetOrLoad(ended, "1", one); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: GetOrLoad of a caller that is gone: %v", name, err)
				}
			}

			tt.mend(srv)
			eventually(t, "writing after the repair", func() bool { return fail.Set(ctx, "2", 7) == nil })
			if got, err := bypass.GetOrLoad(ctx, "2", one); err != nil || got != 7 {
				t.Errorf("after the repair: %v, %v", got, err)
			}
		})
	}
}

// Only the cache's own timeout can free a caller here.
func TestCache_bypassHungServer(t *testing.T) {
	t.Parallel()
	srv, first := serve(t)
	cfg := first.Config()
	cfg.ReadTimeout = time.Hour
	c, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	numbers := of[int](t, c, cache.Config{TTL: time.Minute, OnError: cache.Bypass})
	srv.Pause()
	got, err := numbers.GetOrLoad(t.Context(), "1", func(context.Context) (int, error) { return 1, nil })
	if err != nil || got != 1 || numbers.Stats().Errors != 1 {
		t.Errorf("got %v, %v, stats %+v", got, err, numbers.Stats())
	}
}

func TestCache_GetOrLoad_bypassSharesLoad(t *testing.T) {
	t.Parallel()
	srv, c := serve(t)
	cfg := config
	cfg.OnError = cache.Bypass
	users := of[int](t, c, cfg)
	srv.Kill()
	const callers = 100
	load := func(context.Context) (int, error) {
		eventually(t, "all callers missed", func() bool { return users.Stats().Misses == callers })
		return 1, nil
	}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			if got, err := users.GetOrLoad(t.Context(), "k", load); err != nil || got != 1 {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	wg.Wait()
	// A caller between its miss and the shared load can come too late for it, and
	// nothing is stored for it to find.
	if n := users.Stats().Loads; n > callers/10 {
		t.Errorf("%d loads for %d callers", n, callers)
	}
}
