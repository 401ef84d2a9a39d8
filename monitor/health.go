package monitor

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
)

type status struct {
	Status  string   `json:"status"`
	Failing []string `json:"failing,omitempty"`
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
