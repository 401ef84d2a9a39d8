package ratelimit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// atTime returns the script with the time as a fifth argument instead of the
// server's clock.
func atTime(t interface{ Fatal(...any) }, source string) *redis.Script {
	const serverTime = "redis.call('TIME')"
	if strings.Count(source, serverTime) != 1 {
		t.Fatal("the script does not ask for the time once")
	}
	return redis.NewScript(strings.Replace(source, serverTime, "{0, tonumber(ARGV[5])}", 1))
}

// model is the same limit in the plainest way: every admitted call, by time.
type model struct {
	limit, burst int
	window       int64
	admitted     []int64 // as the limiter has to see them
	due          int64   // GCRA
}

// sliding decides about n calls at now.
func (m *model) sliding(now int64, n int) (admitted bool, remaining int, reset, retry int64) {
	for i, at := range m.admitted {
		m.admitted[i] = min(at, now) // the clock was set back
	}
	m.admitted = slices.DeleteFunc(m.admitted, func(at int64) bool { return at+m.window <= now })
	if admitted = len(m.admitted)+n <= m.limit; admitted {
		for range n {
			m.admitted = append(m.admitted, now)
		}
	} else {
		for free := m.limit - len(m.admitted); free < n; free++ {
			retry = m.admitted[free-(m.limit-len(m.admitted))] + m.window - now
		}
	}
	return admitted, m.limit - len(m.admitted), m.admitted[len(m.admitted)-1] + m.window - now, retry
}

func (m *model) gcra(now int64, n int) (admitted bool, remaining int, reset, retry int64) {
	spacing := (m.window + int64(m.limit) - 1) / int64(m.limit)
	m.due = min(max(m.due, now), now+int64(m.burst)*spacing)
	early := m.due + int64(n)*spacing - now - int64(m.burst)*spacing
	if admitted = early <= 0; admitted {
		m.due += int64(n) * spacing
	} else {
		retry = early
	}
	return admitted, int((int64(m.burst)*spacing - (m.due - now)) / spacing), m.due - now, retry
}

// mostInWindow returns the largest number of calls within any interval of the
// given length, open at its end. calls must be in order.
func mostInWindow(calls []int64, window int64) int {
	most, first := 0, 0
	for i, at := range calls {
		for calls[first]+window <= at {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// Every decision, number and time of both scripts is that of the model, for
// calls that come at any time, the clock going back now and then.
func TestScripts_likeTheModel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		source string
		decide func(m *model, now int64, n int) (bool, int, int64, int64)
		most   func(m *model) int // admitted in any window
	}{
		{"SlidingWindow", slidingWindowSource, (*model).sliding, func(m *model) int { return m.limit }},
		{"GCRA", gcraSource, (*model).gcra, func(m *model) int { return m.limit + m.burst - 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
				script, run := atTime(t, tt.source), 0
				rapid.Check(t, func(t *rapid.T) {
					run++
					// Windows of minutes: the keys must outlive the test's real time.
					window := rapid.Int64Range(60e6, 120e6).Draw(t, "window")
					keys := rapid.IntRange(1, 3).Draw(t, "keys")
					models, admitted := make([]*model, keys), make([][]int64, keys)
					for i := range models {
						limit := rapid.IntRange(1, 12).Draw(t, "limit")
						models[i] = &model{limit: limit, burst: rapid.IntRange(1, limit).Draw(t, "burst"), window: window}
					}
					now := int64(1_700_000_000_000_000)
					back := false
					for range rapid.IntRange(1, 25).Draw(t, "calls") {
						step := rapid.OneOf(
							rapid.Just(int64(0)), rapid.Int64Range(0, window/10), rapid.Int64Range(window-1, window+1),
							rapid.Int64Range(-2*window, 0),
						).Draw(t, "step")
						now += step
						back = back || step < 0
						i := rapid.IntRange(0, keys-1).Draw(t, "key")
						m := models[i]
						most := m.limit
						if tt.name == "GCRA" {
							most = m.burst
						}
						n := rapid.IntRange(1, most).Draw(t, "n")
						got, err := script.Run(
							context.Background(), client, []string{client.Key(fmt.Sprintf("%s-%d-%d", tt.name, run, i))},
							m.limit, m.window, n, m.burst, now,
						).Int64Slice()
						if err != nil {
							t.Fatal(err)
						}
						ok, remaining, reset, retry := tt.decide(m, now, n)
						want := []int64{0, int64(remaining), reset, retry, now}
						if ok {
							want[0] = 1
							admitted[i] = append(admitted[i], slices.Repeat([]int64{now}, n)...)
						}
						if !slices.Equal(got, want) {
							t.Fatalf("admitted, remaining, reset, retry, now = %v, want %v", got, want)
						}
					}
					if back {
						return // the script's times are not real times then
					}
					for i, m := range models {
						if most := mostInWindow(admitted[i], window); most > tt.most(m) {
							t.Fatalf("%d admitted in a window, limit %d, burst %d", most, m.limit, m.burst)
						}
					}
				})
			})
		})
	}
}

