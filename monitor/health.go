package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/medicalink/postroom/rediskit"
)

// timestamp is RFC 3339 in UTC with milliseconds.
const timestamp = "2006-01-02T15:04:05.000Z"

type status struct {
	Status    string   `json:"status"`
	Timestamp string   `json:"timestamp,omitempty"`
	Error     string   `json:"error,omitempty"`
	Failing   []string `json:"failing,omitempty"`
}

func redisHealth(ping func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		code, s := http.StatusOK, status{Status: "healthy"}
		if err := ping(ctx); err != nil {
			code, s.Status, s.Error = http.StatusServiceUnavailable, "unhealthy", "the connection failed"
			// Only the reason: the whole error names host and user.
			if ce, ok := errors.AsType[*rediskit.ConnError](err); ok {
				s.Error = ce.Reason
			}
		}
		s.Timestamp = time.Now().UTC().Format(timestamp)
		writeJSON(w, code, s)
	}
}

// readiness runs all checks at once and names those that fail.
func readiness(checks []Check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		failed := make([]bool, len(checks))
		var wg sync.WaitGroup
		for i, c := range checks {
			wg.Go(func() { failed[i] = c.Run(ctx) != nil })
		}
		wg.Wait()
		code, s := http.StatusOK, status{Status: "ready"}
		for i, c := range checks {
			if failed[i] {
				code, s.Status = http.StatusServiceUnavailable, "unready"
				s.Failing = append(s.Failing, c.Name)
			}
		}
		writeJSON(w, code, s)
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}
