package templates

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLoad_Faults loads one small faulty directory per check and expects
// exactly the problems listed, each at its file and line.
func TestLoad_Faults(t *testing.T) {
	t.Parallel()
	const en = "notice/en/"
	tests := map[string][]string{
		"missing-part":           {en + "body.txt:1: the file is missing"},
		"missing-schema":         {"notice/schema.json:1: the file is missing"},
		"missing-sample":         {"notice/sample.json:1: the file is missing"},
		"missing-preheader":      {en + `body.html:1: {{define "preheader"}} is missing`},
		"missing-default-locale": {"notice/en:1: the default locale is missing"},
		"empty-part":             {en + "body.txt:1: the file is empty"},
		"empty-text":             {en + "body.txt:1: the sample renders an empty part"},
		"empty-subject":          {en + "subject.txt:1: the sample renders an empty subject"},
		"subject-newline":        {en + "subject.txt:1: the sample renders a subject with a line break"},
		"parse-error":            {en + "body.html:3: unexpected EOF"},
		"escape-error":           {en + "body.html:3: {{if}} branches end in different contexts"},
		"unknown-field": {
			en + "body.html:2: unknown field fullname in .fullname",
			en + "body.html:4: unknown field titel in .titel",
			en + "body.txt:2: unknown field stret in .stret",
		},
		"undefined-template": {en + `body.html:3: no template "buton" is defined`},
		"no-value":           {en + "body.txt:3: the sample renders <no value>"},
		"unsafe-url":         {en + "body.html:3: the sample renders ZgotmplZ"},
		"sample-mismatch": {
			"notice/sample.json:2: the sample does not satisfy the schema: name must be string, not number",
			"notice/sample.json:5: the sample does not satisfy the schema: items.1.title must be string, not boolean",
		},
		"bad-sample":       {"notice/sample.json:3: read JSON"},
		"bad-schema":       {"notice/schema.json:5: properties.name.type"},
		"old-schema":       {"notice/schema.json:1: a schema is an object with"},
		"recursive-schema": {"notice/schema.json:1: the schema is nested deeper than 20 or refers to itself"},
		"remote-schema":    {"notice/schema.json:1: compile schema"},
		"too-large":        {en + "body.html:1: the sample renders to 9"},
		"private-field": {
			en + "body.html:2: private field secret in the preheader",
			en + "subject.txt:1: private field secret in the subject",
		},
		"mso-with-data": {
			en + "body.html:3: mso takes one literal text",
			en + "body.html:4: mso takes one literal text",
			en + "body.html:5: the text of mso must not contain a comment",
		},
		"whole-object": {
			en + "body.html:3: printf prints a whole object",
			en + "body.html:3: {{.place}} prints a whole object",
		},
		"dynamic-class":     {en + "body.html:3: <p>: a class must be literal"},
		"image-without-alt": {en + "body.html:3: <img> has no alt text"},
		"reserved-name":     {en + `body.html:1: the name "layout" is taken`},
		"optional-field":    {en + `body.txt:2: executing "content" at <.place.street>`},
		"stray-file": {
			"Notice/schema.json:1: a template's name has lower case letters",
			"layout/header.html:1: not a part of the layout",
			"notes.txt:1: not part of a template",
			"notice/en/body.htm:1: not a part of a template",
		},
		"locale-folder":       {`notice/de_DE/subject.txt:1: "de_DE" is not a BCP 47 tag`},
		"locale-without-data": {"notice/fr/subject.txt:1: no locale data: add locales/fr.json"},
		"locale-data": {
			`locales/fr.json:1: json: unknown field "nom"`,
			"locales/it.json:2: invalid character",
			"locales/pt.json:1: am_pm must name two halves",
			"locales/pt.json:1: and must contain {a} and {b}",
			"locales/pt.json:1: date has the unknown token {dia}",
			`locales/pt.json:1: direction must be "ltr" or "rtl"`,
			"locales/pt.json:1: durations.day needs a form",
			"locales/pt.json:1: durations.hour needs a form",
			"locales/pt.json:1: durations.minute needs a form",
			"locales/pt.json:1: durations.second needs a form",
			"locales/pt.json:1: months must name twelve months",
			"locales/pt.json:1: weekdays must name seven days",
			"locales/xx_YY.json:1: a locale file is called by its BCP 47 tag",
		},
		"bad-css": {`layout/style.css:3: ".card": "color red" is not a declaration`},
		"bad-layout": {
			`layout/body.html:1: the layout has no name="color-scheme"`,
			`layout/body.html:1: the layout has no {{template "content" .}}`,
		},
		"several": {
			en + "body.html:2: unknown field fullname",
			en + "body.txt:1: missing value for if",
			"notice/sample.json:1: the file is missing",
			"welcome/en/body.html:1: the file is missing",
			"welcome/en/body.txt:1: the file is missing",
			"welcome/en/subject.txt:1: unknown field fullname",
		},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join("testdata", name)
			set, err := Load(dir)
			if set != nil {
				t.Error("Load returned a set besides the error")
			}
			failed, ok := errors.AsType[*LoadError](err)
			if !ok {
				t.Fatalf("Load(%q) = %v, want a *LoadError", dir, err)
			}
			var got []string
			for _, p := range failed.Problems {
				got = append(got, strings.TrimPrefix(filepath.ToSlash(p.String()), "testdata/"+name+"/"))
			}
			same := slices.EqualFunc(got, want, strings.HasPrefix)
			if !same {
				t.Errorf("problems:\n\t%s\nwant prefixes:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
			}
			if text := err.Error(); !strings.Contains(text, failed.Problems[0].Text) {
				t.Errorf("the error does not print its problems: %s", text)
			}
		})
	}
	// A fixture nobody expects anything of would be a check without a test.
	dirs, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if _, ok := tests[d.Name()]; !ok && !slices.Contains([]string{"golden", "good", "missing-word", "fuzz"}, d.Name()) {
			t.Errorf("testdata/%s has no test", d.Name())
		}
	}
}

