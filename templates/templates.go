package templates

import (
	"maps"
	"slices"
)

// Message is one rendered email.
type Message struct {
	Subject string // one line, without line breaks or control characters
	Text    string // the plain text part, lines end in \n
	HTML    string // a complete HTML document with its CSS inlined
	Locale  string // the locale the template was found in, a BCP 47 tag such as "de"
}

// Info describes one template of a Set.
type Info struct {
	Name    string         // the name a job gives, such as "welcome"
	Locales []string       // the locales it is written in, sorted
	Sample  map[string]any // its sample data, a copy that belongs to the caller
}

// Set holds every template, parsed, escaped and checked. It never changes
// after Load and may be used by any number of goroutines.
type Set struct {
	templates map[string]*mailTemplate
}

// Load reads the built-in templates, lays dir over them if it is not empty,
// and checks all of it. The error is a *[LoadError] that lists every problem
// with its file and line, unless the directory itself cannot be read; there is
// no half-loaded set.
func Load(dir string) (*Set, error) {
	files, err := readSources(dir)
	if err != nil {
		return nil, err
	}
	l := loader{files: files}
	return l.load()
}

// Render makes the email of a template in the recipient's locale, a BCP 47 tag
// such as "pt-BR". Where the template lacks it the parents are tried (pt), then
// the default, en; an empty or malformed locale means the default. data must
// satisfy the template's schema; fields it does not declare are ignored.
//
// The error is [ErrUnknownTemplate] or a *[DataError]; both are permanent.
func (s *Set) Render(name, locale string, data map[string]any) (Message, error) {
	t, ok := s.templates[name]
	if !ok {
		return Message{}, unknownTemplate(name)
	}
	if err := t.check(data); err != nil {
		return Message{}, err
	}
	return t.locales[t.match.match(locale)].render(t, data)
}

// Check says whether data satisfies the template's schema, as Render would
// before rendering, with the same errors.
func (s *Set) Check(name string, data map[string]any) error {
	t, ok := s.templates[name]
	if !ok {
		return unknownTemplate(name)
	}
	return t.check(data)
}

// List describes the templates, sorted by name.
func (s *Set) List() []Info {
	list := make([]Info, 0, len(s.templates))
	for _, name := range slices.Sorted(maps.Keys(s.templates)) {
		t := s.templates[name]
		list = append(list, Info{
			Name:    name,
			Locales: slices.Sorted(maps.Keys(t.locales)),
			Sample:  copyJSON(t.sample).(map[string]any), // a copy of what it was given
		})
	}
	return list
}

func copyJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		c := make(map[string]any, len(v))
		for k, e := range v {
			c[k] = copyJSON(e)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = copyJSON(e)
		}
		return c
	}
	return v
}

func (t *mailTemplate) check(data map[string]any) error {
	var doc any = data
	if data == nil {
		doc = map[string]any{} // a nil map is an empty object, not null
	}
	if err := t.schema.Validate(doc); err != nil {
		return dataErrors(t.name, err)
	}
	return nil
}
