package templates

import (
	"fmt"
	"strconv"
)

// ErrUnknownTemplate is returned by [Set.Render] and [Set.Check] for a name no
// template has. It is permanent: trying again cannot help.
var ErrUnknownTemplate error = unknownTemplateError{}

type unknownTemplateError struct{}

func (unknownTemplateError) Error() string { return "no such template" }

func (unknownTemplateError) Permanent() bool { return true }

func unknownTemplate(name string) error {
	// The name comes from a job: quoted and cut, it can neither break a log line nor fill it.
	return fmt.Errorf("find template %s: %w", strconv.QuoteToASCII(clip(name, 64)), ErrUnknownTemplate)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// DataError says that the data of a job cannot be rendered. It names the
// template and the field, never the value: errors are stored and logged, and
// the values are a patient's. Several may come joined in one error.
type DataError struct {
	Template string // such as "welcome"
	Field    string // such as "name" or "items.0.price"; empty if no single field is to blame
	Problem  string // what is wrong and what is accepted
}

func (e *DataError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("render template %s: %s", e.Template, e.Problem)
	}
	return fmt.Sprintf("render template %s: field %s %s", e.Template, e.Field, e.Problem)
}

// Permanent is true: the same data fails again however often it is tried.
func (e *DataError) Permanent() bool { return true }
