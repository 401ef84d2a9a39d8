package rediskit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Server is what a Redis server says of itself in INFO.
type Server struct {
	Version         string // such as "7.0.15"
	Mode            string // standalone, sentinel or cluster
	Role            string // master or slave
	MaxMemoryPolicy string // such as "noeviction"; "" if the server does not say
	MaxMemory       int64  // bytes; 0 is unlimited
	UsedMemory      int64  // bytes
	AOF             bool   // the append-only file is on
	RDBChanges      int64  // writes since the last snapshot
	Loading         bool
}

// Server reads INFO, with one command. In a cluster it describes one node.
func (c *Client) Server(ctx context.Context) (Server, error) {
	text, err := c.Info(ctx).Result()
	if err != nil {
		return Server{}, fmt.Errorf("read redis INFO: %w", c.cfg.explain(err))
	}
	info := parseInfo(text)
	num := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64)
		return n
	}
	return Server{
		Version:         info["redis_version"],
		Mode:            info["redis_mode"],
		Role:            info["role"],
		MaxMemoryPolicy: info["maxmemory_policy"],
		MaxMemory:       num("maxmemory"),
		UsedMemory:      num("used_memory"),
		AOF:             info["aof_enabled"] == "1",
		RDBChanges:      num("rdb_changes_since_last_save"),
		Loading:         info["loading"] == "1",
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

// Faults lists what makes s unfit for queues: it would lose or refuse jobs.
func (s Server) Faults() []string {
	var faults []string
	if s.MaxMemoryPolicy != "" && s.MaxMemoryPolicy != "noeviction" {
		faults = append(faults, "maxmemory-policy is "+s.MaxMemoryPolicy+
			": Redis would delete queued jobs when memory is short; set maxmemory-policy noeviction")
	}
	if s.Role == "slave" {
		faults = append(faults, "this is a replica: it refuses writes; connect to the master, or use REDIS_SENTINELS")
	}
	if s.Version != "" && !atLeast(s.Version, 6, 2) {
		faults = append(faults, "Redis "+s.Version+" is too old: 6.2 or newer is needed to archive jobs")
	}
	return faults
}

// Warnings lists what works but can lose acknowledged jobs.
func (s Server) Warnings() []string {
	var warnings []string
	if !s.AOF {
		warnings = append(warnings, "the append-only file is off: a restart of Redis loses the jobs since its last snapshot; set appendonly yes")
	}
	if s.MaxMemoryPolicy == "" {
		warnings = append(warnings, "the server does not tell its maxmemory-policy: make sure that it is noeviction")
	}
	if s.MaxMemory > 0 && s.UsedMemory > s.MaxMemory/10*7 {
		warnings = append(warnings, fmt.Sprintf("memory is %d %% full: a full Redis stops every queue; raise maxmemory",
			s.UsedMemory*100/s.MaxMemory))
	}
	return warnings
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
