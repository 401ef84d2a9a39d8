package templates

import (
	"maps"
	"slices"
	"strings"
	"testing"
	texttemplate "text/template"

	"golang.org/x/net/html"
	"pgregory.net/rapid"
)

func inlineSource(t testing.TB, css, src string) (string, []string) {
	t.Helper()
	sheet, _, err := parseCSS(css)
	if err != nil {
		t.Fatal(err)
	}
	var problems []string
	return sheet.inline(src, func(_ int, p string) { problems = append(problems, p) }), problems
}

func TestStylesheet_Inline(t *testing.T) {
	t.Parallel()
	const css = `p { margin: 0 } /* a
		comment */ .big, h1 { font-size: 20px; color: red }
		p.big { color: "blue" } td { color: green; } .big { font-size: 30px }
		a:hover { color: pink } .x .y { color: pink } .late { color: pink !important }
		@media (max-width: 9px) { p { margin: 9px } }
		@media (prefers-color-scheme: dark) { .big { color: white } }`
	tests := map[string]struct{ src, want string }{
		"element":        {`<p>x</p>`, `<p style="margin:0">x</p>`},
		"class":          {`<b class="a big">x</b>`, `<b style="color:red;font-size:30px" class="a big">x</b>`},
		"both":           {`<p class="big">x</p>`, `<p style="margin:0;font-size:30px;color:'blue'" class="big">x</p>`},
		"own style wins": {`<p style="margin:1px">x</p>`, `<p style="margin:0;margin:1px">x</p>`},
		"no rule":        {`<div><i class="other">x</i></div>`, `<div><i class="other">x</i></div>`},
		"upper case":     {`<P>x</P>`, `<P style="margin:0">x</P>`},
		"self-closing":   {`<p/>`, `<p style="margin:0"/>`},
		"not selectors":  {`<a>x</a><i class="late y x">`, `<a>x</a><i class="late y x">`},
		"range in table": {`<table>{{range .Rows}}<tr><td>{{.}}</td></tr>{{end}}</table>`, `<table>{{range .Rows}}<tr><td style="color:green">{{.}}</td></tr>{{end}}</table>`},
		"quotes in action": {
			`<p title="{{if eq .A "<p>"}}}}{{end}}">{{"<p>" | printf "%s}}"}}{{/* <p> }} "*/}}</p>`,
			`<p style="margin:0" title="{{if eq .A "<p>"}}}}{{end}}">{{"<p>" | printf "%s}}"}}{{/* <p> }} "*/}}</p>`,
		},
		"action in tag":   {`<p {{if .A}}title="x"{{end}}>`, `<p style="margin:0" {{if .A}}title="x"{{end}}>`},
		"action in style": {`<p style="{{.A}}">`, `<p style="margin:0;{{.A}}">`},
		"raw quotes":      {"{{`\\`}}<p>{{'\"'}}", "{{`\\`}}<p style=\"margin:0\">{{'\"'}}"},
		"script, comment": {`<!-- <p> --><title><p></title>`, `<!-- <p> --><title><p></title>`},
		"unclosed action": {`<p>{{ "x`, `<p style="margin:0">{{ "x`},
		"rest of the rules": {
			"<style>{{stylesheet}}</style>",
			"<style>a:hover { color: pink } .x .y { color: pink } .late { color: pink !important } @media (max-width: 9px) { p { margin: 9px } } @media (prefers-color-scheme: dark) { .big { color: white } }</style>",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problems := inlineSource(t, css, test.src)
			if got != test.want || len(problems) > 0 {
				t.Errorf("got  %s\nwant %s\nproblems %v", got, test.want, problems)
			}
		})
	}
}

func TestParseCSS_Errors(t *testing.T) {
	t.Parallel()
	for css, want := range map[string]int{
		"p {}\n\np { color: red":       3,
		"p { color: red }\n@import x;": 2,
		"p {\ncolor\n}":                1,
		"\n/* open":                    1,
		"p { content: \"</style>\" }":  1,
		"p { color: {{.x}} }":          1,
	} {
		if _, line, err := parseCSS(css); err == nil || line != want {
			t.Errorf("%q: line %d, error %v; want an error in line %d", css, line, err, want)
		}
	}
}