// TestLoad_MissingWord is apart, because the word is missing in every template.
func TestLoad_MissingWord(t *testing.T) {
	t.Parallel()
	_, err := Load("testdata/missing-word")
	failed, ok := errors.AsType[*LoadError](err)
	if !ok {
		t.Fatalf("Load = %v, want a *LoadError", err)
	}
	for _, p := range failed.Problems {
		if !strings.HasPrefix(p.File, filepath.Join("builtin", "layout")) || !strings.Contains(p.Text, `locale de has no word "footer"`) {
			t.Errorf("unexpected problem %s", p)
		}
	}
}

func TestLoad_NoDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "absent")
	_, err := Load(dir)
	if err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Load of an absent directory = %v, want an error that names it", err)
	}
}

// write lays files into a new directory.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const portuguese = `{
  "name": "Português", "direction": "ltr",
  "weekdays": ["domingo", "segunda-feira", "terça-feira", "quarta-feira", "quinta-feira", "sexta-feira", "sábado"],
  "months": ["janeiro", "fevereiro", "março", "abril", "maio", "junho", "julho", "agosto", "setembro", "outubro", "novembro", "dezembro"],
  "date": "{weekday}, {day} de {month} de {year}", "time": "{hour}h{minute} ({zone})",
  "durations": {
    "second": {"one": "{n} segundo", "other": "{n} segundos"}, "minute": {"one": "{n} minuto", "other": "{n} minutos"},
    "hour": {"one": "{n} hora", "other": "{n} horas"}, "day": {"one": "{n} dia", "other": "{n} dias"}
  },
  "and": "{a} e {b}",
  "words": {"footer": "Mensagem automática da MedicaLink.", "link_fallback": "Copie este endereço:"}
}`

func TestLoad_Directory(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"README.md":              "notes",
		".git/config":            "skipped",
		"locales/pt.json":        portuguese,
		"welcome/pt/subject.txt": "Boas-vindas\r\n",
		"welcome/pt/body.html":   `{{define "preheader"}}Sua conta.{{end}}<h1>Olá, {{.name}}</h1>`,
		"welcome/pt/body.txt":    "Olá, {{.name}}",
		// Has no data of its own: German serves Switzerland.
		"welcome/de-CH/subject.txt": "Grüezi",
		"welcome/de-CH/body.html":   `{{define "preheader"}}x{{end}}<p>{{.name}}</p>`,
		"welcome/de-CH/body.txt":    "{{.name}}",
		// Replaces one locale of a built-in template.
		"one-time-code/de/subject.txt": "Code",
		"one-time-code/de/body.html":   `{{define "preheader"}}Ihr Code.{{end}}<p class="code">{{.code}}</p>`,
		"one-time-code/de/body.txt":    "{{.code}}",
		// Replaces a built-in template whole: it has a schema of its own.
		"password-reset/schema.json":    `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"who": {"type": "string"}}}`,
		"password-reset/sample.json":    `{"who": "Ada"}`,
		"password-reset/en/subject.txt": "Reset",
		"password-reset/en/body.html":   `{{define "preheader"}}Reset.{{end}}<p>Hello {{.who}}</p>`,
		"password-reset/en/body.txt":    "Hello {{.who}}",
		// Adds one.
		"survey/schema.json":    `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}`,
		"survey/sample.json":    `{}`,
		"survey/en/subject.txt": "How was it?",
		"survey/en/body.html":   `{{define "preheader"}}Tell us.{{end}}<p>Tell us.</p>`,
		"survey/en/body.txt":    "Tell us.",
	})
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, info := range set.List() {
		got[info.Name] = info.Locales
	}
	want := map[string][]string{
		"appointment-reminder": {"de", "en", "es"},
		"digest":               {"de", "en", "es"},
		"generic":              {"de", "en", "es"},
		"lab-result-ready":     {"de", "en", "es"},
		"notification":         {"de", "en", "es"},
		"one-time-code":        {"de", "en", "es"},
		"password-reset":       {"en"},
		"survey":               {"en"},
		"welcome":              {"de", "de-CH", "en", "es", "pt"},
	}
	for name, locales := range want {
		if !slices.Equal(got[name], locales) {
			t.Errorf("%s is there in %v, want %v", name, got[name], locales)
		}
	}
	if len(got) != len(want) {
		t.Errorf("templates %v, want %v", got, want)
	}

	m, err := set.Render("welcome", "pt-BR", map[string]any{"name": "Łukasz"})
	if err != nil {
		t.Fatal(err)
	}
	if m.Locale != "pt" || m.Subject != "Boas-vindas" || !strings.HasPrefix(m.Text, "Olá, Łukasz\n") ||
		!strings.Contains(m.HTML, `lang="pt"`) || !strings.Contains(m.Text, "Mensagem automática") {
		t.Errorf("pt-BR rendered %+v", m)
	}
	for locale, want := range map[string]string{"de-CH": "de-CH", "de-AT": "de", "de": "de", "pt-PT": "pt"} {
		m, err := set.Render("welcome", locale, map[string]any{"name": "Ada"})
		if err != nil || m.Locale != want || !strings.Contains(m.HTML, `lang="`+want+`"`) {
			t.Errorf("%s rendered in %q, want %q: %v", locale, m.Locale, want, err)
		}
	}
	m, err = set.Render("one-time-code", "de-AT", map[string]any{"code": "123456", "expires_in": 5})
	if err != nil {
		t.Fatal(err)
	}
	if m.Locale != "de" || m.Subject != "Code" {
		t.Errorf("the replaced locale rendered %q in %s", m.Subject, m.Locale)
	}
}

// TestLoad_ConfigMap loads a directory as Kubernetes mounts one: every entry
// is a link into a hidden folder.
func TestLoad_ConfigMap(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"..data/welcome/en/subject.txt": "Linked",
		"..data/welcome/en/body.html":   `{{define "preheader"}}x{{end}}<p>{{.name}}</p>`,
		"..data/welcome/en/body.txt":    "{{.name}}",
	})
	if err := os.Symlink(filepath.Join("..data", "welcome"), filepath.Join(dir, "welcome")); err != nil {
		t.Fatal(err)
	}
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := set.Render("welcome", "en", map[string]any{"name": "Ada"})
	if err != nil || m.Subject != "Linked" {
		t.Errorf("Render = %q, %v; want the linked template", m.Subject, err)
	}
}
