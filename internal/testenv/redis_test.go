//go:build unix

package testenv_test

import (
	"context"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestRedisServer_Restart_afterKill(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opts []testenv.RedisOption
		keep bool
	}{
		{name: "volatile by default"},
		{name: "AOF keeps acknowledged writes", opts: []testenv.RedisOption{testenv.AOF()}, keep: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := testenv.Redis(t, tt.opts...)
			client := srv.Open(t)
			if err := client.Set(t.Context(), "key", "value", 0).Err(); err != nil {
				t.Fatal(err)
			}
			addr := srv.Addr()
			srv.Kill()
			if err := client.Health(t.Context()); err == nil {
				t.Fatal("a killed server is healthy")
			}
			srv.Restart()
			if srv.Addr() != addr {
				t.Fatalf("the port changed: %s, was %s", srv.Addr(), addr)
			}
			n, err := client.Exists(t.Context(), "key").Result()
			if err != nil {
				t.Fatal(err)
			}
			if kept := n == 1; kept != tt.keep {
				t.Errorf("key kept = %v, want %v", kept, tt.keep)
			}
		})
	}
}

func TestRedisServer_Pause(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	client := srv.Open(t)
	srv.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.Health(ctx); err == nil {
		t.Fatal("a paused server answered")
	}
	srv.Resume()
	if err := client.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRedis_tlsAndACL(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.TLS(), testenv.ACL("alice", "wonder-land", "~* &* +@all"))
	client := srv.Open(t)
	if got, err := client.Do(t.Context(), "ACL", "WHOAMI").Text(); err != nil || got != "alice" {
		t.Errorf("ACL WHOAMI = %q, %v; want alice", got, err)
	}
	cfg := srv.Config()
	cfg.CertFile, cfg.KeyFile = "", ""
	if c, err := rediskit.Open(t.Context(), cfg); err == nil {
		_ = c.Close()
		t.Error("connected without a client certificate")
	}
}
