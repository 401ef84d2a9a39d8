//go:build unix

package devbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// A redis-server that does not start must not keep anybody from working.
func TestStartRedis_Broken(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "redis-server"), []byte("#!/bin/sh\necho cannot open shared object >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	var log strings.Builder
	r, err := startRedis(t.Context(), zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.stop() }()
	if r.kind != "in-process" || !strings.Contains(log.String(), "cannot open shared object") {
		t.Errorf("started %s, log %s", r.kind, log.String())
	}
	if err := dial(t, r).Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}
