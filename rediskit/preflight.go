package rediskit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Use is what a program keeps in a Redis.
type Use string

// The uses that differ in what a server must not do.
const (
	// ForQueues is jobs, which must not be lost.
	ForQueues Use = "queues"
	// ForCache is values that can be made again, so the server may evict and
	// forget them.
	ForCache Use = "cache"
)

// Preflight is what [Client.Preflight] found.
type Preflight struct {
	Servers  []Server // the masters of a cluster, or one; none if the user may not ask
	Faults   []string // why the server must not be used; what to change
	Warnings []string // what is unsafe but works
}

// UnfitError says that a Redis works but must not be used for what it is meant
// for.
type UnfitError struct {
	Target string // addresses, user, TLS, database
	Use    Use
	Faults []string // never empty
}

// Error returns target and faults.
func (e *UnfitError) Error() string {
	return fmt.Sprintf("Redis at %s is not fit for %s: %s", e.Target, e.Use, strings.Join(e.Faults, "; "))
}

// Preflight asks the server, or each master of a cluster, whether it is fit for
// use: version 6.2 or newer, a master, and for queues one that deletes no keys
// (see Config.AllowEviction) and keeps what it acknowledged. A program calls it
// once at its start, refuses to go on after an error, and logs the warnings.
// Its error is an *[UnfitError] or, if the server did not answer, wraps a
// *[ConnError]. A user who may not run INFO gets a warning.
func (c *Client) Preflight(ctx context.Context, use Use) (Preflight, error) {
	p := Preflight{Warnings: c.cfg.Warnings()}
	servers, err := c.Servers(ctx)
	if reply, ok := errors.AsType[redis.Error](err); ok && strings.HasPrefix(reply.Error(), "NOPERM") {
		p.Warnings = append(p.Warnings, "it answers, but not to INFO, so version, policy and persistence are unknown: grant the user +info")
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.Servers = servers
	for _, s := range servers {
		faults, warnings := s.judge(use, c.cfg)
		for _, f := range faults {
			if !slices.Contains(p.Faults, f) {
				p.Faults = append(p.Faults, f)
			}
		}
		for _, w := range warnings {
			if !slices.Contains(p.Warnings, w) {
				p.Warnings = append(p.Warnings, w)
			}
		}
	}
	if len(p.Faults) > 0 {
		return p, &UnfitError{Target: c.cfg.String(), Use: use, Faults: p.Faults}
	}
	return p, nil
}

func (s Server) judge(use Use, cfg Config) (faults, warnings []string) {
	if s.Version != "" && !atLeast(s.Version, 6, 2) {
		faults = append(faults, "Redis "+s.Version+" is too old: 6.2 or newer is needed")
	}
	if s.Role == "slave" {
		faults = append(faults, "this is a replica: it refuses writes; connect to the master, or use REDIS_SENTINELS")
	}
	if s.Mode == "cluster" && !cfg.Cluster {
		faults = append(faults, "this is a node of a cluster, which refuses the keys of the other nodes: use REDIS_CLUSTER")
	}
	if s.WriteFailed {
		warnings = append(warnings, "the server could not write to its disk: it may refuse writes, and a restart loses data; see its log")
	}
	if use != ForQueues {
		return faults, warnings
	}
	switch evicts := "maxmemory-policy is " + s.MaxMemoryPolicy + ": Redis deletes queued jobs when memory is short; set maxmemory-policy noeviction"; {
	case s.MaxMemoryPolicy == "":
		warnings = append(warnings, "the server does not tell its maxmemory-policy: make sure that it is noeviction")
	case s.MaxMemoryPolicy == "noeviction":
	case cfg.AllowEviction:
		warnings = append(warnings, evicts)
	default:
		faults = append(faults, evicts+" (or accept the loss with REDIS_ALLOW_EVICTION=true)")
	}
	if !s.AOF {
		warnings = append(warnings, "the append-only file is off: a restart of Redis loses the jobs since its last snapshot; set appendonly yes")
	}
	if s.MaxMemory > 0 && s.UsedMemory > s.MaxMemory/10*7 {
		warnings = append(warnings, fmt.Sprintf("memory is %d %% full: a full Redis stops every queue; raise maxmemory",
			s.UsedMemory*100/s.MaxMemory))
	}
	return faults, warnings
}
