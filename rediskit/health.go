package rediskit

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// healthTimeout bounds the answer of HealthHandler: probes time out early.
const healthTimeout = 2 * time.Second

// healthTime is RFC 3339 in UTC with milliseconds.
const healthTime = "2006-01-02T15:04:05.000Z"

type health struct {
	Status    string         `json:"status"`
	Timestamp string         `json:"timestamp"`
	Error     string         `json:"error,omitempty"`
	Details   *healthDetails `json:"details,omitempty"`
}

type healthDetails struct {
	RoundTrip float64   `json:"round_trip_ms"` // of the PING
	Topology  string    `json:"topology"`      // single, sentinel or cluster
	TLS       bool      `json:"tls"`
	Servers   []Server  `json:"servers"` // the masters of a cluster, or one
	Warnings  []string  `json:"warnings"`
	Pool      poolStats `json:"pool"`
}

// poolStats are those of the connections for commands, since the client was
// opened.
type poolStats struct {
	Total    uint32 `json:"connections"`
	Idle     uint32 `json:"idle"`
	Hits     uint32 `json:"hits"`     // a free connection was there
	Misses   uint32 `json:"misses"`   // one had to be made or waited for
	Timeouts uint32 `json:"timeouts"` // none became free in time
	Stale    uint32 `json:"stale"`    // broken ones that were removed
}

// HealthHandler answers whether Redis answers, for probes and people:
//
//	mux.Handle("GET /health/redis", rediskit.HealthHandler(client))
//
// 200 is {"status":"healthy","timestamp":"2024-01-15T10:30:00.000Z"}; 503 has
// "unhealthy" and an "error" that names no host and no user. It waits for Redis
// for 2 s at most. ?verbose adds "details": round trip, topology, version, role,
// memory, policy and replicas of each master, and statistics of the pool. They
// hold no credentials, but tell more than a stranger needs: serve the route to
// the inside only.
func HealthHandler(client *Client) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		code, h := http.StatusOK, health{Status: "healthy"}
		start := time.Now()
		if err := client.Health(ctx); err != nil {
			code, h.Status, h.Error = http.StatusServiceUnavailable, "unhealthy", "the connection failed"
			if ce, ok := errors.AsType[*ConnError](err); ok {
				h.Error = ce.Reason // the whole error names host and user
			}
		}
		took := time.Since(start)
		if r.URL.Query().Has("verbose") {
			h.Details = client.details(ctx, took)
		}
		h.Timestamp = time.Now().UTC().Format(healthTime)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(h) // the client has gone
	})
}

func (c *Client) details(ctx context.Context, took time.Duration) *healthDetails {
	pool := c.PoolStats()
	d := &healthDetails{
		RoundTrip: float64(took.Microseconds()) / 1000,
		Topology:  "single", TLS: c.cfg.TLS,
		Pool: poolStats{
			Total: pool.TotalConns, Idle: pool.IdleConns, Hits: pool.Hits,
			Misses: pool.Misses, Timeouts: pool.Timeouts, Stale: pool.StaleConns,
		},
		Servers: []Server{}, Warnings: []string{},
	}
	switch {
	case c.cfg.Master != "":
		d.Topology = "sentinel"
	case c.cfg.Cluster:
		d.Topology = "cluster"
	}
	// Its faults depend on the use, which is not known here; the policy is shown.
	if p, err := c.Preflight(ctx, ForCache); err == nil || len(p.Servers) > 0 {
		d.Servers, d.Warnings = append(d.Servers, p.Servers...), append(d.Warnings, p.Warnings...)
		d.Warnings = append(d.Warnings, p.Faults...)
	}
	return d
}
