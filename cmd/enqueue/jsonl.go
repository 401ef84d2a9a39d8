package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// jsonlSource reads JSON lines: one object a line. The members that the layout names are about the
// message. The template's data is the member data if there is one, else all other members.
type jsonlSource struct {
	s         *scanner
	long      tooLong
	layout    layout
	keyColumn string
}

func newJSONLSource(s *scanner, l layout, keyColumn string) (*jsonlSource, error) {
	if _, err := s.skipBOM(); err != nil {
		return nil, err
	}
	return &jsonlSource{s: s, layout: l, keyColumn: keyColumn}, nil
}

func (j *jsonlSource) header() string { return "" }

func (j *jsonlSource) next() (record, error) {
	if rec, ok := j.long.more(j.s); ok {
		return rec, nil
	}
	for {
		n, ok := j.s.lineEnd()
		switch {
		case !ok:
			return j.long.first(j.s, n), nil
		case j.s.cutShort(n):
			return record{}, j.s.readErr()
		case n == 0:
			return record{}, io.EOF
		}
		if len(bytes.TrimSpace(j.s.window()[:n])) == 0 {
			j.s.take(n)
			continue
		}
		rec := j.s.take(n)
		j.parse(&rec)
		return rec, nil
	}
}

func (j *jsonlSource) parse(rec *record) {
	if !utf8.ValidString(rec.raw) {
		rec.refuse("", "is not valid UTF-8")
		return
	}
	members, err := decodeObject([]byte(rec.raw))
	if err != nil {
		rec.refuse("", "%v", err)
		return
	}
	// The key may be any member, at the top or in data.
	if j.keyColumn != "" {
		value, ok := members[j.keyColumn]
		if nested, isObject := members["data"].(map[string]any); !ok && isObject {
			value = nested[j.keyColumn]
		}
		switch v := value.(type) {
		case string:
			rec.key = v
		case json.Number:
			rec.key = v.String()
		}
	}
	for _, name := range j.layout.columns {
		*j.layout.field(rec, name) = j.text(rec, members, name)
	}
	rec.data = members
	nested, ok := members["data"]
	if !ok {
		return
	}
	delete(members, "data")
	if len(members) > 0 {
		names := make([]string, 0, len(members))
		for name := range members {
			names = append(names, name)
		}
		rec.refuse(slices.Min(names), "stands beside data: put it inside")
	}
	if rec.data, ok = nested.(map[string]any); !ok {
		rec.refuse("data", "must be an object")
	}
}

// text removes a member that must be a string and returns it.
func (j *jsonlSource) text(rec *record, members map[string]any, name string) string {
	value, ok := members[name]
	delete(members, name)
	text, isText := value.(string)
	if ok && !isText && value != nil {
		rec.refuse(name, "must be a string")
	}
	return text
}

// decodeObject decodes exactly one JSON object. Numbers keep their digits. Its errors do not quote the
// input.
func decodeObject(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, fmt.Errorf("is not valid JSON at byte %d", syntax.Offset)
		}
		return nil, errors.New("is not valid JSON: it ends too early")
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("must be a JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one JSON object")
	}
	return object, nil
}
