package templates

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	htmltemplate "html/template"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"
)

var update = flag.Bool("update", false, "write the golden files")

// loadBuiltin is shared: a Set is immutable, which these tests prove on the way.
var loadBuiltin = sync.OnceValues(func() (*Set, error) { return Load("") })

func builtinSet(t testing.TB) *Set {
	t.Helper()
	set, err := loadBuiltin()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// emails are the built-in templates with the parts of an email.
func emails(t testing.TB) []Info {
	t.Helper()
	return slices.DeleteFunc(builtinSet(t).List(), func(info Info) bool { return !info.Email })
}

func render(t testing.TB, name, locale string, data map[string]any) Message {
	t.Helper()
	m, err := builtinSet(t).Render(name, locale, data)
	if err != nil {
		t.Fatalf("render %s in %q: %v", name, locale, err)
	}
	return m
}

// visible returns the text a reader of the HTML sees, without the preview
// line, white space collapsed.
func visible(t testing.TB, source string) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range doc.Descendants() {
		if n.Type == html.TextNode && !within(n, func(e *html.Node) bool {
			return e.Data == "style" || e.Data == "head" || attr(e, "class") == "preheader"
		}) {
			b.WriteString(n.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func within(n *html.Node, match func(*html.Node) bool) bool {
	for a := range n.Ancestors() {
		if match(a) {
			return true
		}
	}
	return false
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// links returns every address the HTML points to.
func links(t testing.TB, source string) []string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && n.Data == "a" {
			all = append(all, attr(n, "href"))
		}
	}
	return all
}

func TestSet_Render_Golden(t *testing.T) {
	t.Parallel()
	for _, info := range emails(t) {
		for _, locale := range info.Locales {
			m := render(t, info.Name, locale, info.Sample)
			for part, got := range map[string]string{"subject.txt": m.Subject + "\n", "body.txt": m.Text, "body.html": m.HTML} {
				golden(t, filepath.Join(info.Name, locale, part), got)
			}
		}
	}
}

// golden compares with a file below testdata/golden, which -update writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is rendered; look at it and run the test with -update:\n%s", file, got)
	}
}

// TestSet_Render_Accessible holds what every mail owes its readers.
func TestSet_Render_Accessible(t *testing.T) {
	t.Parallel()
	for _, info := range emails(t) {
		for _, locale := range info.Locales {
			m := render(t, info.Name, locale, info.Sample)
			doc, err := html.Parse(strings.NewReader(m.HTML))
			if err != nil {
				t.Fatal(err)
			}
			headings := 0
			for n := range doc.Descendants() {
				if n.Type != html.ElementNode {
					continue
				}
				switch n.Data {
				case "html":
					if attr(n, "lang") != locale {
						t.Errorf("%s/%s: lang=%q", info.Name, locale, attr(n, "lang"))
					}
				case "table":
					if attr(n, "role") != "presentation" {
						t.Errorf("%s/%s: a table for layout without role=presentation", info.Name, locale)
					}
				case "title":
					if n.FirstChild == nil || n.FirstChild.Data != m.Subject {
						t.Errorf("%s/%s: the title is not the subject", info.Name, locale)
					}
				case "h1":
					headings++
				}
			}
			if headings != 1 {
				t.Errorf("%s/%s: %d h1", info.Name, locale, headings)
			}
			for line := range strings.SplitSeq(m.Text, "\n") {
				if strings.ContainsAny(line, "{}") || strings.Contains(line, "<no value>") {
					t.Errorf("%s/%s: text part has %q", info.Name, locale, line)
				}
			}
		}
	}
}

func recipients(t testing.TB) []map[string]any {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "testdata", "recipients.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for _, row := range rows[1:] {
		data := map[string]any{}
		for i, column := range rows[0] {
			data[column] = row[i]
		}
		all = append(all, data)
	}
	return all
}

