package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
	"github.com/medicalink/postroom/rediskit/ratelimit"
)

// open connects to a server of the example's own; a service opens its client
// once, in main.
func open(ctx context.Context) (*rediskit.Client, func()) {
	cfg, stop := testenv.ExampleRedis()
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		stop()
		panic(err)
	}
	return client, func() { _ = client.Close(); stop() }
}

func ExampleNew() {
	ctx := context.Background()
	client, done := open(ctx)
	defer done()

	_, err := ratelimit.New(client, ratelimit.Config{})
	fmt.Println(err)
	// Attempts to guess a code: rather refuse than not count.
	_, err = ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailClosed})
	fmt.Println(err)
	// Output:
	// rate limit config: OnError must be FailOpen or FailClosed: say what happens to calls while Redis does not answer
	// <nil>
}

func ExampleLimiter_Allow() {
	ctx := context.Background()
	client, done := open(ctx)
	defer done()
	limiter, err := ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailOpen})
	if err != nil {
		panic(err)
	}

	for range 3 {
		result, err := limiter.Allow(ctx, "user:123", 2, time.Minute)
		if err != nil {
			panic(err)
		}
		fmt.Println(result.Allowed, result.Remaining, result.RetryAfter.Round(time.Minute))
	}
	// Output:
	// true 1 0s
	// true 0 0s
	// false 0 1m0s
}

// A provider that takes 600 messages a minute, evenly spread, 20 at most at
// once.
func ExampleLimiter_AllowN() {
	ctx := context.Background()
	client, done := open(ctx)
	defer done()
	limiter, err := ratelimit.New(client, ratelimit.Config{
		Algorithm: ratelimit.GCRA, Burst: 20, OnError: ratelimit.FailClosed,
	})
	if err != nil {
		panic(err)
	}

	for _, messages := range []int{15, 15} {
		result, err := limiter.AllowN(ctx, "sms-provider", 600, time.Minute, messages)
		if err != nil {
			panic(err)
		}
		fmt.Println(result.Allowed, result.RetryAfter > 0)
	}
	// Output:
	// true false
	// false true
}

func ExampleLimiter_Stats() {
	ctx := context.Background()
	client, done := open(ctx)
	defer done()
	limiter, err := ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailOpen})
	if err != nil {
		panic(err)
	}
	for range 3 {
		if _, err := limiter.Allow(ctx, "user:123", 2, time.Minute); err != nil {
			panic(err)
		}
	}

	stats := limiter.Stats()
	fmt.Println(stats.Allowed, stats.Denied, stats.FailedOpen)
	// Output: 2 1 0
}

func ExampleMiddleware() {
	ctx := context.Background()
	client, done := open(ctx)
	defer done()
	limiter, err := ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailOpen})
	if err != nil {
		panic(err)
	}

	limit, err := ratelimit.Middleware(limiter, ratelimit.Rule{
		Limit: 1, Window: time.Minute,
		// Whoever has authenticated the request has put the user there.
		Key: func(r *http.Request) (string, bool) { return "user:" + r.Header.Get("X-User-Id"), true },
	})
	if err != nil {
		panic(err)
	}
	handler := limit(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "appointments") }))

	for range 2 {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/appointments", nil)
		r.Header.Set("X-User-Id", "123")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		h := w.Header()
		fmt.Printf("%d policy %s remaining %s retry %q\n",
			w.Code, h.Get("RateLimit-Policy"), h.Get("RateLimit-Remaining"), h.Get("Retry-After"))
	}
	// Output:
	// 200 policy 1;w=60 remaining 0 retry ""
	// 429 policy 1;w=60 remaining 0 retry "60"
}
