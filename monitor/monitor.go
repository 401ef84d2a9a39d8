package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hibiken/asynqmon"

	"github.com/medicalink/postroom/rediskit"
)

// checkTimeout bounds a check of health or readiness: probes time out early.
const checkTimeout = 2 * time.Second

// Check is one condition of readiness.
type Check struct {
	Name string                      // shown when it fails; unique
	Run  func(context.Context) error // nil error is ready; its text is not shown
}

// Config says what the monitor reports beyond Redis.
type Config struct {
	// Checks must pass for /readyz, as the check "redis" must.
	Checks []Check
}

// Monitor is the http.Handler. Make one with [New].
type Monitor struct {
	handler   http.Handler
	dashboard *asynqmon.HTTPHandler
}

// New returns a monitor of the queues on rdb. It starts nothing.
func New(rdb *rediskit.Client, cfg Config) (*Monitor, error) {
	// asynqmon panics where this returns.
	if rdb == nil {
		return nil, errors.New("new monitor: no Redis client")
	}
	checks := append([]Check{{Name: "redis", Run: rdb.Health}}, cfg.Checks...)
	names := map[string]bool{}
	for _, c := range checks {
		if c.Name == "" || c.Run == nil || names[c.Name] {
			return nil, fmt.Errorf("new monitor: check %q needs a name of its own and a function", c.Name)
		}
		names[c.Name] = true
	}

	m := &Monitor{dashboard: asynqmon.New(asynqmon.Options{
		RootPath:         dashboardPath,
		RedisConnOpt:     rdb.ConnOpt("dashboard"),
		PayloadFormatter: asynqmon.PayloadFormatterFunc(describePayload),
		ResultFormatter:  asynqmon.ResultFormatterFunc(describeResult),
		ReadOnly:         true,
	})}
	page, err := guardDashboard(m.dashboard)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new monitor: %w", err), m.Close())
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, status{Status: "alive"}) })
	mux.HandleFunc("GET /readyz", readiness(checks))
	mux.Handle("GET /health/redis", rediskit.HealthHandler(rdb))
	mux.Handle("GET "+dashboardPath+"/", page)
	m.handler = secure(mux)
	return m, nil
}

// ServeHTTP answers one request.
func (m *Monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// Close closes the dashboard's Redis clients. Call it once no request is being
// served.
func (m *Monitor) Close() error {
	if err := m.dashboard.Close(); err != nil {
		return fmt.Errorf("close dashboard: %w", err)
	}
	return nil
}

// CheckAddr refuses an address to listen on that others than this machine can
// reach, because there is no login.
func CheckAddr(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("monitor address %q: want host:port, such as 127.0.0.1:8080", addr)
	}
	if !loopback(host) {
		return fmt.Errorf("monitor address %q: the dashboard has no login, so it is served on loopback only: "+
			"use 127.0.0.1:PORT, and reach it through an SSH tunnel or kubectl port-forward", addr)
	}
	return nil
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// secure sets the headers that every answer has, and refuses cross-site
// requests that could change something.
func secure(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r)
	}))
}
