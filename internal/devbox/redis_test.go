package devbox

import (
	"context"
	"errors"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/medicalink/postroom/rediskit"
)

func dial(t *testing.T, r *embeddedRedis) *rediskit.Client {
	t.Helper()
	u, err := url.Parse(r.url())
	if err != nil || u.Hostname() != "127.0.0.1" {
		t.Fatalf("URL %s is not on loopback (%v)", r.url(), err)
	}
	cfg, err := rediskit.ParseURL(r.url())
	if err != nil {
		t.Fatal(err)
	}
	c, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually polls for what another process or goroutine brings about.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestStartRedis(t *testing.T) {
	kinds := map[string]string{"redis-server": os.Getenv("PATH"), "in-process": t.TempDir()}
	for kind, path := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Setenv("PATH", path)
			r, err := startRedis(t.Context(), zerolog.Nop())
			if err != nil {
				t.Fatal(err)
			}
			stop := r.stop
			defer func() { _ = stop() }()
			if r.kind != kind {
				t.Fatalf("started %s, want %s (`task setup` installs redis-server)", r.kind, kind)
			}
			c := dial(t, r)
			// Keys expire by themselves: leases, idempotency keys and locks rest on it.
			if err := c.Set(t.Context(), "k", "v", 50*time.Millisecond).Err(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the key expires", func() bool { return errors.Is(c.Get(t.Context(), "k").Err(), redis.Nil) })

			if err := r.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if err := c.Ping(t.Context()).Err(); err == nil {
				t.Error("Redis still answers after stop")
			}
		})
	}
}

func TestStartRedis_LeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, err := startRedis(t.Context(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, r)
	if saved, err := c.ConfigGet(t.Context(), "save").Result(); err != nil || saved["save"] != "" {
		t.Errorf("save = %q (%v), want no snapshots", saved["save"], err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.died:
	default:
		t.Error("the process was not waited for")
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v (%v)", left, err)
	}
}

func TestStartRedis_Cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := startRedis(ctx, zerolog.Nop()); err == nil {
		_ = r.stop()
		t.Error("started although the context had ended")
	}
}
