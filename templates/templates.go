package templates

import (
	"encoding/json"
	"fmt"
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

// Notification is one rendered notification.
type Notification struct {
	// Text is what the app shows after login. Fields marked private or phi may be in it.
	Text
	// Push, Chat and SMS are the template's own texts for outside the app. The zero Text
	// says that it has none in this locale: show those of [Generic]. Only Push has a
	// Title. No field that the schema marks private or phi is in them.
	Push, Chat, SMS Text
	// Webhook is one JSON object of at most 16 KiB without insignificant space, the same
	// in every locale; nil if the template has none. No field marked phi is in it.
	Webhook json.RawMessage
	Locale  string // the locale the template was found in, a BCP 47 tag such as "de"
}

// Text is what one channel shows.
type Text struct {
	Title string // one line of at most 200 bytes
	Body  string // at most 4 KiB, of an SMS 1,600 bytes; lines end in \n, the last without
}

// IsZero says that there is no text.
func (t Text) IsZero() bool { return t == Text{} }

// Info describes one template of a Set.
type Info struct {
	Name         string         // the name a job gives, such as "welcome"
	Email        bool           // Render and Check know it
	Notification bool           // RenderNotification and CheckNotification know it
	Locales      []string       // the locales it is written in, sorted
	Sample       map[string]any // its sample data, a copy that belongs to the caller
}

// Set holds every template, parsed, escaped and checked. It never changes
// after Load and may be used by any number of goroutines.
type Set struct {
	templates map[string]*template
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
	t, err := s.email(name)
	if err != nil {
		return Message{}, err
	}
	if err := t.check(data); err != nil {
		return Message{}, err
	}
	return t.locales[t.match.match(locale)].render(t, data)
}

// Check says whether data satisfies the template's schema, as Render would
// before rendering, with the same errors.
func (s *Set) Check(name string, data map[string]any) error {
	t, err := s.email(name)
	if err != nil {
		return err
	}
	return t.check(data)
}

// RenderNotification makes the notification of a template, as [Set.Render] makes the
// email: in the same locale, of the same data, with the same errors. A title that is too
// long is cut; a body that is, is a *[DataError].
func (s *Set) RenderNotification(name, locale string, data map[string]any) (Notification, error) {
	t, err := s.notification(name)
	if err != nil {
		return Notification{}, err
	}
	if err := t.check(data); err != nil {
		return Notification{}, err
	}
	return t.locales[t.match.match(locale)].renderNote(t, data)
}

// CheckNotification says whether data satisfies the template's schema, as
// RenderNotification would before rendering, with the same errors.
func (s *Set) CheckNotification(name string, data map[string]any) error {
	t, err := s.notification(name)
	if err != nil {
		return err
	}
	return t.check(data)
}

// Kinds says whether a template has the parts of an email, and of a notification; neither,
// if there is no such template.
func (s *Set) Kinds(name string) (email, notification bool) {
	t, ok := s.templates[name]
	return ok && t.email, ok && t.notification
}

func (s *Set) email(name string) (*template, error) {
	t, ok := s.templates[name]
	switch {
	case !ok:
		return nil, unknownTemplate(name)
	case !t.email:
		return nil, fmt.Errorf("find email template %s: it is a notification template: %w", name, ErrUnknownTemplate)
	}
	return t, nil
}

func (s *Set) notification(name string) (*template, error) {
	t, ok := s.templates[name]
	switch {
	case !ok:
		return nil, unknownTemplate(name)
	case !t.notification:
		return nil, fmt.Errorf("find notification template %s: it is an email template: %w", name, ErrUnknownTemplate)
	}
	return t, nil
}

// List describes the templates, sorted by name.
func (s *Set) List() []Info {
	list := make([]Info, 0, len(s.templates))
	for _, name := range slices.Sorted(maps.Keys(s.templates)) {
		t := s.templates[name]
		list = append(list, Info{
			Name:         name,
			Email:        t.email,
			Notification: t.notification,
			Locales:      slices.Sorted(maps.Keys(t.locales)),
			Sample:       copyJSON(t.sample).(map[string]any), // a copy of what it was given
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

func (t *template) check(data map[string]any) error {
	var doc any = data
	if data == nil {
		doc = map[string]any{} // a nil map is an empty object, not null
	}
	if err := t.schema.Validate(doc); err != nil {
		return dataErrors(t.name, err)
	}
	return nil
}
