package rediskit_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

// Every client that a test opened is closed, failed first connections included.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(
		testenv.Main(m),
		// A pool whose server is dead looks for it once a second, and ends up to a
		// second after it was closed.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"),
	)
}
