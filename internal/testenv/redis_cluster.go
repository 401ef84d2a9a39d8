//go:build unix

package testenv

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/medicalink/postroom/rediskit"
)

const (
	clusterMasters = 3
	clusterSlots   = 16384
)

// ClusterSet is a Redis Cluster of three masters with one replica each. It
// needs Redis 7.0, where the port of the cluster's bus can be chosen.
type ClusterSet struct {
	tb    testing.TB
	nodes []*RedisServer // masters first, as they were at the start
}

// Cluster starts a cluster for one test.
func Cluster(tb testing.TB) *ClusterSet {
	tb.Helper()
	c, err := launchCluster()
	if err != nil {
		tb.Fatal(err)
	}
	c.tb = tb
	for _, node := range c.nodes {
		node.lendTo(tb)
	}
	return c
}

func launchCluster() (*ClusterSet, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setTimeout)
	defer cancel()
	c := &ClusterSet{}
	if err := c.assemble(ctx); err != nil {
		err = fmt.Errorf("start a cluster: %w", err)
		c.discard()
		return nil, err
	}
	return c, nil
}

func (c *ClusterSet) assemble(ctx context.Context) (err error) {
	c.nodes, err = launchAll(2*clusterMasters, func(s *RedisServer) { s.busPort = 1 })
	if err != nil {
		return err
	}
	first := c.nodes[0]
	ids := make([]string, len(c.nodes))
	for i, node := range c.nodes {
		id, err := ask(ctx, node.Config(), "CLUSTER", "MYID")
		if err != nil {
			return err
		}
		ids[i] = fmt.Sprint(id)
		if i < clusterMasters {
			// Different epochs, or the masters settle their order only later.
			if _, err := ask(ctx, node.Config(), "CLUSTER", "SET-CONFIG-EPOCH", i+1); err != nil {
				return err
			}
			from, to := i*clusterSlots/clusterMasters, (i+1)*clusterSlots/clusterMasters-1
			if _, err := ask(ctx, node.Config(), "CLUSTER", "ADDSLOTSRANGE", from, to); err != nil {
				return err
			}
		}
		if i > 0 {
			if _, err := ask(ctx, first.Config(), "CLUSTER", "MEET", "127.0.0.1", node.port, node.busPort); err != nil {
				return err
			}
		}
	}
	for i := clusterMasters; i < len(c.nodes); i++ {
		err := poll(ctx, "nodes that know each other", func() (bool, error) {
			_, err := ask(ctx, c.nodes[i].Config(), "CLUSTER", "REPLICATE", ids[i-clusterMasters])
			return err == nil, err // "Unknown node" until the gossip has arrived
		})
		if err != nil {
			return err
		}
	}
	return poll(ctx, "a cluster whose nodes agree", func() (bool, error) {
		for i, node := range c.nodes {
			state, err := ask(ctx, node.Config(), "CLUSTER", "INFO")
			if err != nil || !strings.Contains(fmt.Sprint(state), "cluster_state:ok") {
				return false, err
			}
			nodes, err := c.view(ctx, node)
			if err != nil || strings.Count(nodes, "slave ") != clusterMasters || strings.Contains(nodes, "handshake") {
				return false, err
			}
			replication, err := ask(ctx, node.Config(), "INFO", "replication")
			if err != nil {
				return false, err
			}
			if i >= clusterMasters && !strings.Contains(fmt.Sprint(replication), "master_link_status:up") {
				return false, nil
			}
		}
		return true, nil
	})
}

// view returns CLUSTER NODES as node sees it.
func (c *ClusterSet) view(ctx context.Context, node *RedisServer) (string, error) {
	nodes, err := ask(ctx, node.Config(), "CLUSTER", "NODES")
	return fmt.Sprint(nodes), err
}

// Config returns the settings of a client for the cluster.
func (c *ClusterSet) Config() rediskit.Config {
	cfg := rediskit.Config{Cluster: true}
	for _, node := range c.nodes {
		cfg.Addrs = append(cfg.Addrs, node.Addr())
	}
	return cfg
}

// Open returns a client that is closed at the end of the test.
func (c *ClusterSet) Open(tb testing.TB) *rediskit.Client {
	tb.Helper()
	return open(tb, c.Config())
}

// Master returns the node that serves key's slot, waiting for a failover to
// end.
func (c *ClusterSet) Master(key string) *RedisServer {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), setTimeout)
	defer cancel()
	var found *RedisServer
	err := poll(ctx, "a master for the key", func() (bool, error) {
		var err error
		for _, node := range c.nodes {
			if node.cmd == nil {
				continue
			}
			// Only the slot's master answers; the others say MOVED.
			if _, err = ask(ctx, node.Config(), "EXISTS", key); err == nil {
				var role any
				if role, err = ask(ctx, node.Config(), "ROLE"); err == nil && fmt.Sprint(role.([]any)[0]) == "master" {
					found = node
					return true, nil
				}
			}
		}
		return false, err
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	return found
}

// KillMaster ends the master of key's slot as a crash would and returns it. Its
// replica takes over some seconds later: [ClusterSet.Master] names it once it
// has.
func (c *ClusterSet) KillMaster(key string) *RedisServer {
	c.tb.Helper()
	master := c.Master(key)
	master.Kill()
	return master
}

func (c *ClusterSet) discard() {
	for _, node := range c.nodes {
		node.discard()
	}
}