// TestSet_Render_Recipients renders every row of the demo's file and reads
// each mail back: its own name, clinic and link, the date and time as the
// language writes them.
func TestSet_Render_Recipients(t *testing.T) {
	t.Parallel()
	rows := recipients(t)
	if len(rows) != 1000 {
		t.Fatalf("%d rows, want 1000", len(rows))
	}
	words := map[string]func(at time.Time) (date, clock string){
		"en": func(at time.Time) (string, string) {
			return at.Format("Monday, January 2, 2006"), at.Format("3:04 PM") + " (UTC)"
		},
		"de": func(at time.Time) (string, string) {
			day := strings.NewReplacer("Monday", "Montag", "Tuesday", "Dienstag", "Wednesday", "Mittwoch", "Thursday", "Donnerstag",
				"Friday", "Freitag", "Saturday", "Samstag", "Sunday", "Sonntag", "January", "Januar", "December", "Dezember").Replace(at.Format("Monday, 2. January 2006"))
			return day, fmt.Sprintf("%02d:%02d Uhr (UTC)", at.Hour(), at.Minute())
		},
		"es": func(at time.Time) (string, string) {
			day := strings.NewReplacer("Monday", "lunes", "Tuesday", "martes", "Wednesday", "miércoles", "Thursday", "jueves",
				"Friday", "viernes", "Saturday", "sábado", "Sunday", "domingo", "January", "enero", "December", "diciembre").Replace(at.Format("Monday, 2 de January de 2006"))
			return day, fmt.Sprintf("%d:%02d h (UTC)", at.Hour(), at.Minute())
		},
	}
	used := map[string]int{}
	for i, row := range rows {
		locale := row["locale"].(string)
		m := render(t, "appointment-reminder", locale, row)
		used[m.Locale]++
		if want := map[string]string{"de": "de", "es": "es"}[locale]; want != "" && m.Locale != want || want == "" && m.Locale != "en" {
			t.Fatalf("row %d: locale %q rendered in %q", i, locale, m.Locale)
		}
		at, err := time.Parse(time.RFC3339, row["appointment_at"].(string))
		if err != nil {
			t.Fatal(err)
		}
		date, clock := words[m.Locale](at)
		name := row["first_name"].(string) + " " + row["last_name"].(string)
		clinic, url := row["clinic"].(string), row["confirm_url"].(string)
		seen := visible(t, m.HTML)
		for _, want := range []string{name, clinic, date, clock, url} {
			if !strings.Contains(m.Text, want) {
				t.Errorf("row %d: the text part lacks %q:\n%s", i, want, m.Text)
			}
			if !strings.Contains(seen, want) {
				t.Errorf("row %d: a reader of the HTML does not see %q:\n%s", i, want, seen)
			}
		}
		for _, href := range links(t, m.HTML) {
			if href != url {
				t.Errorf("row %d: links to %q, want only %q", i, href, url)
			}
		}
		if m.Subject == "" || strings.Contains(m.Subject, clinic) {
			t.Errorf("row %d: subject %q", i, m.Subject)
		}
		if t.Failed() {
			return
		}
	}
	if len(used) != 3 {
		t.Errorf("locales used: %v", used)
	}
}

// TestSet_Render_Names: what people are called must come out as it went in,
// and must not become markup.
func TestSet_Render_Names(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"Riverside <Family> Health", `<script>alert("1")</script>`, "O'Neill", `Ann "Ace" O’Hara`, "A & B", "&lt;b&gt;",
		"{{.name}}", "حسن", "नेहा शर्मा", "ي\u200cم", "İpek Öztürk", "👩🏽‍⚕️ Ada", "a\u00a0b", "-->", "<no value>", "</title><b>",
	} {
		m := render(t, "welcome", "en", map[string]any{"name": name})
		if want := "Welcome, " + strings.Join(strings.Fields(name), " "); !strings.Contains(visible(t, m.HTML), want) {
			t.Errorf("the HTML does not show %q: %s", want, visible(t, m.HTML))
		}
		if !strings.HasPrefix(m.Text, "Hello "+name+",\n") {
			t.Errorf("the text part does not greet %q", name)
		}
		plain := render(t, "welcome", "en", map[string]any{"name": "Ada"})
		if got, want := elements(t, m.HTML), elements(t, plain.HTML); !slices.Equal(got, want) {
			t.Errorf("%q changes the structure of the mail: %v", name, got)
		}
	}
}

// elements lists a document's elements and their attributes' names.
func elements(t testing.TB, source string) []string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for n := range doc.Descendants() {
		if n.Type == html.CommentNode {
			all = append(all, "<!--"+n.Data)
		}
		if n.Type == html.ElementNode {
			s := n.Data
			for _, a := range n.Attr {
				s += " " + a.Key
			}
			all = append(all, s)
		}
	}
	return all
}

func TestSet_Render_Controls(t *testing.T) {
	t.Parallel()
	m := render(t, "welcome", "en", map[string]any{"name": "A\x00d\x07a\u202e \u2066Love\x1blace\ufeff\xff"})
	if !strings.HasPrefix(m.Text, "Hello Ada Lovelace\ufffd,\n") {
		t.Errorf("control characters came through: %q", m.Text[:40])
	}
}

