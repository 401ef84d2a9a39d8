package rediskit_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// traffic is what the callers of a client saw while a master was killed.
type traffic struct {
	mu       sync.Mutex
	ops      int            // that succeeded
	errs     map[string]int // that callers saw, by kind
	lastErr  time.Time
	slowest  time.Duration        // of an operation, failed ones included
	acked    map[string]time.Time // when a key's value was acknowledged
	progress chan struct{}        // one token for each success
}

// run writes until ctx ends, each time a key of its own, so that what a success
// promised can be checked afterwards.
func (tr *traffic) run(ctx context.Context, client *rediskit.Client, caller int) {
	for n := 0; ctx.Err() == nil; n++ {
		key := client.Key(strconv.Itoa(caller), strconv.Itoa(n))
		start := time.Now()
		// Not ctx: the end of the test must not look like an error of Redis.
		err := client.Set(context.WithoutCancel(ctx), key, n, time.Hour).Err()
		took := time.Since(start)
		tr.mu.Lock()
		tr.slowest = max(tr.slowest, took)
		if err != nil {
			tr.errs[kind(err)]++
			tr.lastErr = time.Now()
		} else {
			tr.ops++
			tr.acked[key] = time.Now()
		}
		tr.mu.Unlock()
		if err == nil {
			select {
			case tr.progress <- struct{}{}:
			default:
			}
		}
	}
}

// kind drops addresses and ports, so that errors can be counted.
func kind(err error) string {
	text := err.Error()
	for _, known := range []string{"connection refused", "connection reset", "EOF", "i/o timeout", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "LOADING", "all sentinels", "broken pipe"} {
		if strings.Contains(text, known) {
			return known
		}
	}
	return text
}

// Traffic goes on after a master has died or hangs: callers see errors for as long as
// the servers need to agree on a successor, and no operation hangs. The figures
// are logged, because they depend on the servers' timeouts (3 s here).
func TestClient_failover(t *testing.T) {
	t.Parallel()
	sentinel := func(t *testing.T) (rediskit.Config, func(string) *testenv.RedisServer) {
		t.Helper()
		set := testenv.Sentinel(t)
		return set.Config(), func(string) *testenv.RedisServer { return set.Master() }
	}
	cluster := func(t *testing.T) (rediskit.Config, func(string) *testenv.RedisServer) {
		t.Helper()
		set := testenv.Cluster(t)
		return set.Config(), set.Master
	}
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (rediskit.Config, func(key string) *testenv.RedisServer)
		fail  func(*testenv.RedisServer)
	}{
		{"Sentinel, master killed", sentinel, (*testenv.RedisServer).Kill},
		{"Sentinel, master frozen", sentinel, (*testenv.RedisServer).Pause},
		{"Cluster, master killed", cluster, (*testenv.RedisServer).Kill},
		{"Cluster, master frozen", cluster, (*testenv.RedisServer).Pause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, master := tt.start(t)
			cfg.Service = "failover"
			client, err := rediskit.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			const callers = 8
			tr := &traffic{errs: map[string]int{}, acked: map[string]time.Time{}, progress: make(chan struct{}, 1)}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for caller := range callers {
				wg.Go(func() { tr.run(ctx, client, caller) })
			}
			defer wg.Wait()
			defer stop()
			victim := client.Key("0", "0") // its master fails
			tr.waitFor(t, 1000)
			server := master(victim)
			killed := time.Now()
			tt.fail(server)
			for deadline := time.Now().Add(time.Minute); client.Set(t.Context(), victim, "again", 0).Err() != nil; {
				if time.Now().After(deadline) {
					t.Fatal("no recovery within a minute")
				}
			}
			back := time.Since(killed)
			tr.mu.Lock()
			before := tr.ops
			tr.mu.Unlock()
			tr.waitFor(t, before+1000)
			stop()
			wg.Wait()

			lost := 0
			for key, when := range tr.acked {
				n, err := client.Exists(t.Context(), key).Result()
				if err == nil && n == 1 {
					continue
				}
				lost++
				// Replication is asynchronous, so writes can be lost with the master;
				// after the recovery nothing may be.
				if when.After(killed.Add(back)) {
					t.Errorf("%s was acknowledged after the recovery and is gone: %v", key, err)
				}
			}
			seen := 0
			for _, n := range tr.errs {
				seen += n
			}
			t.Logf("%s: %d operations done by %d callers, %d errors seen %v, last error %.1f s after the fault, served again after %.1f s, slowest operation %.1f s, %d of %d acknowledged writes lost",
				tt.name, tr.ops, callers, seen, tr.errs, max(0, tr.lastErr.Sub(killed).Seconds()), back.Seconds(), tr.slowest.Seconds(), lost, len(tr.acked))
		})
	}
}

func (tr *traffic) waitFor(t *testing.T, ops int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		tr.mu.Lock()
		done, errs := tr.ops >= ops, fmt.Sprint(tr.errs)
		tr.mu.Unlock()
		if done {
			return
		}
		select {
		case <-tr.progress:
		case <-deadline:
			t.Fatalf("%d operations not reached within a minute; errors %s", ops, errs)
		}
	}
}
