package rediskit_test

import (
	"testing"

	"go.uber.org/goleak"
)

// Every client that a test opened is closed, failed first connections included.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