func TestSet_Render_Locale(t *testing.T) {
	t.Parallel()
	for want, asked := range map[string][]string{
		"de": {"de", "de-DE", "de-AT", "de_CH", "DE", "de-Latn-DE"},
		"es": {"es", "es-MX", "es-419", "ES-es"},
		"en": {"en", "en-GB", "", "pt-BR", "ja", "fr", "zh-Hant-TW", "no such locale", "x", "de\r\nBcc: a@example.com", "d\x00e", strings.Repeat("de-", 500), "ca", "nds"},
	} {
		for _, locale := range asked {
			if m := render(t, "welcome", locale, map[string]any{"name": "Ada"}); m.Locale != want {
				t.Errorf("locale %.40q rendered in %q, want %q", locale, m.Locale, want)
			}
		}
	}
}

func TestSet_Render_Duration(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		value        any
		en, de, es   string
		wantDataFail bool
	}{
		{value: "10m", en: "10 minutes", de: "10 Minuten", es: "10 minutos"},
		{value: 10, en: "10 minutes", de: "10 Minuten", es: "10 minutos"},
		{value: float64(1), en: "1 minute", de: "1 Minute", es: "1 minuto"},
		{value: json.Number("90"), en: "1 hour and 30 minutes", de: "1 Stunde und 30 Minuten", es: "1 hora y 30 minutos"},
		{value: "15", en: "15 minutes", de: "15 Minuten", es: "15 minutos"},
		{value: "45s", en: "45 seconds", de: "45 Sekunden", es: "45 segundos"},
		{value: "24h", en: "24 hours", de: "24 Stunden", es: "24 horas"},
		{value: "72h", en: "3 days", de: "3 Tage", es: "3 días"},
		{value: "49h5s", en: "2 days and 1 hour", de: "2 Tage und 1 Stunde", es: "2 días y 1 hora"},
		{value: "48h5s", en: "2 days", de: "2 Tage", es: "2 días"},
		{value: "half an hour", en: "half an hour", de: "half an hour", es: "half an hour"},
		{value: 0, wantDataFail: true},
		{value: -5, wantDataFail: true},
		{value: 1.5, wantDataFail: true},
		{value: "-10m", wantDataFail: true},
		{value: "0", wantDataFail: true},
		{value: "99999999999999", wantDataFail: true},
		{value: "", wantDataFail: true},
		{value: true, wantDataFail: true},
	} {
		for locale, want := range map[string]string{"en": test.en, "de": test.de, "es": test.es} {
			m, err := builtinSet(t).Render("one-time-code", locale, map[string]any{"code": "123456", "expires_in": test.value})
			if test.wantDataFail {
				if bad, ok := errors.AsType[*DataError](err); !ok || bad.Field != "expires_in" {
					t.Errorf("expires_in %v: %v, want a *DataError of that field", test.value, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("expires_in %v: %v", test.value, err)
				continue
			}
			if !strings.Contains(m.Text, " "+want) || !strings.Contains(visible(t, m.HTML), " "+want) {
				t.Errorf("expires_in %v in %s: %q not in\n%s", test.value, locale, want, m.Text)
			}
		}
	}
}

func TestSet_Render_Zone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ at, zone, en, de string }{
		{"2026-12-03T09:15:00Z", "", "9:15 AM (UTC)", "09:15 Uhr (UTC)"},
		{"2026-12-03T09:15:00Z", "Europe/Berlin", "10:15 AM (CET)", "10:15 Uhr (MEZ)"},
		{"2026-07-03T09:15:00Z", "Europe/Berlin", "11:15 AM (CEST)", "11:15 Uhr (MESZ)"},
		{"2026-12-03T09:15:00+01:00", "", "9:15 AM (UTC+1)", "09:15 Uhr (UTC+1)"},
		{"2026-12-03T00:05:00+05:30", "", "12:05 AM (UTC+5:30)", "00:05 Uhr (UTC+5:30)"},
		{"2026-12-03T12:00:00-03:30", "", "12:00 PM (UTC-3:30)", "12:00 Uhr (UTC-3:30)"},
		{"2026-12-03T09:15:00.250Z", "America/Sao_Paulo", "6:15 AM (UTC-3)", "06:15 Uhr (UTC-3)"},
		{"2026-12-31T23:30:00Z", "Asia/Tokyo", "Friday, January 1, 2027", "Freitag, 1. Januar 2027"},
	} {
		data := builtinSample(t, "appointment-reminder")
		data["appointment_at"], data["time_zone"] = test.at, test.zone
		for locale, want := range map[string]string{"en": test.en, "de": test.de} {
			m := render(t, "appointment-reminder", locale, data)
			if !strings.Contains(m.Text, " "+want+"\n") || !strings.Contains(visible(t, m.HTML), want+" ") {
				t.Errorf("%s in %q: want %q in\n%s", test.at, test.zone, want, m.Text)
			}
		}
	}
}

