package templates

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrUnknownTemplate is returned by the methods of [Set] for a name no template
// has, or only a template of the other kind: [Set.Render] wants the parts of an
// email, [Set.RenderNotification] those of a notification. It is permanent: trying
// again cannot help.
var ErrUnknownTemplate error = unknownTemplateError{}

type unknownTemplateError struct{}

func (unknownTemplateError) Error() string { return "no such template" }

func (unknownTemplateError) Permanent() bool { return true }

func unknownTemplate(name string) error {
	// The name comes from a job: quoted and cut, it can neither break a log line nor fill it.
	return fmt.Errorf("find template %.66s: %w", strconv.QuoteToASCII(name), ErrUnknownTemplate)
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

// LoadError lists everything that is wrong with a directory of templates.
type LoadError struct {
	Problems []Problem // sorted by file and line
}

// Problem is one fault of one file.
type Problem struct {
	File string // as the user would open it; "builtin/…" for the embedded ones
	Line int    // from 1
	Text string
}

func (p Problem) String() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text) }

func (e *LoadError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return "load templates:\n\t" + strings.Join(lines, "\n\t")
}

// newLoadError returns nil if there are no problems. A fault of a shared file
// is found once per template that uses it, and said once.
func newLoadError(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text))
	})
	return &LoadError{Problems: slices.Compact(problems)}
}
