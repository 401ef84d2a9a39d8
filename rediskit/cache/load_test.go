package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/cache"
)

// assertStampede lets n callers, spread over caches, ask for one missing key.
// The loader answers only when all of them have asked.
func assertStampede(t *testing.T, n int, caches []*cache.Cache[int]) {
	t.Helper()
	var loads, asked atomic.Int64
	load := func(context.Context) (int, error) {
		eventually(t, "all callers asked", func() bool { return asked.Load() == int64(n) })
		return int(40 + loads.Add(1)), nil
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			asked.Add(1)
			if got, err := caches[i%len(caches)].GetOrLoad(t.Context(), "hot", load); err != nil || got != 41 {
				t.Errorf("caller %d: %v, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	if got := loads.Load(); got != 1 {
		t.Errorf("the loader ran %d times for %d callers", got, n)
	}
}

func TestCache_GetOrLoad_stampede(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		caches := []*cache.Cache[int]{of[int](t, c, config)}
		for range 2 {
			caches = append(caches, of[int](t, another(t, c), config))
		}
		assertStampede(t, 1000, caches)
		for i, users := range caches {
			if s := users.Stats(); s.Errors != 0 || s.LoadErrors != 0 {
				t.Errorf("process %d: stats %+v", i, s)
			}
		}
		// When the value has expired, every process asks anew, also one that only
		// waited for another's load.
		for i, users := range caches {
			if err := c.Del(t.Context(), c.Key("user", "hot")).Err(); err != nil {
				t.Fatal(err)
			}
			got, err := users.GetOrLoad(t.Context(), "hot", func(context.Context) (int, error) { return i, nil })
			if err != nil || got != i {
				t.Errorf("process %d got %v, %v after the expiry", i, got, err)
			}
		}
	})
}

// Rounds of short loads meet each other at every point, not only while the first
// load waits.
func TestCache_GetOrLoad_oncePerMiss(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		caches := []*cache.Cache[int]{of[int](t, c, config), of[int](t, another(t, c), config)}
		var loads atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for round := range 50 {
					got, err := caches[i%2].GetOrLoad(t.Context(), fmt.Sprint(round), func(context.Context) (int, error) {
						loads.Add(1)
						return round, nil
					})
					if err != nil || got != round {
						t.Errorf("round %d: %v, %v", round, got, err)
					}
				}
			})
		}
		wg.Wait()
		if got := loads.Load(); got != 50 {
			t.Errorf("%d loads of 50 keys", got)
		}
	})
}

func TestCache_GetOrLoad_ownCopies(t *testing.T) {
	t.Parallel()
	lists := of[map[string]int](t, client, config)
	if err := lists.Delete(t.Context(), "copies"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, err := lists.GetOrLoad(t.Context(), "copies", func(context.Context) (map[string]int, error) { return map[string]int{"a": 1}, nil })
			if err != nil || got["a"] != 1 {
				t.Errorf("got %v, %v", got, err)
				return
			}
			got["a"]++ // a race if two callers had the same map
		})
	}
	wg.Wait()
}

func TestCache_GetOrLoad_notFound(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		for _, tt := range []struct {
			name     string
			negative time.Duration
			loads    uint64
		}{
			{"not remembered", 0, 3},
			{"remembered", 10 * time.Second, 1},
		} {
			ctx := t.Context()
			cfg := config
			cfg.NegativeTTL = tt.negative
			users := of[user](t, c, cfg)
			missing := func(context.Context) (user, error) {
				return user{Name: "half"}, fmt.Errorf("user 9: %w", cache.ErrNotFound)
			}
			for range 3 {
				if got, err := users.GetOrLoad(ctx, tt.name, missing); !errors.Is(err, cache.ErrNotFound) || got != (user{}) {
					t.Errorf("%s: GetOrLoad = %v, %v", tt.name, got, err)
				}
			}
			if s := users.Stats(); s.Loads != tt.loads || s.LoadErrors != 0 {
				t.Errorf("%s: stats %+v, want %d loads and no failures", tt.name, s, tt.loads)
			}
			if got, found, err := users.Get(ctx, tt.name); err != nil || found {
				t.Errorf("%s: Get = %v, %v, %v", tt.name, got, found, err)
			}
			if got, err := users.GetMany(ctx, tt.name); err != nil || len(got) != 0 {
				t.Errorf("%s: GetMany = %v, %v", tt.name, got, err)
			}
			if left := c.PTTL(ctx, c.Key("user", tt.name)).Val(); left > tt.negative {
				t.Errorf("%s: %v left, want at most %v", tt.name, left, tt.negative)
			}
			// Once the thing exists, Delete or Set ends the absence.
			if err := users.Delete(ctx, tt.name); err != nil {
				t.Fatal(err)
			}
			ada := user{Name: "Ada"}
			if got, err := users.GetOrLoad(ctx, tt.name, func(context.Context) (user, error) { return ada, nil }); err != nil || got != ada {
				t.Errorf("%s: after Delete: %v, %v", tt.name, got, err)
			}
		}
	})
}

