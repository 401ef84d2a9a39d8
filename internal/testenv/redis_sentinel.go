//go:build unix

package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

const (
	// failureTimeout, in milliseconds, is how long a server must be silent before
	// sentinels or cluster nodes hold it for dead. Shorter and a busy machine
	// causes failovers nobody asked for.
	failureTimeout = "3000"
	// setTimeout bounds the assembly of a Sentinel set or a cluster, and a failover.
	setTimeout = 45 * time.Second

	sentinelMaster = "postroom-test"
	dataUser       = "data-user"
	dataPassword   = "data-password"
	watchUser      = "watch-user"
	watchPassword  = "watch-password"
)

// SentinelSet is one master, two replicas and three sentinels. Data servers and
// sentinels demand different users.
type SentinelSet struct {
	tb        testing.TB
	data      []*RedisServer
	sentinels []*RedisServer
}

// Sentinel starts a set for one test.
func Sentinel(tb testing.TB) *SentinelSet {
	tb.Helper()
	s, err := launchSentinel()
	if err != nil {
		tb.Fatal(err)
	}
	s.tb = tb
	for _, server := range append(s.data, s.sentinels...) {
		server.lendTo(tb)
	}
	return s
}

func launchSentinel() (*SentinelSet, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setTimeout)
	defer cancel()
	s := &SentinelSet{}
	if err := s.assemble(ctx); err != nil {
		err = fmt.Errorf("start a Sentinel set: %w", err)
		s.discard()
		return nil, err
	}
	return s, nil
}

func (s *SentinelSet) assemble(ctx context.Context) error {
	data := func(more ...string) RedisOption {
		lines := append(more, "masteruser "+dataUser, "masterauth "+dataPassword)
		return func(s *RedisServer) {
			ACL(dataUser, dataPassword, "~* &* +@all")(s)
			s.settings = append(s.settings, lines...)
		}
	}
	master, err := launch(data())
	if err != nil {
		return err
	}
	s.data = append(s.data, master)
	port := strconv.Itoa(master.port)
	replicas, err := launchAll(2, data("replicaof 127.0.0.1 "+port))
	s.data = append(s.data, replicas...)
	if err != nil {
		return err
	}
	err = poll(ctx, "replicas in sync", func() (bool, error) {
		text, err := ask(ctx, master.Config(), "INFO", "replication")
		return strings.Count(fmt.Sprint(text), "state=online") == len(replicas), err
	})
	if err != nil {
		return err
	}

	s.sentinels, err = launchAll(3, func(s *RedisServer) {
		s.sentinel = true
		ACL(watchUser, watchPassword, "~* &* +@all")(s)
		s.settings = append(
			s.settings,
			"sentinel sentinel-user "+watchUser,
			"sentinel sentinel-pass "+watchPassword,
			"sentinel monitor "+sentinelMaster+" 127.0.0.1 "+port+" 2",
			"sentinel auth-user "+sentinelMaster+" "+dataUser,
			"sentinel auth-pass "+sentinelMaster+" "+dataPassword,
			"sentinel down-after-milliseconds "+sentinelMaster+" "+failureTimeout,
			"sentinel failover-timeout "+sentinelMaster+" 10000",
		)
	})
	if err != nil {
		return err
	}
	return poll(ctx, "sentinels that know each other and the replicas", func() (bool, error) {
		for _, sentinel := range s.sentinels {
			state, err := ask(ctx, sentinel.Config(), "SENTINEL", "MASTER", sentinelMaster)
			if err != nil {
				return false, err
			}
			fields := fields(state)
			if fields["num-other-sentinels"] != "2" || fields["num-slaves"] != "2" || fields["flags"] != "master" {
				return false, nil
			}
		}
		return true, nil
	})
}

// Config returns the settings of a client for the set.
func (s *SentinelSet) Config() rediskit.Config {
	cfg := rediskit.Config{
		Master: sentinelMaster, Username: dataUser, Password: dataPassword,
		SentinelUsername: watchUser, SentinelPassword: watchPassword,
	}
	for _, sentinel := range s.sentinels {
		cfg.Addrs = append(cfg.Addrs, sentinel.Addr())
	}
	return cfg
}

// Open returns a client that is closed at the end of the test.
func (s *SentinelSet) Open(tb testing.TB) *rediskit.Client {
	tb.Helper()
	return open(tb, s.Config())
}

// Master returns the server that the sentinels agree is the master, waiting for
// a failover to end.
func (s *SentinelSet) Master() *RedisServer {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), setTimeout)
	defer cancel()
	var found *RedisServer
	err := poll(ctx, "sentinels that agree on a master", func() (bool, error) {
		named := map[string]bool{}
		for _, sentinel := range s.sentinels {
			reply, err := ask(ctx, sentinel.Config(), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinelMaster)
			if err != nil {
				return false, err
			}
			if addr, ok := reply.([]any); ok && len(addr) == 2 {
				named[net.JoinHostPort(fmt.Sprint(addr[0]), fmt.Sprint(addr[1]))] = true
			}
		}
		for _, server := range s.data {
			if named[server.Addr()] {
				found = server
			}
		}
		if found == nil || len(named) > 1 {
			return false, nil
		}
		// Until they have agreed on another one, they name a dead master.
		role, err := ask(ctx, found.Config(), "ROLE")
		return err == nil && fmt.Sprint(role.([]any)[0]) == "master", err
	})
	if err != nil {
		s.tb.Fatal(err)
	}
	return found
}

// KillMaster ends the master as a crash would and returns it. The sentinels
// promote a replica some seconds later: [SentinelSet.Master] names it once they
// have.
func (s *SentinelSet) KillMaster() *RedisServer {
	s.tb.Helper()
	master := s.Master()
	master.Kill()
	return master
}

func (s *SentinelSet) discard() {
	for _, server := range append(s.sentinels, s.data...) {
		server.discard()
	}
}

// launchAll starts n servers at once and returns those that started.
func launchAll(n int, opts ...RedisOption) ([]*RedisServer, error) {
	servers, errs := make([]*RedisServer, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { servers[i], errs[i] = launch(opts...) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		var started []*RedisServer
		for _, s := range servers {
			if s != nil {
				started = append(started, s)
			}
		}
		return started, err
	}
	return servers, nil
}

// poll asks until done says yes. The last error is shown when time is up.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ask sends one command over a connection of its own.
func ask(ctx context.Context, cfg rediskit.Config, command ...any) (any, error) {
	cfg.MaxRetries = -1
	client, err := rediskit.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	return client.Do(ctx, command...).Result()
}

// fields reads a reply that is a map, in RESP3, or alternating names and values.
func fields(reply any) map[string]string {
	found := map[string]string{}
	switch reply := reply.(type) {
	case map[any]any:
		for name, value := range reply {
			found[fmt.Sprint(name)] = fmt.Sprint(value)
		}
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			found[fmt.Sprint(reply[i])] = fmt.Sprint(reply[i+1])
		}
	}
	return found
}
