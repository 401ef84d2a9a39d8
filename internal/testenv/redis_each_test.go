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