func builtinSample(t testing.TB, name string) map[string]any {
	t.Helper()
	for _, info := range builtinSet(t).List() {
		if info.Name == name {
			return info.Sample
		}
	}
	t.Fatalf("no template %q", name)
	return nil
}

// TestSet_Render_DataErrors: each is permanent, names the template and the
// field, and contains nothing of the value.
func TestSet_Render_DataErrors(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-7d1f"
	long := canary + strings.Repeat("x", 3000)
	for _, test := range []struct {
		template, field string
		value           any
	}{
		{"welcome", "name", nil},
		{"welcome", "name", ""},
		{"welcome", "name", 42},
		{"welcome", "name", long},
		{"welcome", "name", canary + "\r\nBcc: a@example.com"},
		{"welcome", "name", []any{canary}},
		{"welcome", "name", map[string]any{canary: canary}},
		{"welcome", "name", htmltemplate.HTML("<b>" + canary + "</b>")},
		{"welcome", "name", []string{canary}},
		{"password-reset", "reset_url", "javascript:alert('" + canary + "')"},
		{"password-reset", "reset_url", "data:text/html," + canary},
		{"password-reset", "reset_url", "//" + canary + ".example.com/"},
		{"password-reset", "reset_url", "https://user:" + canary + "@example.com/"},
		{"password-reset", "reset_url", "https://example.com/ " + canary},
		{"password-reset", "reset_url", "https:///" + canary},
		{"password-reset", "reset_url", "mailto:" + canary + "@example.com"},
		{"one-time-code", "code", canary + "<"},
		{"one-time-code", "code", 123456},
		{"appointment-reminder", "appointment_at", canary},
		{"appointment-reminder", "appointment_at", "2026-12-03 09:15"},
		{"appointment-reminder", "appointment_at", "2026-12-03T09:15:60Z"},
		{"appointment-reminder", "time_zone", canary},
		{"appointment-reminder", "time_zone", "Local"},
		{"appointment-reminder", "time_zone", "../" + canary},
		{"appointment-reminder", "first_name", canary + "\n"},
	} {
		set := builtinSet(t)
		data := builtinSample(t, test.template)
		data[test.field] = test.value
		if test.value == nil {
			delete(data, test.field)
		}
		_, err := set.Render(test.template, "en", data)
		bad, ok := errors.AsType[*DataError](err)
		if !ok {
			t.Errorf("%s with %s=%v: %v, want a *DataError", test.template, test.field, test.value, err)
			continue
		}
		if bad.Template != test.template || bad.Field != test.field && !strings.HasPrefix(bad.Field, test.field+".") {
			t.Errorf("%s with a bad %s: blames %s, field %q", test.template, test.field, bad.Template, bad.Field)
		}
		if permanent, ok := errors.AsType[interface {
			error
			Permanent() bool
		}](err); !ok || !permanent.Permanent() {
			t.Errorf("%v is not permanent", err)
		}
		if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "\r\n") {
			t.Errorf("the error repeats the value: %v", err)
		}
		if check := set.Check(test.template, data); check == nil || check.Error() != err.Error() {
			t.Errorf("Check says %v, Render %v", check, err)
		}
	}
}

