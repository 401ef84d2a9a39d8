// Package ratelimit decides whether one more call is within a limit that all
// replicas of a service share through Redis.
//
//	limiter, err := ratelimit.New(client, ratelimit.Config{OnError: ratelimit.FailOpen})
//	result, err := limiter.Allow(ctx, "user:123", 100, time.Minute)
//	if !result.Allowed { … wait result.RetryAfter … }
//
// Invariants:
//
//   - [SlidingWindow] never admits more than the limit in any interval as long as
//     the window, wherever it begins. [GCRA] never admits more than limit+burst-1,
//     see [Config].Burst.
//   - A decision is one script call on one key, so one round trip, atomic, and
//     safe in a Cluster. Only the first call after a start of the server takes two.
//   - Time is that of the Redis server. If it is set back, or a replica with a
//     slower clock takes over, calls are counted later than they came: never more
//     are admitted, and a key is back to normal after one window. If it is set
//     forward, calls are forgotten that much earlier.
//   - A refused call counts for nothing: who keeps calling is not locked out
//     longer.
//   - State is bounded and leaves by itself: about 11 bytes for each admitted
//     call and at most [MaxSlidingLimit] of them with SlidingWindow, one number with
//     GCRA, deleted when they no longer matter.
//   - Whether calls pass while Redis does not answer is the service's choice and
//     must be made: [Config].OnError.
//
// A decision whose answer was lost is asked for again by go-redis and can count
// twice: the limit is then met earlier, never exceeded. A Redis that loses its
// memory (restart without persistence, failover to a replica that lags) forgets
// calls and admits them again.
//
// # Why not redis_rate
//
// github.com/go-redis/redis_rate v10 is a GCRA on the server's time in one
// script. It has no sliding window; it computes in floating-point seconds and
// rounds what remains to the nearest call, so that its limit is not exact; and
// it leaves a server that does not answer, arguments that make no sense and
// HTTP to the caller. The scripts here are two, short, and in whole
// microseconds.
package ratelimit
