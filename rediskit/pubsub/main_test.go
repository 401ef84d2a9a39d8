package pubsub_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
)

// Every subscription that a test opened has ended with its goroutines.
func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main(m), testenv.IgnorePools()) }