func TestSet_Render_AllProblems(t *testing.T) {
	t.Parallel()
	_, err := builtinSet(t).Render("password-reset", "en", map[string]any{"name": 1})
	for _, want := range []string{"field name must be string", "field reset_url is required", "field expires_in is required"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestSet_Render_UnknownTemplate(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	_, renderErr := set.Render("wellcome\r\n"+strings.Repeat("x", 500), "en", nil)
	for _, err := range []error{renderErr, set.Check("wellcome", nil)} {
		if !errors.Is(err, ErrUnknownTemplate) || !strings.Contains(err.Error(), "wellcome") {
			t.Errorf("%v, want ErrUnknownTemplate with the name", err)
		}
		if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 200 {
			t.Errorf("the error repeats too much: %q", err)
		}
		if permanent, ok := errors.AsType[interface {
			error
			Permanent() bool
		}](err); !ok || !permanent.Permanent() {
			t.Errorf("%v is not permanent", err)
		}
	}
}

// TestSet_Render_OwnTemplate proves at a template that is less careful than
// the built-in ones what rendering itself guarantees.
func TestSet_Render_OwnTemplate(t *testing.T) {
	t.Parallel()
	set, err := Load(write(t, map[string]string{
		"own/schema.json": `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["title"], "properties": {
			"title": {"type": "string"}, "url": {"type": "string"}, "phone": {"type": "string"}, "image": {"type": "string"},
			"price": {"type": "number"}, "count": {"type": "integer"}, "greeting": {"type": "string", "default": "Hello"},
			"rows": {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}}}}}}`,
		"own/sample.json":    `{"title": "T", "url": "https://example.com/", "phone": "+49 30 1234", "image": "logo.png", "rows": [{"text": "a"}]}`,
		"own/en/subject.txt": "About {{.title}}",
		"own/en/body.html": `{{define "preheader"}}x{{end}}<p>{{.greeting}} {{.count}} {{.price}}</p>
			{{with .url}}<a href="{{.}}">link</a>{{end}}{{if .phone}}<a href="{{tel .phone}}">call</a>{{end}}{{if .image}}<img src="{{cid .image}}" alt="">{{end}}
			<table>{{range .rows}}<tr><td>{{.text}}</td></tr>{{end}}</table>`,
		"own/en/body.txt": "{{.title}} {{range .rows}}{{.text}}{{end}}",
	}))
	if err != nil {
		t.Fatal(err)
	}

	m, err := set.Render("own", "en", map[string]any{
		"title": "A\tB  C", "url": "https://example.com/?a=1&b=2", "phone": "(030) 12 34-5", "image": "a@b", "count": 1e6, "price": 3,
		"rows": []any{map[string]any{"text": "<i>", "hidden": "x"}}, "title2": htmltemplate.HTML("<b>"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "About A B C" {
		t.Errorf("subject %q", m.Subject)
	}
	if got, want := links(t, m.HTML), []string{"https://example.com/?a=1&b=2", "tel:03012345"}; !slices.Equal(got, want) {
		t.Errorf("links %q, want %q", got, want)
	}
	if seen := visible(t, m.HTML); !strings.Contains(seen, "Hello 1000000 3") || !strings.Contains(seen, "<i>") {
		t.Errorf("visible: %s", seen)
	}
	if !strings.Contains(m.HTML, `src="cid:a@b"`) {
		t.Error("no image")
	}

	const canary = "CANARY-7d1f"
	for field, values := range map[string][]any{
		"title": {"a\r\nBcc: " + canary, "a\n" + canary, "a\u2028" + canary, "a\r" + canary},
		"url":   {"javascript:" + canary, "JaVaScRiPt:" + canary, "vbscript:" + canary, "\u0001javascript:" + canary, "data:" + canary},
		"phone": {canary, "javascript:1", "1", "+1234567890123456", "12+34"},
		"image": {`"onerror=` + canary, "a b", "../../" + canary},
	} {
		for _, value := range values {
			_, err := set.Render("own", "en", map[string]any{"title": "T", field: value})
			bad, ok := errors.AsType[*DataError](err)
			if !ok || bad.Field != field {
				t.Errorf("%s=%q: %v, want a *DataError of that field", field, value, err)
				continue
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error repeats the value: %v", err)
			}
		}
	}

	rows := make([]any, 40_000)
	for i := range rows {
		rows[i] = map[string]any{"text": "row"}
	}
	if _, err := set.Render("own", "en", map[string]any{"title": "T", "rows": rows}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a part of many megabytes rendered: %v", err)
	}
}

// TestSet_Render_Concurrent is for the race detector, and for a buffer of one
// mail leaking into another.
func TestSet_Render_Concurrent(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				name := fmt.Sprintf("Person %d of %d", i, g)
				m, err := set.Render("welcome", []string{"en", "de", "es", "pt-BR"}[i%4], map[string]any{"name": name})
				if err != nil {
					t.Error(err)
					return
				}
				if strings.Count(m.Text, "Person") != 1 || !strings.Contains(m.Text, name) || strings.Count(m.HTML, "Person") != 1 || !strings.Contains(m.HTML, name) {
					t.Errorf("%s got the mail of somebody else", name)
				}
				set.List()[0].Sample["name"] = name
			}
		})
	}
	wg.Wait()
}

func TestSet_Render_LeavesDataAlone(t *testing.T) {
	t.Parallel()
	data := map[string]any{"name": "A\x00da", "extra": []any{1, 2}}
	before := maps.Clone(data)
	render(t, "welcome", "en", data)
	if len(data) != len(before) || data["name"] != before["name"] {
		t.Errorf("Render changed its data to %v", data)
	}
}
