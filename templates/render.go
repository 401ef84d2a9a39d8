package templates

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxPart is the most one part of a mail may render to, in bytes. A job of
// 1 MiB of data must not become a mail of gigabytes by way of a {{range}}.
const maxPart = 512 << 10

// maxPooled is the largest buffer kept for the next mail, in bytes: one huge
// mail must not cost its memory for ever.
const maxPooled = 64 << 10

var errTooLarge = errors.New("the part is too large")

// workspace is what one Render needs and the next can use again.
type workspace struct {
	buf  bytes.Buffer
	root map[string]any
}

// Write keeps the output within maxPart.
func (w *workspace) Write(p []byte) (int, error) {
	if w.buf.Len()+len(p) > maxPart {
		return 0, errTooLarge
	}
	return w.buf.Write(p)
}

// executor is what text/template and html/template have in common.
type executor interface {
	Execute(w io.Writer, data any) error
}

// workspace takes one from the pool and fills in the data, which must be validated.
func (t *template) workspace(data map[string]any) *workspace {
	w := t.pool.Get().(*workspace) // the only type in the pool
	t.shape.fill(w.root, data)
	return w
}

func (t *template) release(w *workspace) {
	if w.buf.Cap() > maxPooled {
		return
	}
	clear(w.root) // what a pool keeps would keep the job's data alive
	w.buf.Reset()
	t.pool.Put(w)
}

// render executes a checked template with validated data.
func (v *variant) render(t *template, data map[string]any) (Message, error) {
	for _, field := range v.inSubject {
		if hasLineBreak(data[field]) {
			return Message{}, &DataError{t.name, field, "must be one line, because the subject shows it"}
		}
	}
	w := t.workspace(data)
	defer t.release(w)

	m := Message{Locale: v.lang}
	subject, err := w.run(v.subject)
	if err != nil {
		return Message{}, renderError(t.name, err)
	}
	if m.Subject, err = oneLine(t.name, subjectName, subject); err != nil {
		return Message{}, err
	}

	text, err := w.run(v.text)
	if err != nil {
		return Message{}, renderError(t.name, err)
	}
	m.Text = string(bytes.TrimRight(text, " \n")) + "\n"

	html, err := w.run(v.html)
	if err != nil {
		return Message{}, renderError(t.name, err)
	}
	if bytes.Contains(html, []byte("ZgotmplZ")) {
		return Message{}, &DataError{t.name, refused(w.root), "is not safe where the template uses it; links must be http or https"}
	}
	m.HTML = string(html)
	return m, nil
}

// oneLine returns what a part rendered that has to be one line.
func oneLine(template, part string, out []byte) (string, error) {
	line := strings.Join(strings.Fields(string(out)), " ")
	switch {
	case line == "":
		return "", &DataError{template, "", "the " + part + " is empty with this data"}
	case bytes.ContainsAny(bytes.TrimSpace(out), "\r\n"):
		return "", &DataError{template, "", "the " + part + " has a line break with this data"}
	}
	return line, nil
}

// run returns bytes that are valid until the next run.
func (w *workspace) run(e executor) ([]byte, error) {
	w.buf.Reset()
	if err := e.Execute(w, w.root); err != nil {
		return nil, err
	}
	return w.buf.Bytes(), nil
}

func hasLineBreak(v any) bool {
	switch v := v.(type) {
	case string:
		return checkLine(v) != nil
	case []any:
		return slices.ContainsFunc(v, hasLineBreak)
	case map[string]any:
		for _, e := range v {
			if hasLineBreak(e) {
				return true
			}
		}
	}
	return false
}

// refused names the first field html/template's rules for addresses refuse.
func refused(data map[string]any) string {
	for _, name := range slices.Sorted(maps.Keys(data)) {
		s, _ := data[name].(string)
		scheme, _, found := strings.Cut(s, ":")
		if found && !strings.Contains(scheme, "/") && !slices.Contains([]string{"http", "https", "mailto"}, strings.ToLower(scheme)) ||
			strings.Contains(s, "ZgotmplZ") {
			return name
		}
	}
	return ""
}

var (
	execError    = regexp.MustCompile(`^template: ([^:]+:\d+):\d+: executing .*? at <(.*?)>: `)
	fieldInError = regexp.MustCompile(`\.([A-Za-z_][A-Za-z0-9_]*)`)
)

// renderError makes a *DataError of an execution error. Of the error's text it
// keeps the position and the field the template names there, both of which
// are the template's own; the rest may quote a value.
func renderError(template string, err error) error {
	if errors.Is(err, errTooLarge) {
		return &DataError{template, "", fmt.Sprintf("a part would be larger than %d bytes", maxPart)}
	}
	e := &DataError{Template: template, Problem: "cannot be rendered"}
	if m := execError.FindStringSubmatch(err.Error()); m != nil {
		e.Problem = "cannot be rendered by " + m[1]
		if f := fieldInError.FindStringSubmatch(m[2]); f != nil {
			e.Field = f[1]
		}
	}
	if own, ok := errors.AsType[valueError](err); ok {
		e.Problem = own.Error()
	}
	return e
}
