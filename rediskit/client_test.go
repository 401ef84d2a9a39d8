package rediskit_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestOpen_url(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	for _, raw := range []string{srv.URL(), "redis://" + srv.Addr() + "/3", "unix://" + srv.Socket() + "?db=2"} {
		cfg, err := rediskit.ParseURL(raw)
		if err != nil {
			t.Fatal(err)
		}
		client, err := rediskit.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		info, err := client.Do(t.Context(), "CLIENT", "INFO").Text()
		if want := "db=" + string(rune('0'+cfg.DB)) + " "; err != nil || !strings.Contains(info, want) {
			t.Errorf("%s: CLIENT INFO = %q, %v; want %s", raw, info, err, want)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestClient_Dedicated(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	cfg := srv.Config()
	cfg.ClientName = "worker"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for name, c := range map[string]redis.UniversalClient{"worker": client, "worker:server": client.Dedicated("server")} {
		if got, err := c.ClientGetName(t.Context()).Result(); err != nil || got != name {
			t.Errorf("CLIENT GETNAME = %q, %v; want %q", got, err, name)
		}
	}
	further := client.Dedicated("ledger")
	opt := client.ConnOpt("asynqmon")
	lent := opt.MakeRedisClient().(redis.UniversalClient)
	if err := lent.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("closing a lent client closed the shared one: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Errorf("Close after a lent client was closed: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	for _, c := range []redis.UniversalClient{client, further, client.Dedicated("late")} {
		if err := c.Ping(t.Context()).Err(); !errors.Is(err, redis.ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	}
}

func TestOpen_nameNeedsNoPermission(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.ACL("producer", "s3cret", "-@all +ping"))
	cfg := srv.Config()
	cfg.ClientName = "producer"
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("a least-privilege user cannot connect: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

func TestClient_Health_honoursTheContext(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t)
	cfg := srv.Config()
	cfg.ReadTimeout = time.Minute // the guard is the context, not this
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	srv.Pause()
	defer srv.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- client.Health(ctx) }()
	select {
	case err := <-done:
		if ce, ok := errors.AsType[*rediskit.ConnError](err); !ok || ce.Reason != "no answer in time" {
			t.Errorf("Health = %v, want no answer in time", err)
		}
	case <-time.After(20 * time.Second): // a third of the read timeout it must not wait for
		t.Fatal("Health waits for the read timeout although its context has ended")
	}
}

func TestClient_Server(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.AOF(), testenv.RedisSetting("maxmemory-policy allkeys-lru"))
	got, err := srv.Open(t).Server(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Version == "" || got.Role != "master" || got.Mode != "standalone" || !got.AOF ||
		got.MaxMemoryPolicy != "allkeys-lru" || got.UsedMemory == 0 {
		t.Errorf("Server() = %+v", got)
	}
}

func TestOpen_errorSaysWhatWhyAndWhatToSet(t *testing.T) {
	t.Parallel()
	plain := testenv.Redis(t)
	acl := testenv.Redis(t, testenv.ACL("alice", "s3cret", "~* -@all +get"))
	secure := testenv.Redis(t, testenv.TLS())
	other := testenv.Redis(t, testenv.TLS())
	refused := closedPort(t)

	with := func(cfg rediskit.Config, change func(*rediskit.Config)) rediskit.Config {
		change(&cfg)
		return cfg
	}
	for _, tt := range []struct {
		name string
		cfg  rediskit.Config
		want []string
	}{
		{"refused", rediskit.Config{Addrs: []string{refused}}, []string{refused, "connection refused", "REDIS_URL", "REDIS_HOST"}},
		{"no socket", rediskit.Config{Addrs: []string{"/nonexistent/redis.sock"}}, []string{"no socket"}},
		{"wrong password", with(acl.Config(), func(c *rediskit.Config) { c.Password = "s3cret-wrong" }), []string{"user alice", "WRONGPASS", "REDIS_PASSWORD"}},
		{"no password", rediskit.Config{Addrs: []string{acl.Addr()}}, []string{"NOAUTH", "REDIS_PASSWORD"}},
		{"no permission", acl.Config(), []string{"NOPERM", "+ping"}},
		{"no such database", rediskit.Config{Addrs: []string{plain.Addr()}, DB: 99}, []string{"no such database", "REDIS_DB"}},
		{"TLS to a plain port", rediskit.Config{Addrs: []string{plain.Addr()}, TLS: true, DialTimeout: 300 * time.Millisecond}, []string{"TLS yes", "REDIS_TLS=false"}},
		{"plain to a TLS port", rediskit.Config{Addrs: []string{secure.Addr()}}, []string{"TLS no", "rediss://"}},
		{"unknown authority", with(secure.Config(), func(c *rediskit.Config) { c.CAFile = filepath.Join(other.Dir(), "ca.crt") }), []string{"unknown authority", "REDIS_CA_FILE"}},
		{"certificate for another host", with(secure.Config(), func(c *rediskit.Config) { c.ServerName = "redis.example" }), []string{"for another host"}},
		{"no client certificate", with(secure.Config(), func(c *rediskit.Config) { c.CertFile, c.KeyFile = "", "" }), []string{"REDIS_CERT_FILE"}},
		{"not a cluster", rediskit.Config{Addrs: []string{plain.Addr()}, Cluster: true}, []string{"the cluster", "not part of a cluster"}},
		{"sentinels refuse", rediskit.Config{Addrs: []string{refused}, Master: "main"}, []string{`master "main"`, "connection refused", "REDIS_SENTINELS"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, err := rediskit.Open(t.Context(), tt.cfg)
			if err == nil {
				_ = client.Close()
				t.Fatal("connected")
			}
			if _, ok := errors.AsType[*rediskit.ConnError](err); !ok {
				t.Errorf("%T is not a ConnError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is missing in: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password is in: %v", err)
			}
		})
	}
}

// Sentinels and data servers have users of their own, and the error says whose
// password is wrong.
func TestOpen_errorTellsSentinelsFromServers(t *testing.T) {
	t.Parallel()
	set := testenv.Sentinel(t)
	for _, tt := range []struct {
		name   string
		change func(*rediskit.Config)
		want   string
	}{
		{"sentinels' password", func(c *rediskit.Config) { c.SentinelPassword = "s3cret" }, "REDIS_SENTINEL_PASSWORD"},
		{"no login for the sentinels", func(c *rediskit.Config) { c.SentinelUsername, c.SentinelPassword = "", "" }, "REDIS_SENTINEL_PASSWORD"},
		{"password of the servers", func(c *rediskit.Config) { c.Password = "s3cret" }, "REDIS_PASSWORD"},
		{"name of the master", func(c *rediskit.Config) { c.Master = "other" }, "REDIS_MASTER_NAME"},
	} {
		cfg := set.Config()
		tt.change(&cfg)
		client, err := rediskit.Open(t.Context(), cfg)
		if err == nil {
			_ = client.Close()
			t.Errorf("%s: connected", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestOpen_badFiles(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []rediskit.Config{
		{TLS: true, CAFile: "/nonexistent/ca.pem"},
		{TLS: true, CAFile: notPEM},
		{TLS: true, CertFile: notPEM, KeyFile: notPEM},
	} {
		client, err := rediskit.Open(t.Context(), cfg)
		if err == nil {
			_ = client.Close()
			t.Fatalf("%s: no error", cfg.CAFile)
		}
		if file := cfg.CAFile + cfg.CertFile; !strings.Contains(err.Error(), file) {
			t.Errorf("%v does not name %s", err, file)
		}
	}
}

// The client certificate is read at each handshake: a renewed one counts
// without a restart, which a removed one shows.
func TestOpen_clientCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.TLS())
	client := srv.Open(t)
	if err := os.Remove(filepath.Join(srv.Dir(), "client.crt")); err != nil {
		t.Fatal(err)
	}
	if err := client.Dedicated("second").Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "client.crt") {
		t.Errorf("a new connection after the certificate was removed: %v", err)
	}
}

// go-redis prints failed dials to standard error by default. LogTo is global,
// so this test is not parallel.
func TestLogTo(t *testing.T) { //nolint:paralleltest // go-redis has one logger
	var lines atomic.Int64
	rediskit.LogTo(func(string) { lines.Add(1) })
	defer rediskit.LogTo(nil)
	cfg := rediskit.Config{Addrs: []string{closedPort(t)}, Master: "main"}
	if client, err := rediskit.Open(t.Context(), cfg); err == nil {
		_ = client.Close()
		t.Fatal("connected")
	}
	if lines.Load() == 0 {
		t.Error("nothing was logged through LogTo: Open has replaced it, or go-redis has changed")
	}
}

// 0.0.0.0 leads to this machine, but is not an address of the loopback.
func TestOpen_warnsOnceOfAConnectionInTheClear(t *testing.T) { //nolint:paralleltest // go-redis has one logger
	srv := testenv.Redis(t)
	_, port, err := net.SplitHostPort(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	var warnings atomic.Int64
	rediskit.LogTo(func(line string) {
		if strings.Contains(line, "not encrypted") {
			warnings.Add(1)
		}
	})
	defer rediskit.LogTo(nil)
	client, err := rediskit.Open(t.Context(), rediskit.Config{Addrs: []string{"0.0.0.0:" + port}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for _, c := range []redis.UniversalClient{client.Dedicated("more"), client.Publisher(), client.Subscriber()} {
		if err := c.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	srv.Open(t)
	if n := warnings.Load(); n != 1 {
		t.Errorf("%d warnings, want 1: of the first client only", n)
	}
}

func TestClient_pools(t *testing.T) {
	t.Parallel()
	cfg := testenv.Redis(t).Config()
	cfg.Service, cfg.PoolSize = "api-gateway", 1
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if client.Publisher() != client.Publisher() || client.Subscriber() != client.Subscriber() {
		t.Error("a second call makes a second pool")
	}
	// The only connection for commands is taken: publishing and subscribing must
	// not need it.
	conn := client.UniversalClient.(*redis.Client).Conn()
	defer func() { _ = conn.Close() }()
	if err := conn.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	sub := client.Subscriber().Subscribe(t.Context(), client.Key("updates"))
	defer func() { _ = sub.Close() }()
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Publisher().Publish(t.Context(), client.Key("updates"), "hello").Result(); err != nil || n != 1 {
		t.Errorf("PUBLISH reached %d, %v", n, err)
	}
	patient := client.Dedicated("patient", func(c *rediskit.Config) { c.MaxRetries, c.PoolSize = -1, 3 })
	if o := patient.(*redis.Client).Options(); o.MaxRetries != 0 || o.PoolSize != 3 || o.Username != cfg.Username {
		t.Errorf("options %+v", o)
	}
	if client.Config().PoolSize != 1 {
		t.Error("a change for one pool changed the others")
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return addr
}
