package rediskit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Server is what a Redis server says of itself in INFO.
type Server struct {
	Version           string `json:"version"` // such as "7.0.15"
	Mode              string `json:"mode"`    // standalone, sentinel or cluster
	Role              string `json:"role"`    // master or slave
	ConnectedReplicas int64  `json:"connected_replicas"`
	MaxMemoryPolicy   string `json:"maxmemory_policy"`  // such as "noeviction"; "" if the server does not say
	MaxMemory         int64  `json:"max_memory_bytes"`  // 0 is unlimited
	UsedMemory        int64  `json:"used_memory_bytes"` // bytes
	AOF               bool   `json:"append_only_file"`  // the append-only file is on
	RDBChanges        int64  `json:"unsaved_changes"`   // writes since the last snapshot
	WriteFailed       bool   `json:"write_failed"`      // the last snapshot or write of the append-only file failed
	Loading           bool   `json:"loading"`
}

// Server reads INFO, with one command. In a cluster it describes one of the
// masters; [Client.Servers] describes all.
func (c *Client) Server(ctx context.Context) (Server, error) {
	if c.cfg.Cluster {
		servers, err := c.Servers(ctx)
		if err != nil {
			return Server{}, err
		}
		return servers[0], nil
	}
	return c.server(ctx, c)
}

// Servers reads INFO of the server, or of every master of a cluster.
func (c *Client) Servers(ctx context.Context) ([]Server, error) {
	cluster, ok := c.UniversalClient.(*redis.ClusterClient)
	if !ok {
		s, err := c.server(ctx, c)
		if err != nil {
			return nil, err
		}
		return []Server{s}, nil
	}
	var mu sync.Mutex // owns servers
	var servers []Server
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		s, err := c.server(ctx, node)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			servers = append(servers, s)
		}
		return err
	})
	if err == nil && len(servers) == 0 {
		err = errors.New("read redis INFO: the cluster names no master")
	}
	if err != nil {
		return nil, err
	}
	return servers, nil
}

func (c *Client) server(ctx context.Context, node redis.Cmdable) (Server, error) {
	text, err := node.Info(ctx).Result()
	if err != nil {
		return Server{}, fmt.Errorf("read redis INFO: %w", c.cfg.explain(err))
	}
	info := parseInfo(text)
	num := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64)
		return n
	}
	return Server{
		Version:           info["redis_version"],
		Mode:              info["redis_mode"],
		Role:              info["role"],
		ConnectedReplicas: num("connected_slaves"),
		MaxMemoryPolicy:   info["maxmemory_policy"],
		MaxMemory:         num("maxmemory"),
		UsedMemory:        num("used_memory"),
		AOF:               info["aof_enabled"] == "1",
		RDBChanges:        num("rdb_changes_since_last_save"),
		WriteFailed:       info["rdb_last_bgsave_status"] == "err" || info["aof_last_write_status"] == "err",
		Loading:           info["loading"] == "1",
	}, nil
}

// parseInfo reads "name:value" lines; others are section titles.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}

// atLeast compares the first two numbers of version.
func atLeast(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	got, err := strconv.Atoi(first)
	if err != nil {
		return false
	}
	gotMinor, _ := strconv.Atoi(second)
	return got > major || got == major && gotMinor >= minor
}
