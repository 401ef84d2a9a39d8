package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestLimiter_Allow(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{OnError: FailClosed}, {OnError: FailClosed, Algorithm: GCRA}} {
		t.Run(strconv.Itoa(int(cfg.Algorithm)), func(t *testing.T) {
			t.Parallel()
			testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
				ctx := t.Context()
				limiter := newLimiter(t, client, cfg)
				const limit, window = 3, time.Hour
				for i := range limit {
					got, err := limiter.Allow(ctx, "user:1", limit, window)
					if err != nil || !got.Allowed || got.Remaining != limit-1-i || got.RetryAfter != 0 || got.Limit != limit ||
						got.ResetAfter <= 0 || got.ResetAfter > window {
						t.Fatalf("call %d: %+v, %v", i, got, err)
					}
				}
				got, err := limiter.Allow(ctx, "user:1", limit, window)
				if err != nil || got.Allowed || got.Remaining != 0 || got.RetryAfter <= 0 || got.RetryAfter > window {
					t.Errorf("one call too many: %+v, %v", got, err)
				}
				for _, other := range []struct {
					key    string
					window time.Duration
				}{{"user:2", window}, {"user:1", 2 * window}} {
					if got, err := limiter.AllowN(ctx, other.key, limit, other.window, limit); err != nil || !got.Allowed {
						t.Errorf("%+v is counted with another: %+v, %v", other, got, err)
					}
				}
				if got, err := limiter.AllowN(ctx, "user:3", limit, window, 2); err != nil || !got.Allowed || got.Remaining != 1 {
					t.Errorf("two of three: %+v, %v", got, err)
				}
				if got, err := limiter.AllowN(ctx, "user:3", limit, window, 2); err != nil || got.Allowed || got.Remaining != 1 {
					t.Errorf("two of one that is left: %+v, %v: want all or none", got, err)
				}
			})
		})
	}
}

// State is bounded, under the service's prefix, and leaves by itself.
func TestLimiter_state(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		ctx := t.Context()
		const limit = 1000
		for i, name := range []string{"window", "gcra"} {
			limiter := newLimiter(t, client, Config{OnError: FailClosed, Algorithm: Algorithm(i), Timeout: 30 * time.Second})
			for range 5 {
				if _, err := limiter.AllowN(ctx, "user:1", limit, time.Minute, limit/2); err != nil {
					t.Fatal(err)
				}
			}
			key := client.Key("ratelimit", name, "1m0s", "user:1")
			ttl, err := client.PTTL(ctx, key).Result()
			if err != nil || ttl <= 0 || ttl > time.Minute+2*time.Millisecond {
				t.Errorf("%s lives for %s, %v", key, ttl, err)
			}
			size, err := client.MemoryUsage(ctx, key).Result()
			if err != nil || size > 12*limit {
				t.Errorf("%s takes %d bytes, %v", key, size, err)
			}
			long := strings.Repeat("x", 10_000)
			for _, key := range []string{long, long + "y"} {
				if got, err := limiter.Allow(ctx, key, 1, time.Minute); err != nil || !got.Allowed {
					t.Errorf("long keys are counted together: %+v, %v", got, err)
				}
			}
			if got := limiter.key(long, time.Minute); len(got) > 150 {
				t.Errorf("a key of %d bytes is kept", len(got))
			}
		}
		// A limit takes a moment to be over, and then the key is gone.
		limiter := newLimiter(t, client, Config{OnError: FailClosed})
		got, err := limiter.Allow(ctx, "short", 1, 10*time.Millisecond)
		if err != nil || !got.Allowed {
			t.Fatalf("%+v, %v", got, err)
		}
		key := client.Key("ratelimit", "window", "10ms", "short")
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if n, err := client.Exists(ctx, key).Result(); err == nil && n == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the key stays")
			}
		}
	})
}

// A wait of RetryAfter is long enough, on the server's own clock.
func TestLimiter_Allow_afterRetryAfter(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{OnError: FailClosed}, {OnError: FailClosed, Algorithm: GCRA, Burst: 2}} {
		t.Run(strconv.Itoa(int(cfg.Algorithm)), func(t *testing.T) {
			t.Parallel()
			testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
				limiter := newLimiter(t, client, cfg)
				refused := 0
				for range 12 {
					got, err := limiter.Allow(t.Context(), "user:1", 4, 100*time.Millisecond)
					if err != nil {
						t.Fatal(err)
					}
					if got.Allowed {
						continue
					}
					refused++
					<-time.After(got.RetryAfter)
					if got, err = limiter.Allow(t.Context(), "user:1", 4, 100*time.Millisecond); err != nil || !got.Allowed {
						t.Fatalf("refused after the wait: %+v, %v", got, err)
					}
				}
				if refused == 0 {
					t.Error("12 calls at once were within 4 in 100ms")
				}
			})
		})
	}
}

