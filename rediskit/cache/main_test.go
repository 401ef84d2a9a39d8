package cache_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

// client is what the Examples and benchmarks use: the service is api-gateway.
var client *rediskit.Client

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(withExamples{testenv.Main(m)}, testenv.IgnorePools())
}

// withExamples runs the tests while the Examples' server is up.
type withExamples struct{ m interface{ Run() int } }

func (w withExamples) Run() int {
	cfg, stop := testenv.ExampleRedis()
	defer stop()
	var err error
	if client, err = rediskit.Open(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = client.Close() }()
	return w.m.Run()
}
