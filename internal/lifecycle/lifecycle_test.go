package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/medicalink/postroom/internal/lifecycle"
)

func TestStack_Stop(t *testing.T) {
	t.Parallel()
	var order []string
	broken := errors.New("broken")
	var s lifecycle.Stack
	for _, name := range []string{"redis", "mailer", "worker"} {
		s.Add(name, func(context.Context) error {
			order = append(order, name)
			if name == "mailer" {
				return broken
			}
			return nil
		})
	}
	err := s.Stop(t.Context())
	if !slices.Equal(order, []string{"worker", "mailer", "redis"}) {
		t.Errorf("stopped %v, want the last first and none left out", order)
	}
	if !errors.Is(err, broken) || err.Error() != "stop mailer: broken" {
		t.Errorf("Stop = %v", err)
	}
	if err := s.Stop(t.Context()); err != nil || len(order) != 3 {
		t.Errorf("a second Stop = %v, and %d steps ran", err, len(order))
	}
}
