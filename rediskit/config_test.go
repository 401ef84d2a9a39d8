package rediskit

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		raw  string
		want Config
	}{
		{"redis://localhost", Config{Addrs: []string{"localhost:6379"}}},
		{"redis://redis:6380/3", Config{Addrs: []string{"redis:6380"}, DB: 3}},
		{"redis://redis/?db=4", Config{Addrs: []string{"redis:6379"}, DB: 4}},
		{"redis://:pw@redis", Config{Addrs: []string{"redis:6379"}, Password: "pw"}},
		{"rediss://alice:pw@redis:6379/1", Config{Addrs: []string{"redis:6379"}, Username: "alice", Password: "pw", DB: 1, TLS: true}},
		{"rediss://al%40ice:p%23%2F%3A%25w@redis", Config{Addrs: []string{"redis:6379"}, Username: "al@ice", Password: "p#/:%w", TLS: true}},
		{"redis://alice@redis", Config{Addrs: []string{"redis:6379"}, Username: "alice"}},
		{"redis://[::1]:7000", Config{Addrs: []string{"[::1]:7000"}}},
		{"unix:///run/redis.sock?db=2", Config{Addrs: []string{"/run/redis.sock"}, DB: 2}},
		{"unix://alice:pw@/run/redis.sock", Config{Addrs: []string{"/run/redis.sock"}, Username: "alice", Password: "pw"}},
	} {
		got, err := ParseURL(tt.raw)
		if err != nil {
			t.Errorf("ParseURL(%q): %v", tt.raw, err)
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("ParseURL(%q) = %#v, want %#v", tt.raw, got, tt.want)
		}
	}
}

func TestParseURL_badIsExplainedWithoutThePassword(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, want string }{
		{"", "want redis://"},
		{"localhost:6379", "want redis://"},
		{"http://:s3cret@redis", "want redis://"},
		{"redis://user:s3cret/x@redis:6379", "percent-encoded"},
		{"redis://user:12/s3cret@redis:6379", "percent-encoded"},
		{"redis://user:s3cret#x@redis:6379", "percent-encoded"},
		{"redis://user:12?s3cret@redis:6379", "percent-encoded"},
		{"redis://user:%s3cret@redis:6379", "percent-encoded"},
		{"redis://user:s3cret@", "no host"},
		{"redis://user:s3cret@redis:99999", "port"},
		{"redis://user:s3cret@redis/one", "must be a number"},
		{"redis://user:s3cret@redis/1?db=2", "twice"},
		{"redis://user:s3cret@redis?skip_verify=true", "unknown parameter"},
		{"unix://", "absolute path"},
	} {
		_, err := ParseURL(tt.raw)
		if err == nil {
			t.Errorf("ParseURL(%q): no error", tt.raw)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("ParseURL(%q): %q, want it to mention %q and not the password", tt.raw, err, tt.want)
		}
	}
}

func TestConfig_Validate_allProblemsAtOnce(t *testing.T) {
	t.Parallel()
	if err := (Config{}).Validate(); err != nil {
		t.Fatalf("the zero value: %v", err)
	}
	err := Config{
		Addrs:    []string{"nohost", "redis:0"},
		Username: "alice",
		DB:       -1, CAFile: "ca.pem", CertFile: "client.pem",
		SentinelPassword: "s3cret",
		DialTimeout:      -1, PoolSize: -1, MaxRetries: -2, ClientName: "two words",
	}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"address must be", "2 addresses need", "sentinel credentials", "database -1", "certificate settings without TLS",
		"both its certificate file", "timeouts", "pool size", "retries", "client name",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	if got := strings.Count(err.Error(), "address must be"); got != 2 {
		t.Errorf("%d bad addresses reported, want 2", got)
	}
	for _, bad := range []Config{
		{Master: "m", Cluster: true},
		{Cluster: true, DB: 1},
		{Addrs: []string{"/run/redis.sock"}, TLS: true},
		{Addrs: []string{"/run/redis.sock"}, Master: "m"},
		{Username: "alice"},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func TestConfig_neverPrintsAPassword(t *testing.T) {
	t.Parallel()
	cfg := Config{Username: "alice", Password: "s3cret", SentinelPassword: "s3cret", Master: "main"}
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := &Client{cfg: cfg}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{cfg, &cfg, cfg.Password, client, struct{ C Config }{cfg}} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, "s3cret") || strings.Contains(got, "733363726574") {
				t.Errorf("%s of %T shows the password: %s", verb, v, got)
			}
		}
	}
	if strings.Contains(string(asJSON), "s3cret") || !strings.Contains(string(asJSON), "secret") {
		t.Errorf("JSON: %s", asJSON)
	}
	if got := fmt.Sprint(Secret("")); got != "" {
		t.Errorf("an empty secret prints %q", got)
	}
}

func TestConfig_Loopback(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		addrs []string
		want  bool
	}{
		{nil, true},
		{[]string{"localhost:6379", "127.0.0.2:1", "[::1]:1", "/run/redis.sock"}, true},
		{[]string{"localhost:6379", "10.0.0.1:6379"}, false},
		{[]string{"redis:6379"}, false},
	} {
		if got := (Config{Addrs: tt.addrs}).Loopback(); got != tt.want {
			t.Errorf("Loopback(%v) = %v", tt.addrs, got)
		}
	}
}

func TestServer_judge(t *testing.T) {
	t.Parallel()
	good := Server{Version: "7.0.15", Role: "master", Mode: "standalone", MaxMemoryPolicy: "noeviction", AOF: true}
	bad := Server{Version: "6.0.16", Role: "slave", Mode: "cluster", MaxMemoryPolicy: "allkeys-lru", MaxMemory: 100, UsedMemory: 90, WriteFailed: true}
	cache := good
	cache.MaxMemoryPolicy, cache.AOF = "allkeys-lru", false
	for _, tt := range []struct {
		name             string
		server           Server
		use              Use
		cfg              Config
		faults, warnings int
	}{
		{"good", good, ForQueues, Config{}, 0, 0},
		{"bad", bad, ForQueues, Config{}, 4, 3},
		{"bad as a cache", bad, ForCache, Config{}, 3, 1},
		{"a cache", cache, ForCache, Config{}, 0, 0},
		{"a cache for queues", cache, ForQueues, Config{}, 1, 1},
		{"eviction accepted", cache, ForQueues, Config{AllowEviction: true}, 0, 2},
		{"a server that hides", Server{Role: "master", AOF: true}, ForQueues, Config{}, 0, 1},
		{"a cluster", Server{Mode: "cluster"}, ForCache, Config{Cluster: true}, 0, 0},
	} {
		if faults, warnings := tt.server.judge(tt.use, tt.cfg); len(faults) != tt.faults || len(warnings) != tt.warnings {
			t.Errorf("%s: faults %q, warnings %q; want %d and %d", tt.name, faults, warnings, tt.faults, tt.warnings)
		}
	}
	for version, want := range map[string]bool{"6.2.0": true, "10.0": true, "7": true, "6.1.9": false, "5.9": false, "x": false} {
		if got := atLeast(version, 6, 2); got != want {
			t.Errorf("atLeast(%q) = %v", version, got)
		}
	}
}