func TestLimiter_AllowN_refusesArguments(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	window := newLimiter(t, client, Config{OnError: FailOpen})
	gcra := newLimiter(t, client, Config{OnError: FailOpen, Algorithm: GCRA, Burst: 2})
	for _, tt := range []struct {
		limiter *Limiter
		key     string
		limit   int
		window  time.Duration
		n       int
		want    string
	}{
		{window, "", 1, time.Second, 1, "no key"},
		{window, "k", 0, time.Second, 1, "limit is 0"},
		{window, "k", MaxSlidingLimit + 1, time.Second, 1, "use GCRA"},
		{window, "k", 1, time.Nanosecond, 1, "window is 1ns"},
		{window, "k", 1, MaxWindow + 1, 1, "window is"},
		{window, "k", 1, time.Second, 0, "asked for 0"},
		{window, "k", 1, time.Second, 2, "never more than 1"},
		{gcra, "k", 5, time.Second, 3, "never more than 2"},
		{gcra, "k", 1001, time.Millisecond, 1, "more than one each microsecond"},
	} {
		got, err := tt.limiter.AllowN(t.Context(), tt.key, tt.limit, tt.window, tt.n)
		if err == nil || !strings.Contains(err.Error(), tt.want) || got.Allowed {
			t.Errorf("%q %d %s %d: %+v, %v; want an error with %q", tt.key, tt.limit, tt.window, tt.n, got, err, tt.want)
		}
		if errors.Is(err, ErrUnavailable) {
			t.Errorf("%v blames Redis", err)
		}
	}
	// The largest values work.
	if got, err := window.AllowN(t.Context(), "k", MaxSlidingLimit, MaxWindow, MaxSlidingLimit); err != nil || got.Err != nil || !got.Allowed {
		t.Errorf("largest sliding window: %+v, %v", got, err)
	}
	if got, err := gcra.Allow(t.Context(), "k", int(MaxWindow.Microseconds()), MaxWindow); err != nil || got.Err != nil || !got.Allowed {
		t.Errorf("largest GCRA: %+v, %v", got, err)
	}
}

func TestNew_refuses(t *testing.T) {
	t.Parallel()
	client := testenv.Redis(t).Open(t)
	if _, err := New(nil, Config{OnError: FailOpen}); err == nil {
		t.Error("made a limiter without a client")
	}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "OnError"},
		{Config{OnError: 7}, "OnError"},
		{Config{OnError: FailOpen, Algorithm: 7}, "Algorithm"},
		{Config{OnError: FailOpen, Burst: 2}, "Burst is for GCRA"},
		{Config{OnError: FailOpen, Algorithm: GCRA, Burst: -1}, "Burst is -1"},
		{Config{OnError: FailOpen, Timeout: -1}, "Timeout"},
	} {
		if _, err := New(client, tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want an error with %q", tt.cfg, err, tt.want)
		}
	}
}

// A server that is dead, that hangs, and that comes back without its scripts.
func TestLimiter_redisDown(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []Algorithm{SlidingWindow, GCRA} {
		t.Run(strconv.Itoa(int(algorithm)), func(t *testing.T) {
			t.Parallel()
			srv := testenv.Redis(t)
			cfg := srv.Config()
			cfg.ReadTimeout, cfg.WriteTimeout = time.Hour, time.Hour // only the limiter's own limit can end the wait
			client, err := rediskit.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			const timeout = 200 * time.Millisecond
			open := newLimiter(t, client, Config{OnError: FailOpen, Algorithm: algorithm, Timeout: timeout})
			closed := newLimiter(t, client, Config{OnError: FailClosed, Algorithm: algorithm, Timeout: timeout})
			check := func(when string) {
				t.Helper()
				got, err := open.Allow(t.Context(), "open", 1, time.Hour)
				if err != nil || !got.Allowed || got.Err == nil {
					t.Errorf("%s, fail open: %+v, %v", when, got, err)
				}
				got, err = closed.Allow(t.Context(), "closed", 1, time.Hour)
				if !errors.Is(err, ErrUnavailable) || got.Allowed || got.Err == nil {
					t.Errorf("%s, fail closed: %+v, %v", when, got, err)
				}
			}
			srv.Pause()
			check("hung")
			srv.Resume()
			srv.Kill()
			check("dead")
			srv.Restart()
			for _, limiter := range []*Limiter{open, closed} {
				limiter.cfg.Timeout = 20 * time.Second // the pool finds its dead connections first
				if got, err := limiter.Allow(t.Context(), "back", 2, time.Hour); err != nil || got.Err != nil || !got.Allowed {
					t.Errorf("after the restart: %+v, %v", got, err)
				}
			}
			if got := open.Stats(); got != (Stats{Allowed: 1, FailedOpen: 2}) {
				t.Errorf("fail open: %+v", got)
			}
			if got := closed.Stats(); got != (Stats{Allowed: 1, FailedClosed: 2}) {
				t.Errorf("fail closed: %+v", got)
			}
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if got, err := closed.Allow(gone, "closed", 1, time.Hour); !errors.Is(err, context.Canceled) || got.Allowed {
				t.Errorf("cancelled: %+v, %v", got, err)
			}
		})
	}
}

