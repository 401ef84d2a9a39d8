//go:build unix

package testenv

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/medicalink/postroom/rediskit"
)

// topology is one way to run Redis, started once for a test binary.
type topology struct {
	name   string
	launch func() (rediskit.Config, func(), error)

	mu   sync.Mutex // held while it starts
	cfg  rediskit.Config
	err  error
	stop func() // nil before the first start
}

func single(opts ...RedisOption) func() (rediskit.Config, func(), error) {
	return func() (rediskit.Config, func(), error) {
		s, err := launch(opts...)
		if err != nil {
			return rediskit.Config{}, nil, err
		}
		return s.Config(), s.discard, nil
	}
}

var (
	shared = []*topology{
		{name: "plain", launch: single()},
		{name: "TLS", launch: single(TLS())},
		{name: "ACL", launch: single(ACL("each-user", "each-password", "~* &* +@all -@admin"))},
		{name: "Sentinel", launch: func() (rediskit.Config, func(), error) {
			s, err := launchSentinel()
			if err != nil {
				return rediskit.Config{}, nil, err
			}
			return s.Config(), s.discard, nil
		}},
		{name: "Cluster", launch: func() (rediskit.Config, func(), error) {
			c, err := launchCluster()
			if err != nil {
				return rediskit.Config{}, nil, err
			}
			return c.Config(), c.discard, nil
		}},
	}
	stopsShared atomic.Bool  // [Main] will stop the shared servers
	services    atomic.Int64 // counts the tests that share a server
)

// config starts the topology unless it runs already.
func (t *topology) config() (rediskit.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop == nil && t.err == nil {
		t.cfg, t.stop, t.err = t.launch()
	}
	cfg := t.cfg
	cfg.Addrs = slices.Clone(cfg.Addrs)
	return cfg, t.err
}

// Main wraps a test binary so that what [EachRedis] shares is stopped after the
// last test and before anything looks for leaks:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main(m)) }
//
// Without goleak: os.Exit(testenv.Main(m).Run()).
func Main(m *testing.M) interface{ Run() int } { return mainTest{m} }

type mainTest struct{ m *testing.M }

func (t mainTest) Run() int {
	stopsShared.Store(true)
	code := t.m.Run()
	for _, s := range shared {
		s.mu.Lock()
		if s.stop != nil {
			s.stop()
		}
		s.mu.Unlock()
	}
	return code
}

// EachRedis runs test as one parallel subtest for each way to run Redis: a
// plain server, TLS with client certificates, an ACL user (without the
// administrators' commands), a Sentinel set and a Cluster. The servers are
// shared by the whole test binary, which needs [Main], so tests keep to keys
// made by the client's Key method: each subtest has a service name of its own.
// Another client with the same keys is rediskit.Open(ctx, client.Config()).
// A test that kills a server starts its own: [Redis], [Sentinel], [Cluster].
func EachRedis(t *testing.T, test func(t *testing.T, client *rediskit.Client)) {
	t.Helper()
	if !stopsShared.Load() {
		t.Fatal("EachRedis needs testenv.Main in TestMain, which stops the servers")
	}
	for _, topology := range shared {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			cfg, err := topology.config()
			if err != nil {
				t.Fatal(err)
			}
			cfg.Service = "test-" + strconv.FormatInt(services.Add(1), 10)
			test(t, open(t, cfg))
		})
	}
}

// ExampleRedis starts a plain server for an Example, which has no testing.TB:
//
//	cfg, stop := testenv.ExampleRedis()
//	defer stop()
//
// The service's name is "api-gateway". It panics if the server does not start.
func ExampleRedis() (cfg rediskit.Config, stop func()) {
	s, err := launch()
	if err != nil {
		panic(fmt.Sprintf("example: %v", err))
	}
	cfg = s.Config()
	cfg.Service = "api-gateway"
	return cfg, s.discard
}
