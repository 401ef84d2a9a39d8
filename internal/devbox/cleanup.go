package devbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// cleanups end what was started, last first. A cleanup that fails does not keep
// the earlier ones from running.
type cleanups []struct {
	name string
	stop func(context.Context) error
}

func (c *cleanups) add(name string, stop func(context.Context) error) {
	*c = append(*c, struct {
		name string
		stop func(context.Context) error
	}{name, stop})
}

// run stops everything under ctx's deadline and joins the errors.
func (c *cleanups) run(ctx context.Context) error {
	var errs []error
	for _, step := range slices.Backward(*c) {
		if err := step.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", step.name, err))
		}
	}
	*c = nil
	return errors.Join(errs...)
}
