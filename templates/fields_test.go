package templates

import (
	"fmt"
	"slices"
	"testing"
)

func TestFieldCheck(t *testing.T) {
	t.Parallel()
	_, root, _, err := compileSchema("t", []byte(`{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
		"$defs": {"place": {"type": "object", "properties": {"street": {"type": "string"}, "door": {"type": "object", "properties": {"code": {"type": "string", "private": true}}}}}},
		"properties": {
			"name": {"type": "string"}, "secret": {"type": "string", "private": true},
			"place": {"$ref": "#/$defs/place"},
			"items": {"type": "array", "items": {"type": "object", "properties": {"title": {"type": "string"}}}},
			"extra": {"type": "object", "additionalProperties": {"type": "string"}},
			"safe": {"type": "object", "private": true, "properties": {"pin": {"type": "string"}}},
			"mixed": {"type": "object", "properties": {"street": {"type": "string"}}, "additionalProperties": {"type": "string", "private": true}}},
		"anyOf": [{"properties": {"alt": {"type": "string"}}}, {"properties": {"name": {"minLength": 1}}}]}`), &zones{})
	if err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string][]string{
		`{{.name}} {{.alt}} {{$.name}} {{.place.street}} {{.place.door.code}}`: nil,
		`{{.nome}}`:                            {"1 unknown field nome"},
		`{{.name.first}}`:                      {"1 unknown field first"},
		`{{if .a}}{{.b}}{{else}}{{.c}}{{end}}`: {"1 unknown field a", "1 unknown field b", "1 unknown field c"},
		`{{with .place}}{{.street}}{{$.name}}{{else}}{{.name}}{{end}}`:                             nil,
		`{{with .place}}{{.name}}{{else}}{{.street}}{{end}}`:                                       {"1 unknown field name", "1 unknown field street"},
		`{{with $p := .place}}{{$p.street}}{{$p.town}}{{end}}`:                                     {"1 unknown field town"},
		`{{range .items}}{{.title}}{{.name}}{{else}}{{.name}}{{end}}`:                              {"1 unknown field name"},
		`{{range $i, $e := .items}}{{$i}}{{$e.title}}{{$e.x}}{{$i.y}}{{end}}`:                      {"1 unknown field x", "1 unknown field y"},
		`{{range $e := .items}}{{$e.title}}{{$e.x}}{{end}}`:                                        {"1 unknown field x"},
		`{{range .items}}{{range .title}}{{.x}}{{end}}{{break}}{{end}}`:                            {"1 unknown field x"},
		`{{(index .items 0).title}}{{(index .items 0).x}}{{index .extra "k"}}{{index .place "x"}}`: {"1 unknown field x", "1 unknown field x"},
		`{{(or .place .name).street}}{{(or .place .name).x}}{{len .items}}{{(slice .items 1).x}}`:  {"1 unknown field x", "1 unknown field x"},
		`{{$x := .place}}{{if .name}}{{$x = .name}}{{$x.street}}{{end}}`:                           {"1 unknown field street"},
		`{{template "sub" .place}}{{define "sub"}}{{.street}}{{.name}}{{end}}`:                     {"1 unknown field name"},
		`{{template "sub"}}{{define "sub"}}{{.street}}{{end}}`:                                     {"1 unknown field street"},
		`{{template "a" .}}{{define "a"}}{{template "a" .}}{{.x}}{{end}}`:                          {"1 unknown field x"},
		`{{block "b" .place}}{{.street}}{{.x}}{{end}}`:                                             {"1 unknown field x"},
		"\n{{template \"none\" .}}":                                                                {`2 no template "none" is defined`},
		`{{with link .name "l"}}{{.URL}}{{.Label}}{{.Title}}{{end}}`:                               {"1 unknown field Title"},
		`{{.}}`:                              {"1 {{.}} prints a whole object or list"},
		`{{.place | printf "%v"}}{{.items}}`: {"1 printf prints a whole", "1 {{.items}} prints a whole"},
		`{{template "preheader" .}}{{define "preheader"}}{{.secret}}{{end}}{{.secret}}`:                             {"1 private field secret in the preheader"},
		`{{template "preheader" .place}}{{define "preheader"}}{{with .door}}{{.code}}{{end}}{{end}}`:                {"1 private field code in the preheader"},
		`{{template "preheader" .safe}}{{define "preheader"}}{{.pin}}{{end}}`:                                       {"1 private field pin in the preheader"},
		`{{template "preheader" .}}{{define "preheader"}}{{index .mixed "street"}}{{end}}`:                          nil,
		`{{template "preheader" .}}{{define "preheader"}}{{index .mixed "other"}}{{end}}`:                           {`1 "other" takes a whole object or list and with it the private field of any other name`},
		`{{template "preheader" .secret}}{{define "preheader"}}{{.}}{{end}}`:                                        {"1 private field . in the preheader"},
		`{{template "preheader" .secret}}{{define "preheader"}}{{$}}{{end}}`:                                        {"1 private field $ in the preheader"},
		`{{template "preheader" .}}{{define "preheader"}}{{range .}}{{printf "%v" .}}{{end}}{{end}}`:                {"1 . takes a whole object or list and with it the private field of any other name into the preheader"},
		`{{template "preheader" .}}{{define "preheader"}}{{template "s" .}}{{end}}{{define "s"}}{{.secret}}{{end}}`: {"1 private field secret in the preheader"},
		`{{mso "<b>"}}{{mso .name}}{{mso (printf "x")}}{{with "x"}}{{mso .}}{{end}}`:                                {"1 mso takes one literal", "1 mso takes one literal", "1 mso takes one literal"},
	} {
		t.Run(src, func(t *testing.T) {
			t.Parallel()
			l := loader{}
			trees := l.parse("t", src, layoutName, (&locale{}).funcs())
			if trees == nil {
				t.Fatal(l.problems)
			}
			var got []string
			c := fieldCheck{trees: trees, refuse: map[string]marks{preheaderName: private}, report: func(_ string, line int, problem string) {
				got = append(got, fmt.Sprintf("%d %s", line, problem))
			}}
			c.checkFields(layoutName, root)
			if !slices.EqualFunc(got, want, func(g, w string) bool { return len(g) >= len(w) && g[:len(w)] == w }) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