func TestCache_GetOrLoad_failedLoad(t *testing.T) {
	t.Parallel()
	boom := errors.New("database is down")
	for _, tt := range []struct {
		name string
		load func(context.Context) (any, error)
		is   error  // what the error or panic wraps
		text string // what it says
		panics,
		counted bool
	}{
		{name: "error", load: func(context.Context) (any, error) { return nil, boom }, is: boom, text: "database", counted: true},
		{name: "panic", load: func(context.Context) (any, error) { panic("oh no") }, text: "oh no", panics: true, counted: true},
		{name: "panic with an error", load: func(context.Context) (any, error) { panic(boom) }, is: boom, text: "load_test.go", panics: true, counted: true},
		{name: "panic(nil)", load: func(context.Context) (any, error) { panic(nil) }, text: "panic called with nil", panics: true, counted: true},
		{name: "Goexit", load: func(context.Context) (any, error) { runtime.Goexit(); return nil, nil }, text: "Goexit", counted: true},
		{name: "no JSON form", load: func(context.Context) (any, error) { return func() {}, nil }, text: "no JSON form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
				ctx, users := t.Context(), of[any](t, c, config)
				ask := func() (got error, panicked bool) {
					defer func() {
						if v := recover(); v != nil {
							got, _ = v.(error)
							panicked = true
						}
					}()
					_, got = users.GetOrLoad(ctx, "k", tt.load)
					return got, false
				}
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						err, panicked := ask()
						if err == nil || panicked != tt.panics || !strings.Contains(err.Error(), tt.text) || tt.is != nil && !errors.Is(err, tt.is) {
							t.Errorf("got %v, panicked %v", err, panicked)
						}
					})
				}
				wg.Wait()
				users.Wait()
				if n, err := c.Exists(ctx, c.Key("user", "k")).Result(); err != nil || n != 0 {
					t.Errorf("the failed load left something: %d, %v", n, err)
				}
				s := users.Stats()
				if s.Loads == 0 || s.LoadErrors != s.Loads && tt.counted || s.LoadErrors != 0 && !tt.counted {
					t.Errorf("stats %+v", s)
				}
				if got, err := users.GetOrLoad(ctx, "k", func(context.Context) (any, error) { return "well", nil }); err != nil || got != "well" {
					t.Errorf("the next load: %v, %v", got, err)
				}
			})
		})
	}
}

func TestCache_GetOrLoad_callerGivesUp(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		type traceKey struct{}
		users := of[int](t, c, config)
		begun, finish := make(chan struct{}), make(chan struct{})
		load := func(ctx context.Context) (int, error) {
			close(begun)
			<-finish
			if ctx.Value(traceKey{}) != "trace" {
				t.Error("the loader lost the values of the context")
			}
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the loader has no deadline")
			}
			return 1, ctx.Err()
		}
		first, cancel := context.WithCancel(context.WithValue(t.Context(), traceKey{}, "trace"))
		gone := make(chan error)
		go func() {
			_, err := users.GetOrLoad(first, "k", load)
			gone <- err
		}()
		<-begun
		stays := make(chan error)
		go func() {
			got, err := users.GetOrLoad(t.Context(), "k", load)
			if got != 1 {
				err = errors.Join(err, fmt.Errorf("got %d", got))
			}
			stays <- err
		}()
		eventually(t, "the second caller missed", func() bool { return users.Stats().Misses == 2 })
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that gave up got %v", err)
		}
		close(finish)
		if err := <-stays; err != nil {
			t.Errorf("the caller that stayed: %v", err)
		}
		if s := users.Stats(); s.Loads != 1 {
			t.Errorf("stats %+v, want one load", s)
		}
	})
}