// served answers 200 "ok" behind the middleware.
func served(t *testing.T, limiter *Limiter, rule Rule) func(user string) *http.Response {
	t.Helper()
	wrap, err := Middleware(limiter, rule)
	if err != nil {
		t.Fatal(err)
	}
	handler := wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "ok") }))
	return func(user string) *http.Response {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("User", user)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Result()
	}
}

func byUser(r *http.Request) (string, bool) {
	user := r.Header.Get("User")
	return user, user != "operator"
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		limiter := newLimiter(t, client, Config{OnError: FailClosed, Timeout: 30 * time.Second})
		get := served(t, limiter, Rule{Limit: 2, Window: 90*time.Second + time.Millisecond, Key: byUser})
		for _, tt := range []struct {
			user      string
			status    int
			remaining string
			retry     bool
		}{
			{"ada", 200, "1", false},
			{"ada", 200, "0", false},
			{"ada", 429, "0", true},
			{"bob", 200, "1", false},
			{"operator", 200, "", false},
			{"", 500, "", false},
		} {
			res := get(tt.user)
			_ = res.Body.Close()
			h := res.Header
			if res.StatusCode != tt.status || h.Get("RateLimit-Remaining") != tt.remaining || (h.Get("Retry-After") != "") != tt.retry {
				t.Errorf("%q: %s %v, want %+v", tt.user, res.Status, h, tt)
			}
			if tt.remaining == "" {
				continue
			}
			if h.Get("RateLimit-Limit") != "2" || h.Get("RateLimit-Policy") != "2;w=91" {
				t.Errorf("%q: %v", tt.user, h)
			}
			for _, name := range []string{"RateLimit-Reset", "Retry-After"} {
				seconds, err := strconv.Atoi(h.Get(name))
				if (name == "RateLimit-Reset" || tt.retry) && (err != nil || seconds < 1 || seconds > 91) {
					t.Errorf("%q: %s is %q", tt.user, name, h.Get(name))
				}
			}
		}
	})
}

func TestMiddleware_redisDown(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	client := srv.Open(t)
	srv.Kill()
	for onError, want := range map[OnError]int{FailOpen: 200, FailClosed: 503} {
		limiter := newLimiter(t, client, Config{OnError: onError, Timeout: 100 * time.Millisecond})
		res := served(t, limiter, Rule{Limit: 1, Window: time.Minute, Key: byUser})("ada")
		_ = res.Body.Close()
		if res.StatusCode != want || res.Header.Get("RateLimit-Limit") != "" || (res.Header.Get("Retry-After") != "") != (want == 503) {
			t.Errorf("%d: %s %v, want %d", onError, res.Status, res.Header, want)
		}
	}
}

func TestMiddleware_refuses(t *testing.T) {
	t.Parallel()
	limiter := newLimiter(t, testenv.Redis(t).Open(t), Config{OnError: FailOpen})
	for name, rule := range map[string]Rule{
		"no key":    {Limit: 1, Window: time.Second},
		"no limit":  {Window: time.Second, Key: byUser},
		"no window": {Limit: 1, Key: byUser},
	} {
		if _, err := Middleware(limiter, rule); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Middleware(nil, Rule{Limit: 1, Window: time.Second, Key: byUser}); err == nil {
		t.Error("no limiter: accepted")
	}
}

func TestSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int64{
		0: 0, time.Microsecond: 1, time.Second: 1, time.Second + 1: 2, 90 * time.Second: 90,
	} {
		if got := seconds(d); got != want {
			t.Errorf("%s: %d, want %d", d, got, want)
		}
	}
}
