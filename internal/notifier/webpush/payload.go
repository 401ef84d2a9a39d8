package webpush

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"unicode/utf8"

	"github.com/medicalink/postroom/internal/notifier"
)

// payload is what the page's service worker gets, as JSON.
type payload struct {
	ID     string `json:"id"`
	Kind   string `json:"kind,omitempty"`
	Title  string `json:"title"`
	Body   string `json:"body,omitempty"`
	Action string `json:"action,omitempty"`
}

// encode returns m as at most maxPlaintext bytes of JSON. If it is too long, the body
// is cut; if that is not enough, the link goes, since a part of it leads nowhere, and
// the title is cut. An id and a kind alone always fit.
func encode(m *notifier.Message) ([]byte, error) {
	p := payload{ID: m.ID, Kind: m.Kind, Title: m.Title, Body: m.Body, Action: m.Action}
	for _, shorten := range []func() error{
		func() error { return nil },
		func() error { return p.cut(&p.Body) },
		func() error { p.Action = ""; return nil },
		func() error { return p.cut(&p.Title) },
	} {
		if err := shorten(); err != nil {
			return nil, err
		}
		text, err := p.marshal()
		if err != nil || len(text) <= maxPlaintext {
			return text, err
		}
	}
	return nil, fmt.Errorf("encode push message: id and kind have more than %d bytes", maxPlaintext)
}

// cut shortens *field to the longest beginning of whole runes with which p fits, and an
// ellipsis; to nothing if there is none.
func (p *payload) cut(field *string) error {
	whole := *field
	var failed error
	// The smallest n that is too long: every longer one is too.
	n := sort.Search(len(whole), func(n int) bool {
		*field = ellipsis(whole, n)
		text, err := p.marshal()
		if err != nil {
			failed = err
		}
		return len(text) > maxPlaintext
	})
	*field = ""
	if n > 1 {
		*field = ellipsis(whole, n-1)
	}
	return failed
}

// ellipsis returns the first n bytes of s without the rune that they may end in the
// middle of, and an ellipsis.
func ellipsis(s string, n int) string {
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func (p *payload) marshal() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // it is never part of a page as it is
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("encode push message: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
