package rediskit_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/medicalink/postroom/rediskit"
)

func TestFromEnv(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(" pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  string // entries separated by |
		want rediskit.Config
	}{
		{"", rediskit.Config{Addrs: []string{"127.0.0.1:6379"}}},
		{"REDIS_HOST=redis.example|REDIS_PORT=6380|REDIS_PASSWORD=|REDIS_TLS=false|REDIS_DB=2", rediskit.Config{Addrs: []string{"redis.example:6380"}, DB: 2}},
		{"REDIS_URL=rediss://alice:pw@redis.example:6380", rediskit.Config{Addrs: []string{"redis.example:6380"}, Username: "alice", Password: "pw", TLS: true}},
		{"REDIS_URL=rediss://10.0.0.1|REDIS_SERVER_NAME=redis.example|REDIS_CA_FILE=ca.pem", rediskit.Config{Addrs: []string{"10.0.0.1:6379"}, TLS: true, ServerName: "redis.example", CAFile: "ca.pem"}},
		{"REDIS_URL=unix:///run/redis.sock", rediskit.Config{Addrs: []string{"/run/redis.sock"}}},
		{"REDIS_USERNAME=alice|REDIS_PASSWORD_FILE=" + file, rediskit.Config{Addrs: []string{"127.0.0.1:6379"}, Username: "alice", Password: " pw"}},
		{
			"REDIS_SENTINELS=a:1,b:2|REDIS_MASTER_NAME=m|REDIS_USERNAME=alice|REDIS_PASSWORD=pw|REDIS_SENTINEL_USERNAME=watch|REDIS_SENTINEL_PASSWORD=dog",
			rediskit.Config{Addrs: []string{"a:1", "b:2"}, Master: "m", Username: "alice", Password: "pw", SentinelUsername: "watch", SentinelPassword: "dog"},
		},
		{"REDIS_SENTINELS=a:1|REDIS_MASTER_NAME=m|REDIS_SENTINEL_PASSWORD=dog", rediskit.Config{Addrs: []string{"a:1"}, Master: "m", SentinelPassword: "dog"}},
		{"REDIS_CLUSTER=a:1, b:2|REDIS_POOL_SIZE=7", rediskit.Config{Addrs: []string{"a:1", "b:2"}, Cluster: true, PoolSize: 7}},
	} {
		got, err := rediskit.FromEnv(strings.Split("SERVICE_NAME=api-gateway|"+tt.env, "|"))
		if err != nil {
			t.Errorf("%s: %v", tt.env, err)
			continue
		}
		tt.want.Service = "api-gateway"
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %#v, want %#v", tt.env, got, tt.want)
		}
	}
}

func TestCacheFromEnv(t *testing.T) {
	t.Parallel()
	env := []string{"SERVICE_NAME=api-gateway", "REDIS_URL=redis://alice:pw@queues/1"}
	got, err := rediskit.CacheFromEnv(env)
	if want := (rediskit.Config{Addrs: []string{"queues:6379"}, Username: "alice", Password: "pw", DB: 1, Service: "api-gateway"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without a Redis of its own: %#v, %v", got, err)
	}
	got, err = rediskit.CacheFromEnv(append(env, "CACHE_REDIS_URL=rediss://cache", "REDIS_CA_FILE=ca.pem"))
	if want := (rediskit.Config{Addrs: []string{"cache:6379"}, TLS: true, CAFile: "ca.pem", Service: "api-gateway"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with a Redis of its own: %#v, %v", got, err)
	}
}

// What config checks through FromEnv is tested there; this is what services
// meet without it.
func TestFromEnv_badValues(t *testing.T) {
	t.Parallel()
	_, err := rediskit.FromEnv([]string{
		"SERVICE_NAME=Api:Gateway", "REDIS_URL=rediss://:s3cret@redis", "REDIS_TLS=false", "REDIS_PASSWORD= s3cret2", "REDIS_POOL_SIZE=0",
		"REDIS_SENTINEL_PASSWORD=s3cret3", "REDIS_MASTER_NAME=m", "CACHE_REDIS_URL=http://:s3cret@x", "REDIS_PASSWORD_FILE=/s3cret",
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`SERVICE_NAME: "Api:Gateway" is not accepted`, "REDIS_TLS: \"false\" is not accepted: contradicts REDIS_URL", "REDIS_PASSWORD: is set, and so is",
		"REDIS_PASSWORD: <secret> is not accepted: contradicts", `REDIS_POOL_SIZE: "0"`, "REDIS_SENTINEL_PASSWORD: <secret>", "REDIS_MASTER_NAME", "CACHE_REDIS_URL: <secret>",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a secret is in:\n%v", err)
	}
	for env, want := range map[string]string{
		"":                                   "SERVICE_NAME",
		"SERVICE_NAME=a|REDIS_SERVER_NAME=x": "REDIS_SERVER_NAME",
		"SERVICE_NAME=a|REDIS_SENTINELS=a:1|REDIS_MASTER_NAME=m|REDIS_SENTINEL_USERNAME=x":       "REDIS_SENTINEL_PASSWORD",
		"SERVICE_NAME=a|REDIS_PASSWORD_FILE=/nonexistent":                                        "REDIS_PASSWORD_FILE",
		"SERVICE_NAME=a|REDIS_URL_FILE=" + os.DevNull:                                            "REDIS_URL_FILE",
		"SERVICE_NAME=a|REDIS_SENTINELS=a:1|REDIS_MASTER_NAME=m|REDIS_URL=redis://redis":         "REDIS_URL",
		"SERVICE_NAME=a|REDIS_SENTINELS=a:1|REDIS_CLUSTER=b:1|REDIS_MASTER_NAME=m|REDIS_DB=1":    "REDIS_SENTINELS",
		"SERVICE_NAME=a|REDIS_TLS=true|REDIS_CERT_FILE=client.pem|REDIS_PORT=tcp://10.0.0.1:123": "REDIS_PORT",
	} {
		_, err := rediskit.FromEnv(strings.Split(env, "|"))
		e, ok := errors.AsType[*rediskit.EnvError](err)
		if !ok || e.Name != want {
			t.Errorf("%s: %v, want an error of %s", env, err, want)
		}
	}
}
