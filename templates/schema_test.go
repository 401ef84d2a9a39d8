package templates

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

const visitSchema = `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
	"$defs": {"drug": {"type": "object", "additionalProperties": false, "required": ["label"], "properties": {
		"label": {"type": "string", "pattern": "^[A-Z]", "minLength": 2}, "unit": {"enum": ["mg", "ml"]}, "dose": {"type": "number", "minimum": 0.5, "maximum": 9}}}},
	"required": ["who"],
	"properties": {
		"who": {"type": "object", "properties": {"first": {"type": "string"}, "urgent": {"type": "boolean"}}},
		"drugs": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/drug"}},
		"notes": {"type": "object", "additionalProperties": {"type": "string"}},
		"visits": {"type": "integer", "multipleOf": 2},
		"ward": {"type": ["string", "null"], "default": "A\u00001"},
		"email": {"type": "string", "format": "email"}},
	"dependentRequired": {"visits": ["email"]}}`

func loadVisit(t *testing.T) *Set {
	t.Helper()
	set, err := Load(write(t, map[string]string{
		"visit/schema.json":    visitSchema,
		"visit/sample.json":    `{"who": {"first": "Ada"}, "drugs": [{"label": "Aspirin", "unit": "mg", "dose": 1}], "notes": {"a": "b"}, "visits": 2, "email": "a@example.com", "ward": "B"}`,
		"visit/en/subject.txt": "Visit of {{.who.first}}{{range .drugs}} {{.label}}{{end}}{{range .notes}} {{.}}{{end}}",
		"visit/en/body.html":   `{{define "preheader"}}x{{end}}<p>{{.ward}} {{range $k, $v := .notes}}{{$k}}={{$v}} {{end}}{{if .who.urgent}}urgent{{end}}</p>`,
		"visit/en/body.txt":    "{{.ward}} {{.visits}} {{range .drugs}}{{.label}} {{.dose}} {{.unit}}{{end}}",
	}))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestSet_Check_Problems(t *testing.T) {
	t.Parallel()
	set := loadVisit(t)
	const canary = "CANARY-7d1f"
	for source, want := range map[string][]string{
		`{}`:                                     {"who is required"},
		`{"who": 1}`:                             {"who must be object, not number"},
		`{"who": {"first": 1}}`:                  {"who.first must be string, not number"},
		`{"who": {"first": null}}`:               {"who.first must be string, not null"},
		`{"who": {}, "drugs": []}`:               {"drugs must have at least 1 entries"},
		`{"who": {}, "drugs": [{}, {}, {}]}`:     {"drugs must have at most 2 entries", "drugs.0.label is required", "drugs.1.label is required", "drugs.2.label is required"},
		`{"who": {}, "drugs": [{"label": "A"}]}`: {"drugs.0.label must have at least 2 characters"},
		`{"who": {}, "drugs": [{"label": "CANARY", "unit": "CANARY-7d1f"}]}`:                 {"drugs.0.unit must be one of [mg ml]"},
		`{"who": {}, "drugs": [{"label": "a CANARY-7d1f"}]}`:                                 {"drugs.0.label must match the pattern ^[A-Z]"},
		`{"who": {}, "drugs": [{"label": "Aa", "dose": 0}]}`:                                 {"drugs.0.dose must be at least 1/2"},
		`{"who": {}, "drugs": [{"label": "Aa", "dose": 10}]}`:                                {"drugs.0.dose must be at most 9"},
		`{"who": {}, "drugs": [{"label": "Aa", "CANARY-7d1f\n": 1}]}`:                        {"drugs.0.(odd name) is not a field of this template"},
		`{"who": {}, "notes": {"two\nlines CANARY-7d1f": 1}}`:                                {"notes.(odd name) must be string, not number"},
		`{"who": {}, "visits": 3, "email": "a@b"}`:                                           {"visits does not satisfy the schema's multipleOf"},
		`{"who": {}, "visits": 2}`:                                                           {"email is required"},
		`{"who": {}, "email": "CANARY-7d1f"}`:                                                {"email is not a valid email"},
		`{"who": {}, "ward": null}`:                                                          nil,
		`{"who": {}, "undeclared": {"x": [1, null]}, "visits": 4, "email": "a@example.com"}`: nil,
	} {
		var data map[string]any
		if err := json.Unmarshal([]byte(source), &data); err != nil {
			t.Fatal(err)
		}
		err := set.Check("visit", data)
		var got []string
		for _, e := range unjoin(err) {
			bad, ok := errors.AsType[*DataError](e)
			if !ok {
				t.Fatalf("%s: %v", source, e)
			}
			got = append(got, bad.Field+" "+bad.Problem)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", source, got, want)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error repeats data: %v", source, err)
		}
	}
}

func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func TestSet_Render_Structured(t *testing.T) {
	t.Parallel()
	set := loadVisit(t)
	base := map[string]any{
		"who":   map[string]any{"first": "Ada", "urgent": true},
		"drugs": []any{map[string]any{"label": "Aspirin", "dose": 5, "unit": "mg"}},
		"notes": map[string]any{"k<": "v\x00>"},
	}
	m, err := set.Render("visit", "en", base)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "Visit of Ada Aspirin v>" || !strings.HasPrefix(m.Text, "A1 0 Aspirin 5 mg\n") ||
		!strings.Contains(visible(t, m.HTML), "A1 k<=v> urgent") {
		t.Errorf("rendered %q\n%s\n%s", m.Subject, m.Text, visible(t, m.HTML))
	}
	for field, value := range map[string]any{
		"who":   map[string]any{"first": "Ada\nBcc: x"},
		"drugs": []any{map[string]any{"label": "Aspirin\r\nBcc: x"}},
		"notes": map[string]any{"a": "b\nc"},
	} {
		data := maps.Clone(base)
		data[field] = value
		_, err := set.Render("visit", "en", data)
		if bad, ok := errors.AsType[*DataError](err); !ok || bad.Field != field {
			t.Errorf("a line break in %s: %v, want a *DataError of that field", field, err)
		}
	}
}
