// Package lifecycle ends what a process has started, in the opposite order.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Stack is what has been started. The zero value is ready; it is not safe for
// concurrent use.
type Stack []step

type step struct {
	name string
	stop func(context.Context) error
}

// Add puts one thing on the stack: name is for the error, stop ends it.
func (s *Stack) Add(name string, stop func(context.Context) error) {
	*s = append(*s, step{name, stop})
}

// Stop ends everything under ctx's deadline, last first, and joins the errors: one
// that fails does not keep the earlier ones from being ended. A second call does
// nothing.
func (s *Stack) Stop(ctx context.Context) error {
	var errs []error
	for _, x := range slices.Backward(*s) {
		if err := x.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", x.name, err))
		}
	}
	*s = nil
	return errors.Join(errs...)
}