// TestStylesheet_Inline_BuiltinText renders every built-in template with and
// without inlining: a reader must see the same.
func TestStylesheet_Inline_BuiltinText(t *testing.T) {
	t.Parallel()
	files, err := readSources("")
	if err != nil {
		t.Fatal(err)
	}
	bare, err := (&loader{files: maps.Clone(files), noInline: true}).load()
	if err != nil {
		t.Fatal(err)
	}
	set := builtinSet(t)
	for _, info := range emails(t) {
		for _, locale := range info.Locales {
			with, err := set.Render(info.Name, locale, info.Sample)
			if err != nil {
				t.Fatal(err)
			}
			without, err := bare.Render(info.Name, locale, info.Sample)
			if err != nil {
				t.Fatal(err)
			}
			if len(with.HTML) <= len(without.HTML) || !strings.Contains(with.HTML, "padding:36px 40px") {
				t.Errorf("%s/%s: nothing was inlined", info.Name, locale)
			}
			if got, want := visible(t, with.HTML), visible(t, without.HTML); got != want {
				t.Errorf("%s/%s: inlining changed the text\ngot  %s\nwant %s", info.Name, locale, got, want)
			}
		}
	}
}

// TestStylesheet_Inline_Property inlines random templates and renders them:
// text, structure and line numbers stay, only style attributes differ.
func TestStylesheet_Inline_Property(t *testing.T) {
	t.Parallel()
	sheet, _, err := parseCSS(`p { margin: 0 } td, .a { color: red } b.a { color: "x" } .c { top: 0 }`)
	if err != nil {
		t.Fatal(err)
	}
	pieces := []string{
		"<p>", "</p>", "<b>", "</b>", `<b class="a">`, `<i class="a c">`, "</i>", `<p style="top:1px">`, "<br>", "<br class='c'/>",
		"<table><tr><td>", "</td></tr></table>", `<table>{{range .Rows}}<tr><td class="c">{{.}}</td></tr>{{end}}</table>`,
		"text ", "\n", "a < b ", "&lt;", "{{.A}}", `{{"<p>"}}`, `{{/* <b class="a"> */}}`, `{{if .A}}<p title="{{.A}}">x</p>{{end}}`,
		`<a href="{{if .A}}x{{end}}">l</a>`, "<!-- <p> -->", `{{printf "%s" "}}"}}`, "<p title='>'>", "{{- .A -}}", "<p\nclass=\"a\"\n>",
	}
	data := map[string]any{"A": "value", "Rows": []string{"one", "two"}}
	run := func(t *rapid.T, src string) *html.Node {
		tmpl, err := texttemplate.New("").Parse(src)
		if err != nil {
			t.Fatalf("%q: %v", src, err)
		}
		var b strings.Builder
		if err := tmpl.Execute(&b, data); err != nil {
			t.Fatalf("%q: %v", src, err)
		}
		doc, err := html.Parse(strings.NewReader(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	rapid.Check(t, func(t *rapid.T) {
		src := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 1, 30).Draw(t, "pieces"), "")
		out := sheet.inline(src, func(_ int, p string) { t.Fatalf("%q: %s", src, p) })
		if strings.Count(out, "\n") != strings.Count(src, "\n") {
			t.Fatalf("%q: lines moved in %q", src, out)
		}
		if got, want := outline(run(t, out)), outline(run(t, src)); !slices.Equal(got, want) {
			t.Fatalf("%q\nbecame %q\ngot  %q\nwant %q", src, out, got, want)
		}
	})
}

// outline lists a document's nodes in order, without style attributes.
func outline(doc *html.Node) []string {
	var all []string
	for n := range doc.Descendants() {
		line := n.Data
		for _, a := range n.Attr {
			if a.Key != "style" {
				line += " " + a.Key + "=" + a.Val
			}
		}
		all = append(all, line)
	}
	return all
}
