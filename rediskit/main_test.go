package rediskit_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

// Every client that a test opened is closed, failed first connections included.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(testenv.Main(m), testenv.IgnorePools())
}
