package rediskit_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/medicalink/postroom/internal/testenv"
	"github.com/medicalink/postroom/rediskit"
)

func health(t *testing.T, client *rediskit.Client, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	rediskit.HealthHandler(client).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestHealthHandler(t *testing.T) {
	t.Parallel()
	srv := testenv.Redis(t, testenv.ACL("alice", "s3cret", "~* &* +@all"))
	client := srv.Open(t)
	const timestamp = `"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"`
	code, body := health(t, client, "/health/redis")
	if code != http.StatusOK || !regexp.MustCompile(`^{"status":"healthy",`+timestamp+`}$`).MatchString(body) {
		t.Errorf("%d %s", code, body)
	}
	srv.Kill()
	code, body = health(t, client, "/health/redis")
	if code != http.StatusServiceUnavailable || !regexp.MustCompile(`^{"status":"unhealthy",`+timestamp+`,"error":"connection refused"}$`).MatchString(body) {
		t.Errorf("%d %s", code, body)
	}
	code, body = health(t, client, "/health/redis?verbose")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, `"servers":[]`) || strings.Contains(body, "alice") || strings.Contains(body, srv.Addr()) {
		t.Errorf("%d %s", code, body)
	}
}

func TestHealthHandler_verbose(t *testing.T) {
	t.Parallel()
	testenv.EachRedis(t, func(t *testing.T, client *rediskit.Client) {
		code, body := health(t, client, "/health/redis?verbose")
		var got struct {
			Status  string
			Details struct {
				RoundTrip float64 `json:"round_trip_ms"`
				Topology  string
				TLS       bool
				Servers   []map[string]any
				Pool      map[string]any
			}
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		cfg := client.Config()
		topology, servers := "single", 1
		switch {
		case cfg.Cluster:
			topology, servers = "cluster", 3
		case cfg.Master != "":
			topology = "sentinel"
		}
		d := got.Details
		if code != http.StatusOK || got.Status != "healthy" || d.RoundTrip <= 0 || d.Topology != topology || d.TLS != cfg.TLS || len(d.Servers) != servers || d.Pool["connections"] == nil {
			t.Errorf("%d %s", code, body)
		}
		for _, s := range d.Servers {
			for _, name := range []string{"version", "role", "maxmemory_policy", "used_memory_bytes", "connected_replicas"} {
				if s[name] == nil || s[name] == "" {
					t.Errorf("%s is missing: %s", name, body)
				}
			}
		}
		for _, secret := range []string{string(cfg.Password), cfg.Username, string(cfg.SentinelPassword), cfg.SentinelUsername} {
			if secret != "" && strings.Contains(body, secret) {
				t.Errorf("credentials are in %s", body)
			}
		}
	})
}
