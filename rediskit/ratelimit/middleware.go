package ratelimit

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Rule is the limit of one [Middleware].
type Rule struct {
	// Limit is how many requests of one key are served in each Window.
	Limit  int
	Window time.Duration

	// Key says whose request it is, such as "user:" and the id of the
	// authenticated user. false lets the request pass uncounted. Careful with
	// addresses: X-Forwarded-For holds whatever the client wrote, unless a proxy
	// of one's own replaced it. Required.
	Key func(*http.Request) (key string, limited bool)
}

// Middleware returns a wrapper that serves a request only within rule. It sets
// RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset and RateLimit-Policy as
// revision 06 of draft-ietf-httpapi-ratelimit-headers (December 2022) defines
// them: the last revision with separate fields, and the one that clients know;
// times are whole seconds, rounded up.
//
// A request over the limit is answered 429 with Retry-After. If Redis does not
// answer, FailOpen serves the request without these fields; FailClosed answers
// 503, since the client did nothing wrong. A rule that cannot work is an error
// here; an empty key is answered 500.
func Middleware(limiter *Limiter, rule Rule) (func(http.Handler) http.Handler, error) {
	if limiter == nil || rule.Key == nil {
		return nil, errors.New("make rate limit middleware: a limiter and a Key function are needed")
	}
	if _, err := limiter.check("any", rule.Limit, rule.Window, 1); err != nil {
		return nil, fmt.Errorf("make rate limit middleware: %w", err)
	}
	policy := fmt.Sprintf("%d;w=%d", rule.Limit, seconds(rule.Window))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, limited := rule.Key(r)
			if !limited {
				next.ServeHTTP(w, r)
				return
			}
			result, err := limiter.Allow(r.Context(), key, rule.Limit, rule.Window)
			switch {
			case errors.Is(err, ErrUnavailable):
				w.Header().Set("Retry-After", "1")
				http.Error(w, "the rate limit cannot be checked at the moment", http.StatusServiceUnavailable)
				return
			case err != nil: // no key
				http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
				return
			case result.Err == nil:
				h := w.Header()
				h.Set("RateLimit-Limit", strconv.Itoa(rule.Limit))
				h.Set("RateLimit-Remaining", strconv.Itoa(result.Remaining))
				h.Set("RateLimit-Reset", strconv.FormatInt(seconds(result.ResetAfter), 10))
				h.Set("RateLimit-Policy", policy)
			}
			if !result.Allowed {
				w.Header().Set("Retry-After", strconv.FormatInt(seconds(result.RetryAfter), 10))
				http.Error(w, "too many requests", http.StatusTooManyRequests)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}

// seconds rounds up: who waits that long has waited long enough.
func seconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}
