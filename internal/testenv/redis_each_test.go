//go:build unix

package testenv_test

import (
	"os"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m).Run()) }

func TestEachRedis(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		if client.Service() == "" {
			t.Error("no service name: the tests on a shared server would meet")
		}
		// Enough keys to reach every node of a cluster.
		for _, part := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			key := client.Key(part)
			if err := client.Set(t.Context(), key, part, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
			if got, err := client.Get(t.Context(), key).Result(); err != nil || got != part {
				t.Errorf("GET %s = %q, %v", key, got, err)
			}
		}
	})
}

// A killed master has a successor that clients find.
func TestKillMaster(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func() (client *rediskit.Client, kill, master func() *testenv.RedisServer)
	}{
		{"Sentinel", func() (*rediskit.Client, func() *testenv.RedisServer, func() *testenv.RedisServer) {
			set := testenv.Sentinel(t)
			return set.Open(t), set.KillMaster, set.Master
		}},
		{"Cluster", func() (*rediskit.Client, func() *testenv.RedisServer, func() *testenv.RedisServer) {
			set := testenv.Cluster(t)
			return set.Open(t),
				func() *testenv.RedisServer { return set.KillMaster("key") },
				func() *testenv.RedisServer { return set.Master("key") }
		}},
	} {
		client, kill, master := tt.start()
		dead := kill()
		if heir := master(); heir.Addr() == dead.Addr() {
			t.Errorf("%s: the dead server is still the master", tt.name)
		}
		for deadline := time.Now().Add(30 * time.Second); ; {
			err := client.Set(t.Context(), "key", "value", 0).Err()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
	}
}

func TestExampleRedis(t *testing.T) {
	t.Parallel()
	cfg, stop := testenv.ExampleRedis()
	client, err := rediskit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := client.Key("user", "1"); got != "api-gateway:user:1" {
		t.Errorf("Key = %q", got)
	}
	stop()
	if err := client.Health(t.Context()); err == nil {
		t.Error("the server outlived stop")
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}