// However far the clock is set back, calls admitted before still count, and the
// key is free again after one window.
func TestScripts_clockSetBack(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		const limit, window, hour = 2500, int64(60e6), int64(3600e6)
		for name, source := range map[string]string{"window": slidingWindowSource, "gcra": gcraSource} {
			script := atTime(t, source)
			ask := func(now int64, n int) []int64 {
				t.Helper()
				got, err := script.Run(t.Context(), client, []string{client.Key(name)}, limit, window, n, limit, now).Int64Slice()
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			start := int64(1_700_000_000_000_000)
			if got := ask(start, limit); got[0] != 1 {
				t.Fatalf("%s: first calls refused: %v", name, got)
			}
			back := start - hour
			if got := ask(back, 1); got[0] != 0 || got[2] != window {
				t.Errorf("%s: after the clock went back: %v", name, got)
			}
			if got := ask(back+window, limit); got[0] != 1 {
				t.Errorf("%s: a window later: %v", name, got)
			}
		}
	})
}

// Many callers of two clients at once, on the server's own time: what was
// admitted, by that time, never exceeds the limit in any window.
func TestLimiter_concurrentCallers(t *testing.T) {
	t.Parallel()
	const callers, calls, keys, limit, window = 16, 60, 3, 7, 40 * time.Millisecond
	for _, tt := range []struct {
		name string
		cfg  Config
		most int
	}{
		{"SlidingWindow", Config{OnError: FailClosed}, limit},
		{"GCRA", Config{OnError: FailClosed, Algorithm: GCRA, Burst: 3}, limit + 2},
		{"GCRA without burst", Config{OnError: FailClosed, Algorithm: GCRA, Burst: 1}, limit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
				cfg := tt.cfg
				cfg.Timeout = 30 * time.Second // no decision may be lost, however busy the machine
				second, err := rediskit.Open(t.Context(), client.Config())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = second.Close() }()
				var mu sync.Mutex
				admitted := map[string][]int64{}
				limiters := []*Limiter{newLimiter(t, client, cfg), newLimiter(t, second, cfg)}
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						for i := range calls {
							key := fmt.Sprintf("%s-%d", tt.name, (c+i)%keys)
							n := 1 + (c+i)%2
							if cfg.Burst == 1 {
								n = 1
							}
							result, err := limiters[c%2].AllowN(t.Context(), key, limit, window, n)
							if err != nil {
								t.Error(err)
								return
							}
							if !result.Allowed {
								continue
							}
							mu.Lock()
							admitted[key] = append(admitted[key], slices.Repeat([]int64{result.at}, n)...)
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				total := 0
				for key, times := range admitted {
					slices.Sort(times)
					total += len(times)
					if most := mostInWindow(times, window.Microseconds()); most > tt.most {
						t.Errorf("%s: %d admitted in a window, at most %d", key, most, tt.most)
					}
				}
				if len(admitted) != keys {
					t.Errorf("%d of %d keys were ever admitted", len(admitted), keys)
				}
				a, b := limiters[0].Stats(), limiters[1].Stats()
				if got := a.Allowed + a.Denied + b.Allowed + b.Denied; got != callers*calls || a.Denied+b.Denied == 0 {
					t.Errorf("%d decisions of %d: %+v %+v", got, callers*calls, a, b)
				}
				t.Logf("%d admitted", total)
			})
		})
	}
}

func newLimiter(t testing.TB, client *rediskit.Client, cfg Config) *Limiter {
	t.Helper()
	limiter, err := New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return limiter
}