// A load that began before a write must not overwrite it, nor be kept after a
// Delete; callers that come after the write do not get the old answer.
func TestCache_GetOrLoad_writeDuringLoad(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		for _, tt := range []struct {
			name  string
			write func(context.Context, *cache.Cache[string]) error
			want  string
		}{
			{"Delete", func(ctx context.Context, u *cache.Cache[string]) error { return u.Delete(ctx, "k") }, "loaded again"},
			{"Delete of several", func(ctx context.Context, u *cache.Cache[string]) error { return u.Delete(ctx, "x", "k") }, "loaded again"},
			{"Set", func(ctx context.Context, u *cache.Cache[string]) error { return u.Set(ctx, "k", "set") }, "set"},
			{"SetMany", func(ctx context.Context, u *cache.Cache[string]) error {
				return u.SetMany(ctx, map[string]string{"k": "set"})
			}, "set"},
		} {
			for _, where := range []string{"here", "elsewhere"} {
				ctx := t.Context()
				users := of[string](t, c, config)
				writer := users
				if where == "elsewhere" {
					writer = of[string](t, another(t, c), config)
				}
				begun, finish, old := make(chan struct{}), make(chan struct{}), make(chan string)
				go func() {
					got, err := users.GetOrLoad(ctx, "k", func(context.Context) (string, error) {
						close(begun)
						<-finish
						return "old", nil
					})
					old <- fmt.Sprint(got, err)
				}()
				<-begun
				if err := tt.write(ctx, writer); err != nil {
					t.Fatal(err)
				}
				again := func(context.Context) (string, error) { return "loaded again", nil }
				// In the writer's process at once, in the other when the load is over.
				if got, err := writer.GetOrLoad(ctx, "k", again); err != nil || got != tt.want {
					t.Errorf("%s %s: during the old load: %q, %v; want %q", tt.name, where, got, err, tt.want)
				}
				close(finish)
				if got := <-old; got != "old<nil>" {
					t.Errorf("%s %s: the old caller got %s", tt.name, where, got)
				}
				users.Wait()
				if got, err := users.GetOrLoad(ctx, "k", again); err != nil || got != tt.want {
					t.Errorf("%s %s: after the old load: %q, %v; want %q", tt.name, where, got, err, tt.want)
				}
				if err := users.Delete(ctx, "k"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestCache_GetOrLoad_deadHolder(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		for _, tt := range []struct {
			name string
			ttl  time.Duration // of the lock that another process left
			kept bool          // what is loaded meanwhile
		}{
			{"it died", 50 * time.Millisecond, true},
			{"it renews the lock for ever", 0, false},
		} {
			ctx, key := t.Context(), c.Key("user", tt.name)
			if err := c.Set(ctx, key, "!lock:other", tt.ttl).Err(); err != nil {
				t.Fatal(err)
			}
			cfg := config
			cfg.LoadTimeout = 200 * time.Millisecond
			if tt.kept {
				cfg.LoadTimeout = time.Minute
			}
			users := of[int](t, c, cfg)
			if _, found, err := users.Get(ctx, tt.name); found || err != nil {
				t.Errorf("%s: the lock is a value: %v, %v", tt.name, found, err)
			}
			got, err := users.GetOrLoad(ctx, tt.name, func(context.Context) (int, error) { return 1, nil })
			if err != nil || got != 1 {
				t.Errorf("%s: %v, %v", tt.name, got, err)
			}
			if s := users.Stats(); s.Loads != 1 || s.LockWaits != 1 {
				t.Errorf("%s: stats %+v", tt.name, s)
			}
			want := "!lock:other"
			if tt.kept {
				want = "1"
			}
			if got := c.Get(ctx, key).Val(); got != want {
				t.Errorf("%s: the key holds %q, want %q", tt.name, got, want)
			}
		}
	})
}

func TestCache_GetOrLoad_waiterGivesUp(t *testing.T) {
	t.Parallel()
	cfg := config
	cfg.LoadTimeout = 300 * time.Millisecond
	users := of[int](t, client, cfg)
	if err := client.Set(t.Context(), client.Key("user", "held"), "!lock:other", 0).Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := users.GetOrLoad(ctx, "held", func(context.Context) (int, error) { return 1, nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// A load longer than LockTTL keeps its lock, so other processes wait for it.
func TestCache_GetOrLoad_renewsLock(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		cfg := config
		cfg.LockTTL = 500 * time.Millisecond
		users, others := of[int](t, c, cfg), of[int](t, another(t, c), cfg)
		observer := another(t, c)
		load := func(ctx context.Context) (int, error) {
			last := time.Hour
			for renewals := 0; renewals < 4; {
				left, err := observer.PTTL(ctx, c.Key("user", "k")).Result()
				if err != nil || left <= 0 {
					return 0, errors.Join(fmt.Errorf("%v left of the lock", left), err)
				}
				if left > last {
					renewals++
				}
				last = left
				time.Sleep(time.Millisecond)
			}
			eventually(t, "the other process waits", func() bool { return others.Stats().LockWaits == 1 })
			return 1, nil
		}
		var wg sync.WaitGroup
		for _, u := range []*cache.Cache[int]{users, others} {
			wg.Go(func() {
				if got, err := u.GetOrLoad(t.Context(), "k", load); err != nil || got != 1 {
					t.Errorf("%v, %v", got, err)
				}
			})
			eventually(t, "the first one loads", func() bool { return users.Stats().Loads == 1 })
		}
		wg.Wait()
		if n := others.Stats().Loads; n != 0 {
			t.Errorf("the other process loaded %d times", n)
		}
	})
}

// A loader that never returns blocks its callers, whose contexts end, but not
// the callers that come after LoadTimeout.
func TestCache_GetOrLoad_stuckLoader(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, c *rediskit.Client) {
		cfg := config
		cfg.LoadTimeout, cfg.LockTTL = 50*time.Millisecond, 100*time.Millisecond
		users := of[int](t, c, cfg)
		begun, finish, stuck := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			_, err := users.GetOrLoad(t.Context(), "k", func(ctx context.Context) (int, error) {
				close(begun)
				<-finish
				return 0, ctx.Err()
			})
			stuck <- err
		}()
		<-begun
		eventually(t, "a later caller is served", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			got, err := users.GetOrLoad(ctx, "k", func(context.Context) (int, error) { return 2, nil })
			return err == nil && got == 2
		})
		close(finish)
		if err := <-stuck; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the stuck loader's context gave %v", err)
		}
	})
}
