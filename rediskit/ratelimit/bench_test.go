package ratelimit

import (
	"strconv"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// BenchmarkLimiter_Allow alternates a decision with the bare EVALSHA of the same
// script and with a bare INCR, so that a busy machine slows all three: ns/op is
// for the three together, the metrics are for each.
func BenchmarkLimiter_Allow(b *testing.B) {
	for _, cfg := range []Config{{OnError: FailClosed}, {OnError: FailClosed, Algorithm: GCRA}} {
		name := map[Algorithm]string{SlidingWindow: "SlidingWindow", GCRA: "GCRA"}[cfg.Algorithm]
		b.Run(name, func(b *testing.B) {
			client := testenv.Redis(b).Open(b)
			limiter := newLimiter(b, client, cfg)
			const limit, window = 100, 10 * time.Millisecond // admits and refuses
			key := limiter.key("bare", window)
			var ours, script, incr time.Duration
			steps := []func(i int){
				func(int) {
					start := time.Now()
					_, err := limiter.Allow(b.Context(), "user:1", limit, window)
					ours += time.Since(start)
					if err != nil {
						b.Fatal(err)
					}
				},
				func(int) {
					start := time.Now()
					_, err := client.EvalSha(
						b.Context(), limiter.script.Hash(), []string{key}, limit, window.Microseconds(), 1, limit,
					).Int64Slice()
					script += time.Since(start)
					if err != nil {
						b.Fatal(err)
					}
				},
				func(i int) {
					start := time.Now()
					err := client.Incr(b.Context(), "incr:"+strconv.Itoa(i%100)).Err()
					incr += time.Since(start)
					if err != nil {
						b.Fatal(err)
					}
				},
			}
			steps[0](0) // loads the script
			ours = 0
			n := 0
			for b.Loop() {
				for i := range steps {
					steps[(n+i)%len(steps)](n) // none is always the one after a slow one
				}
				n++
			}
			report(b, n, ours, script, "script")
			b.ReportMetric(float64(incr.Nanoseconds())/float64(n), "incr-ns")
		})
	}
}

// BenchmarkLimiter_Allow_parallel measures throughput: decisions a second of many
// callers, and of bare script calls.
func BenchmarkLimiter_Allow_parallel(b *testing.B) {
	run := func(name string, call func(b *testing.B, client *rediskit.Client, limiter *Limiter, key string) error) {
		b.Run(name, func(b *testing.B) {
			client := testenv.Redis(b).Open(b)
			limiter := newLimiter(b, client, Config{OnError: FailClosed, Timeout: 10 * time.Second})
			if _, err := limiter.Allow(b.Context(), "warm", 1, time.Second); err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(16)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if err := call(b, client, limiter, "user:"+strconv.Itoa(i%100)); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
	const limit, window = 100, time.Second
	run("Allow", func(b *testing.B, _ *rediskit.Client, limiter *Limiter, key string) error {
		b.Helper()
		_, err := limiter.Allow(b.Context(), key, limit, window)
		return err
	})
	run("bare", func(b *testing.B, client *rediskit.Client, limiter *Limiter, key string) error {
		b.Helper()
		return client.EvalSha(
			b.Context(), limiter.script.Hash(), []string{limiter.key(key, window)}, limit, window.Microseconds(), 1, limit,
		).Err()
	})
}

func report(b *testing.B, n int, ours, bare time.Duration, what string) {
	b.Helper()
	b.ReportMetric(float64(ours.Nanoseconds())/float64(n), "ours-ns")
	b.ReportMetric(float64(bare.Nanoseconds())/float64(n), what+"-ns")
	b.ReportMetric(float64(ours)/float64(bare), "x-"+what)
}
