package tasks

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A service that enqueues compiles asynq, go-redis and what these two need, the
// names of the workers' markers, and nothing else: no SMTP client, no templates, no dashboard, no logger.
func TestDependencies(t *testing.T) {
	t.Parallel()
	const self = "github.com/medicalink/postroom/tasks"
	list := func(packages ...string) map[string]bool {
		t.Helper()
		args := append([]string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}"}, packages...)
		out, err := exec.CommandContext(t.Context(), "go", args...).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		found := map[string]bool{}
		for path := range strings.FieldsSeq(string(out)) {
			found[path] = true
		}
		return found
	}
	allowed := list("github.com/hibiken/asynq", "github.com/redis/go-redis/v9")
	allowed["github.com/medicalink/postroom/internal/wake"] = true
	got := list(self)
	if !got["github.com/hibiken/asynq"] || !got[self] {
		t.Fatalf("go list does not see the package: %q", slices.Sorted(maps.Keys(got)))
	}
	for path := range got {
		if path != self && !allowed[path] {
			t.Errorf("tasks depends on %s", path)
		}
	}
}
