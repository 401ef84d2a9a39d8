package templates

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// notifications are the built-in templates with the parts of a notification.
func notifications(t testing.TB) []Info {
	t.Helper()
	return slices.DeleteFunc(builtinSet(t).List(), func(info Info) bool { return !info.Notification })
}

func TestSet_RenderNotification_Golden(t *testing.T) {
	t.Parallel()
	for _, info := range notifications(t) {
		for _, locale := range info.Locales {
			n, err := builtinSet(t).RenderNotification(info.Name, locale, info.Sample)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			enc := json.NewEncoder(&b)
			enc.SetIndent("", "  ")
			enc.SetEscapeHTML(false)
			if err := enc.Encode(n); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(info.Name, locale, "notification.json"), b.String())
		}
	}
}

// note is a template with every part of a notification, and nothing wrong with it. Its
// schema has a marked field in each place where one can be.
func note() map[string]string {
	return map[string]string{
		"note/schema.json": `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["id"], "properties": {
			"id": {"type": "string"}, "other": {"type": "string"}, "count": {"type": "integer"}, "code": {"type": "string", "private": true},
			"finding": {"type": "string", "phi": true},
			"clinic": {"type": "object", "properties": {"town": {"type": "string"}, "ward": {"type": "string", "phi": true}}},
			"doctor": {"type": "object", "phi": true, "properties": {"name": {"type": "string"}}},
			"tests": {"type": "array", "items": {"type": "object", "properties": {"day": {"type": "string"}, "name": {"type": "string", "phi": true}}}},
			"drugs": {"type": "array", "items": {"type": "string", "phi": true}},
			"notes": {"type": "object", "additionalProperties": {"type": "string", "phi": true}},
			"place": {"type": "object", "properties": {"street": {"type": "string"}}}}}`,
		"note/sample.json": `{"id": "7", "other": "o", "count": 2, "code": "1", "finding": "F", "clinic": {"town": "T", "ward": "W"}, "doctor": {"name": "D"},
			"tests": [{"day": "D", "name": "N"}], "drugs": ["d"], "notes": {"a": "b"}, "place": {"street": "S"}}`,
		"note/webhook.json":      `{"id": {{json .id}}}`,
		"note/en/title.txt":      "Title",
		"note/en/message.txt":    "Message {{.id}}",
		"note/en/push-title.txt": "Push title",
		"note/en/push-body.txt":  "Push body",
		"note/en/chat.txt":       "Chat",
		"note/en/sms.txt":        "SMS",
	}
}

// with lays files over others; one without content is taken away.
func with(files, others map[string]string) map[string]string {
	maps.Copy(files, others)
	maps.DeleteFunc(files, func(_, data string) bool { return data == "" })
	return files
}

// wantProblems loads the files and expects exactly these problems, by their beginnings.
func wantProblems(t *testing.T, files map[string]string, want ...string) {
	t.Helper()
	dir := write(t, files)
	_, err := Load(dir)
	failed, ok := errors.AsType[*LoadError](err)
	if !ok {
		t.Fatalf("Load = %v, want a *LoadError", err)
	}
	var got []string
	for _, p := range failed.Problems {
		got = append(got, strings.TrimPrefix(filepath.ToSlash(p.String()), filepath.ToSlash(dir)+"/"))
	}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("problems:\n\t%s\nwant prefixes:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func loadFiles(t *testing.T, files map[string]string) *Set {
	t.Helper()
	set, err := Load(write(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// marked are the ways in which a template may come by a marked field, and what is said of
// each: what the place that hides it is called, and why, follows.
var marked = map[string]string{
	"{{.finding}}":                                        "phi field finding in the ",
	"{{$.finding}}":                                       "phi field finding in the ",
	"{{if .finding}}x{{end}}":                             "phi field finding in the ",
	"{{if and .id .finding}}x{{end}}":                     "phi field finding in the ",
	`{{if eq .finding "x"}}x{{end}}`:                      "phi field finding in the ",
	"{{with .finding}}x{{end}}":                           "phi field finding in the ",
	"x{{with $x := .id}}{{else}}{{$.finding}}{{end}}":     "phi field finding in the ",
	"x{{len .finding}}":                                   "phi field finding in the ",
	`{{printf "%.1s" .finding}}`:                          "phi field finding in the ",
	`{{.finding | printf "%q"}}`:                          "phi field finding in the ",
	"{{slice .finding 0 1}}":                              "phi field finding in the ",
	`{{index . "finding"}}`:                               "phi field finding in the ",
	`x{{template "t" .finding}}{{define "t"}}x{{end}}`:    "phi field finding in the ",
	`{{template "t" .}}{{define "t"}}{{.finding}}{{end}}`: "phi field finding in the ",
	`{{block "t" .}}{{.finding}}{{end}}`:                  "phi field finding in the ",

	"{{.clinic.ward}}":                                       "phi field ward in the ",
	"{{(.clinic).ward}}":                                     "phi field ward in the ",
	"{{with .clinic}}{{.ward}}{{end}}":                       "phi field ward in the ",
	"{{$c := .clinic}}{{$c.ward}}":                           "phi field ward in the ",
	`{{index .clinic "ward"}}`:                               "phi field ward in the ",
	`{{template "t" .clinic}}{{define "t"}}{{.ward}}{{end}}`: "phi field ward in the ",
	`{{template "t" .}}{{define "t"}}{{with .clinic}}{{.ward}}{{end}}{{end}}`: "phi field ward in the ",
	"{{range .tests}}{{.name}}{{end}}":                                        "phi field name in the ",
	"{{range $i, $t := .tests}}{{$t.name}}{{end}}":                            "phi field name in the ",
	"{{(index .tests 0).name}}":                                               "phi field name in the ",
	"{{range slice .tests 0 1}}{{.name}}{{end}}":                              "phi field name in the ",

	// What is in a marked value is marked, and so is the list of marked values.
	"x{{if .doctor}}{{end}}":             "phi field doctor in the ",
	"{{range .drugs}}x{{end}}":           "phi field drugs in the ",
	"{{len .drugs}}":                     "phi field drugs in the ",
	"{{index .drugs 0}}":                 "phi field drugs in the ",
	"x{{range $k, $v := .notes}}{{end}}": "phi field notes in the ",

	// A value as a whole: what is shown of it cannot be told.
	`x{{range $k, $v := .}}{{printf "%v" $v}}{{end}}`:                        ". takes a whole object or list and with it the phi field ward into the ",
	`x{{range .clinic}}{{.}}{{end}}`:                                         ".clinic takes a whole object or list and with it the phi field ward into the ",
	`{{$k := "finding"}}{{index . $k}}`:                                      "$k takes a whole object or list and with it the phi field ward into the ",
	`{{if "finding" | index .}}x{{end}}`:                                     "index . takes a whole object or list and with it the phi field ward into the ",
	`{{if (or .place .clinic)}}x{{end}}`:                                     "or .place .clinic takes a whole object or list and with it the phi field ward into the ",
	`{{if eq .tests .tests}}x{{end}}`:                                        "eq .tests .tests takes a whole object or list and with it the phi field name into the ",
	`x{{$x := .place}}{{if .id}}{{$x = .clinic}}{{end}}`:                     "$x = .clinic takes a whole object or list and with it the phi field ward into the ",
	`x{{$x := .clinic}}{{if .id}}{{$x = .place}}{{end}}`:                     "$x = .place takes a whole object or list and with it the phi field ward into the ",
	`{{define "t"}}{{if urlquery .}}x{{end}}{{end}}{{template "t" .clinic}}`: "urlquery . takes a whole object or list and with it the phi field ward into the ",
}

// TestLoad_PHI tries every construct in every place that hides the field, and in those
// that may show it.
func TestLoad_PHI(t *testing.T) {
	t.Parallel()
	const (
		locked  = "which shows on locked screens and in notifications"
		leaving = "which leaves the platform"
	)
	email := map[string]string{
		"note/en/subject.txt": "Subject",
		"note/en/body.html":   `{{define "preheader"}}x{{end}}<p>x</p>`,
		"note/en/body.txt":    "x",
	}
	for src, problem := range marked {
		t.Run(src, func(t *testing.T) {
			t.Parallel()
			files := with(note(), email)
			want := map[string]string{}
			for place, file := range map[string]string{
				"push title": "push-title.txt", "push body": "push-body.txt", "chat text": "chat.txt", "sms text": "sms.txt", "subject": "subject.txt",
			} {
				files["note/en/"+file] = "x\n" + src
				want["note/en/"+file+":2: "] = problem + place + ", " + locked
			}
			files["note/webhook.json"] = "{}\n" + src
			want["note/webhook.json:2: "] = problem + "webhook body, " + leaving
			// What is defined in the preheader's file is no part of the preheader. It has a
			// name of its own, because the HTML has the subject's definitions too.
			if call, defined, found := strings.Cut(strings.ReplaceAll(src, `"t"`, `"u"`), "{{define"); call != "" {
				if found {
					defined = "{{define" + defined
				}
				files["note/en/body.html"] = "<p>x</p>{{define \"preheader\"}}x\n" + call + "{{end}}" + defined
				want["note/en/body.html:2: "] = problem + "preheader, " + locked
			}
			wantAmong(t, files, want)
		})
	}
	// The same field after login.
	shown := "x {{.finding}} {{with .clinic}}{{.ward}}{{end}} {{.code}} {{range .drugs}}{{.}}{{end}}"
	loadFiles(t, with(with(note(), email), map[string]string{
		"note/en/title.txt": shown, "note/en/message.txt": shown, "note/en/body.txt": shown,
		"note/en/body.html": `{{define "preheader"}}x{{end}}<p>` + shown + `</p>`,
	}))
	// What is beside a marked field may be seen everywhere.
	beside := `{{.id}}{{with .clinic}}{{.town}}{{end}}{{range .tests}}{{.day}}{{end}}{{with .tests}}{{len .}}{{(index . 0).day}}{{end}}{{if not .clinic}}{{end}}{{range .place}}{{.}}{{end}}`
	loadFiles(t, with(note(), map[string]string{
		"note/en/push-title.txt": "x" + beside, "note/en/push-body.txt": "x" + beside, "note/en/chat.txt": "x" + beside, "note/en/sms.txt": "x" + beside,
		"note/sample.json":  `{"id": "7", "tests": [{"day": "D", "name": "N"}]}`,
		"note/webhook.json": `{"id": {{json .id}}, "town": {{with .clinic}}{{json .town}}{{else}}null{{end}}, "days": [{{range $i, $t := .tests}}{{if $i}},{{end}}{{json $t.day}}{{end}}], "place": {{json .place}}, "code": {{json .code}}}`,
	}))
}

// wantAmong expects, at each place, a problem with this end.
func wantAmong(t *testing.T, files, want map[string]string) {
	t.Helper()
	dir := write(t, files)
	_, err := Load(dir)
	failed, ok := errors.AsType[*LoadError](err)
	if !ok {
		t.Fatalf("Load = %v, want a *LoadError", err)
	}
	for at, end := range want {
		if !slices.ContainsFunc(failed.Problems, func(p Problem) bool {
			line := strings.TrimPrefix(filepath.ToSlash(p.String()), filepath.ToSlash(dir)+"/")
			return strings.HasPrefix(line, at) && strings.HasSuffix(line, end)
		}) {
			t.Errorf("want %s…%s among\n%v", at, end, err)
		}
	}
}

func TestLoad_Notification(t *testing.T) {
	t.Parallel()
	const en = "note/en/"
	private := "private field code in the push title, which shows on locked screens and in notifications"
	tests := map[string]struct {
		files map[string]string
		want  []string
	}{
		"no title":          {map[string]string{en + "title.txt": ""}, []string{en + "title.txt:1: the file is missing"}},
		"no message":        {map[string]string{en + "message.txt": ""}, []string{en + "message.txt:1: the file is missing"}},
		"webhook only":      {map[string]string{en + "title.txt": "", en + "message.txt": "", en + "push-title.txt": "", en + "push-body.txt": "", en + "chat.txt": "", en + "sms.txt": ""}, []string{"note/en:1: the default locale is missing"}},
		"push without body": {map[string]string{en + "push-body.txt": ""}, []string{en + "push-body.txt:1: the file is missing"}},
		"push, no title":    {map[string]string{en + "push-title.txt": ""}, []string{en + "push-title.txt:1: the file is missing"}},
		"empty file":        {map[string]string{en + "sms.txt": " \n"}, []string{en + "sms.txt:1: the file is empty"}},
		"empty webhook":     {map[string]string{"note/webhook.json": "\n"}, []string{"note/webhook.json:1: the file is empty"}},
		"other locale": {
			map[string]string{"note/de/message.txt": "Text", "note/es/title.txt": "Title"},
			[]string{"note/de/title.txt:1: the file is missing", "note/es/message.txt:1: the file is missing"},
		},
		"email in one locale": {
			map[string]string{en + "subject.txt": "S", en + "body.html": `{{define "preheader"}}x{{end}}x`, en + "body.txt": "x", "note/de/title.txt": "T", "note/de/message.txt": "M"},
			[]string{"note/de/body.html:1: the file is missing", "note/de/body.txt:1: the file is missing", "note/de/subject.txt:1: the file is missing"},
		},
		"email in another locale": {
			map[string]string{"note/de/subject.txt": "S", "note/de/title.txt": "T", "note/de/message.txt": "M"},
			[]string{
				"note/de/body.html:1: the file is missing", "note/de/body.txt:1: the file is missing",
				en + "body.html:1: the file is missing", en + "body.txt:1: the file is missing", en + "subject.txt:1: the file is missing",
			},
		},
		"notification in another locale": {
			map[string]string{"welcome/de/title.txt": "T", "welcome/de/message.txt": "M"},
			[]string{
				"builtin/welcome/en/message.txt:1: the file is missing", "builtin/welcome/en/title.txt:1: the file is missing",
				"builtin/welcome/es/message.txt:1: the file is missing", "builtin/welcome/es/title.txt:1: the file is missing",
			},
		},
		"locale folder":       {map[string]string{"note/de_DE/title.txt": "T", "note/de_DE/message.txt": "M"}, []string{`note/de_DE/title.txt:1: "de_DE" is not a BCP 47 tag`}},
		"locale without data": {map[string]string{"note/fr/title.txt": "T", "note/fr/message.txt": "M"}, []string{"note/fr/title.txt:1: no locale data: add locales/fr.json"}},
		"stray files": {
			map[string]string{en + "webhook.json": "{}", "note/title.txt": "T", en + "push.txt": "x"},
			[]string{en + "push.txt:1: not a part of a template; it has schema.json, sample.json and per locale subject.txt, body.html, body.txt for an email, title.txt, message.txt, push-title.txt, push-body.txt, chat.txt, sms.txt for a notification; and webhook.json", en + "webhook.json:1: not a part", "note/title.txt:1: not a part"},
		},
		"parse error":     {map[string]string{en + "chat.txt": "a\n{{if}}"}, []string{en + "chat.txt:2: missing value for if"}},
		"unknown field":   {map[string]string{en + "message.txt": "a\n{{.idd}}"}, []string{en + "message.txt:2: unknown field idd"}},
		"whole object":    {map[string]string{en + "message.txt": "{{.place}}"}, []string{en + "message.txt:1: {{.place}} prints a whole object"}},
		"reserved name":   {map[string]string{en + "title.txt": `T{{define "title"}}x{{end}}`}, []string{en + `title.txt:1: the name "title" is taken`}},
		"optional field":  {map[string]string{en + "message.txt": "{{.place.street}}"}, []string{en + `message.txt:1: executing "message" at <.place.street>`}},
		"no value":        {map[string]string{en + "message.txt": "{{with .place}}{{index . `x` }}{{end}}x"}, []string{en + "message.txt:1: unknown field x"}},
		"empty title":     {map[string]string{en + "title.txt": "{{with .other}}{{.}}{{end}}"}, []string{en + "title.txt:1: the sample without its optional fields renders an empty title"}},
		"empty chat":      {map[string]string{en + "chat.txt": "{{with 0}}x{{end}}"}, []string{en + "chat.txt:1: the sample renders an empty chat text"}},
		"title of lines":  {map[string]string{en + "title.txt": "a\nb"}, []string{en + "title.txt:1: the sample renders a title with a line break"}},
		"push of lines":   {map[string]string{en + "push-title.txt": "a\nb"}, []string{en + "push-title.txt:1: the sample renders a push title with a line break"}},
		"long title":      {map[string]string{en + "title.txt": strings.Repeat("x", 201)}, []string{en + "title.txt:1: the sample renders to 201 bytes; a title has at most 200"}},
		"long message":    {map[string]string{en + "message.txt": strings.Repeat("x", 4097)}, []string{en + "message.txt:1: the sample renders to 4097 bytes; a message has at most 4096"}},
		"long sms":        {map[string]string{en + "sms.txt": strings.Repeat("x", 1601)}, []string{en + "sms.txt:1: the sample renders to 1601 bytes"}},
		"json elsewhere":  {map[string]string{en + "message.txt": "{{json .id}}"}, []string{en + `message.txt:1: function "json" not defined`}},
		"date in webhook": {map[string]string{"note/webhook.json": `{"a": {{json (date .id)}}}`}, []string{`note/webhook.json:1: function "date" not defined`}},
		"private": {
			map[string]string{en + "push-title.txt": "{{.code}}", "note/webhook.json": `{"code": {{json .code}}}`},
			[]string{en + "push-title.txt:1: " + private},
		},
		"without json": {
			map[string]string{"note/webhook.json": "{\"a\": {{.count}},\n\"b\": {{json .id | printf \"%s\"}},\n{{range .tests}}{{.day}}{{end}}{{define \"t\"}}{{if true}}{{else}}{{.}}{{end}}{{end}}\"c\": 1}"},
			[]string{
				"note/webhook.json:1: {{.count}} does not end in json", `note/webhook.json:2: {{json .id | printf "%s"}} does not end in json`,
				"note/webhook.json:3: {{.day}} does not end in json", "note/webhook.json:3: {{.}} does not end in json",
			},
		},
		"in a string": {
			map[string]string{"note/webhook.json": "{\"a\":\n\"\\\"x {{json .count}}\",\n\"b\": {{if .id}}\"{{else}}\n\"{{end}}\"}"},
			[]string{
				"note/webhook.json:2: an action stands within a JSON string", "note/webhook.json:3: an action stands within a JSON string",
				"note/webhook.json:4: an action stands within a JSON string",
			},
		},
		"phi as a whole": {
			map[string]string{"note/webhook.json": "{\"a\": {{json .clinic}},\n\"b\": {{json .doctor}}, \"c\": {{json .}}, \"d\": {{.tests | json}}}"},
			[]string{
				"note/webhook.json:1: json .clinic takes a whole object or list and with it the phi field ward into the webhook body, which leaves the platform",
				"note/webhook.json:2: json . takes a whole object", "note/webhook.json:2: json takes a whole object", "note/webhook.json:2: phi field doctor in the webhook body",
			},
		},
		"malformed":        {map[string]string{"note/webhook.json": `{"id": {{json .id}}{{if .other}},{{end}}}`}, []string{"note/webhook.json:1: the sample does not render one JSON object: invalid character"}},
		"malformed, least": {map[string]string{"note/webhook.json": `{"id": {{json .id}}{{if not .other}},{{end}}}`}, []string{"note/webhook.json:1: the sample without its optional fields does not render one JSON object"}},
		"array":            {map[string]string{"note/webhook.json": `[{{json .id}}]`}, []string{"note/webhook.json:1: the sample does not render one JSON object: it is JSON, but not an object"}},
		"two objects":      {map[string]string{"note/webhook.json": `{} {}`}, []string{"note/webhook.json:1: the sample does not render one JSON object: invalid character '{' after top-level value"}},
		"large webhook":    {map[string]string{"note/webhook.json": `{"a": "` + strings.Repeat("x", maxWebhook) + `"}`}, []string{"note/webhook.json:1: the sample does not render one JSON object: it has 16392 bytes, the limit is 16384"}},
		"odd mark":         {map[string]string{"note/schema.json": `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"id": {"phi": "true"}}}`}, []string{"note/schema.json:1: phi must be true or false"}},
		"unfollowed mark":  {map[string]string{"note/schema.json": `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"id": {"prefixItems": [{"type": "object", "properties": {"a": {"phi": true}}}]}}}`}, []string{"note/schema.json:1: a field within prefixItems cannot be marked"}},

		"generic without sms":    {map[string]string{"generic/de/title.txt": "T", "generic/de/message.txt": "M", "generic/de/push-title.txt": "P", "generic/de/push-body.txt": "P", "generic/de/chat.txt": "C"}, []string{"generic/de/sms.txt:1: the file is missing"}},
		"generic wants more":     {own(Generic, `"required": ["name"],`), []string{"generic/schema.json:1: the worker uses this template by itself, with no data but an optional action_url: render template generic: field name is required"}},
		"notification unusable":  {own(Plain, `"required": ["action_url"],`), []string{"notification/schema.json:1: the worker uses this template by itself, with no data but title and an optional body and action_url: render template notification: field action_url is required"}},
		"digest too long":        {map[string]string{"digest/en/title.txt": "T", "digest/en/message.txt": "{{range .items}}{{.title}}{{.title}}{{.title}}{{end}}"}, []string{"digest/en/title.txt:1: the worker uses this template by itself, with no data but count, more and items, 10 with a title of 200 bytes at most: render template digest: the message would be larger than 4096 bytes"}},
		"generic without emails": {with(own(Generic, ""), map[string]string{"generic/en/subject.txt": "", "generic/en/body.html": "", "generic/en/body.txt": ""}), []string{"generic/en/title.txt:1: the worker uses this template by itself, with no data but an optional action_url: find email template generic: it is a notification template"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantProblems(t, with(note(), test.files), test.want...)
		})
	}
}

// own replaces a built-in template whole.
func own(name, schema string) map[string]string {
	files := map[string]string{
		name + "/schema.json":    `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", ` + schema + ` "properties": {"title": {"type": "string"}, "name": {"type": "string"}, "action_url": {"type": "string"}}}`,
		name + "/sample.json":    `{"title": "T", "name": "N", "action_url": "A"}`,
		name + "/en/subject.txt": "S", name + "/en/body.html": `{{define "preheader"}}x{{end}}x`, name + "/en/body.txt": "x",
	}
	if name == Generic {
		for _, part := range noteFiles() {
			files[name+"/en/"+part] = "x"
		}
	}
	return files
}

// TestLoad_NotificationDirectory lays the parts of one kind over a built-in template that
// has both: those of the other kind stay.
func TestLoad_NotificationDirectory(t *testing.T) {
	t.Parallel()
	set := loadFiles(t, map[string]string{
		"appointment-reminder/de/subject.txt": "Betreff",
		"appointment-reminder/de/body.html":   `{{define "preheader"}}x{{end}}<p>x</p>`,
		"appointment-reminder/de/body.txt":    "x",
		"appointment-reminder/en/title.txt":   "Own title",
		"appointment-reminder/en/message.txt": "Own message",
		"lab-result-ready/webhook.json":       `{"own": {{json .result_id}}}`,
		"welcome/en/title.txt":                "T", "welcome/en/message.txt": "M", "welcome/de/title.txt": "T", "welcome/de/message.txt": "M", "welcome/es/title.txt": "T", "welcome/es/message.txt": "M",
	})
	data := builtinSample(t, "appointment-reminder")
	m, err := set.Render("appointment-reminder", "de", data)
	if err != nil || m.Subject != "Betreff" {
		t.Errorf("subject %q, %v; want that of the directory", m.Subject, err)
	}
	n, err := set.RenderNotification("appointment-reminder", "de", data)
	if err != nil || n.Title != "Ihr Termin steht bevor" || n.Push.IsZero() {
		t.Errorf("notification %+v, %v; want the built-in one", n, err)
	}
	// The own notification has no text for push, so none of the built-in one is left.
	n, err = set.RenderNotification("appointment-reminder", "en", data)
	if err != nil || n.Title != "Own title" || !n.Push.IsZero() || !n.SMS.IsZero() {
		t.Errorf("notification %+v, %v; want the directory's alone", n, err)
	}
	if m, err := set.Render("appointment-reminder", "en", data); err != nil || m.Subject != "Reminder: your upcoming appointment" {
		t.Errorf("subject %q, %v; want the built-in one", m.Subject, err)
	}
	n, err = set.RenderNotification("lab-result-ready", "en", builtinSample(t, "lab-result-ready"))
	if err != nil || string(n.Webhook) != `{"own":"r-20261203-0042"}` || n.Title != "New lab result" {
		t.Errorf("notification %+v, %v; want the directory's webhook and the built-in rest", n, err)
	}
	if email, notification := set.Kinds("welcome"); !email || !notification {
		t.Errorf("welcome: email %t, notification %t; want both", email, notification)
	}
}

func TestSet_Kinds(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	for name, want := range map[string][2]bool{
		"welcome": {true, false}, "lab-result-ready": {false, true}, "appointment-reminder": {true, true}, Generic: {true, true}, Plain: {true, false}, "none": {},
	} {
		if email, notification := set.Kinds(name); [2]bool{email, notification} != want {
			t.Errorf("%s: email %t, notification %t; want %v", name, email, notification, want)
		}
	}
	for _, info := range set.List() {
		if email, notification := set.Kinds(info.Name); email != info.Email || notification != info.Notification {
			t.Errorf("List and Kinds differ on %s", info.Name)
		}
	}
}

func TestSet_WrongKind(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	_, email := set.Render("lab-result-ready", "en", builtinSample(t, "lab-result-ready"))
	_, notification := set.RenderNotification("welcome", "en", builtinSample(t, "welcome"))
	_, unknown := set.RenderNotification("wellcome\r\n", "en", nil)
	for err, want := range map[error]string{
		email:                                  "it is a notification template",
		set.Check("lab-result-ready", nil):     "it is a notification template",
		notification:                           "it is an email template",
		set.CheckNotification("welcome", nil):  "it is an email template",
		unknown:                                "find template",
		set.CheckNotification("wellcome", nil): "find template",
	} {
		if !errors.Is(err, ErrUnknownTemplate) || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%v, want ErrUnknownTemplate that says %q", err, want)
		}
		if permanent, ok := errors.AsType[interface {
			error
			Permanent() bool
		}](err); !ok || !permanent.Permanent() {
			t.Errorf("%v is not permanent", err)
		}
	}
}

func TestSet_RenderNotification_Locale(t *testing.T) {
	t.Parallel()
	set := loadFiles(t, with(note(), map[string]string{"note/de/title.txt": "Titel", "note/de/message.txt": "Text {{.id}}"}))
	data := map[string]any{"id": "7"}
	for locale, want := range map[string]string{"de": "de", "de-AT": "de", "de_CH": "de", "en-GB": "en", "": "en", "ja": "en", "x\r\n": "en"} {
		n, err := set.RenderNotification("note", locale, data)
		if err != nil || n.Locale != want || n.Title != map[string]string{"de": "Titel", "en": "Title"}[want] {
			t.Errorf("locale %q: %+v, %v; want %s", locale, n, err, want)
		}
		// What is not worded in a language is the same in each.
		if string(n.Webhook) != `{"id":"7"}` {
			t.Errorf("locale %q: webhook %s", locale, n.Webhook)
		}
		// A locale does not borrow the texts of another.
		if german := want == "de"; n.Push.IsZero() != german || n.Chat.IsZero() != german || n.SMS.IsZero() != german {
			t.Errorf("locale %q: push %+v, chat %+v, sms %+v", locale, n.Push, n.Chat, n.SMS)
		}
	}
}

// hostile are texts that would break out of a string of JSON or JavaScript.
var hostile = []string{
	`"`, `\`, `\"`, `","id":"x`, `"}`, "a\nb", "a\tb", "</script>", "<!--", "\u2028\u2029", "&", "{{.id}}", "\x7f", "\u202ea", "\xff", "😀",
	`:1,`, `}`, "null", "", "7", "\x00\x1f",
}

func TestSet_RenderNotification_JSON(t *testing.T) {
	t.Parallel()
	set := loadFiles(t, with(note(), map[string]string{
		"note/webhook.json": `
{
  "id": {{json .id}}, {{json .id}}: {{.count | json}},
  "place": {{json .place}}, "none": {{json .clinic.town}},
  "days": [{{range $i, $t := .tests}}{{if $i}}, {{end}}{{template "day" $t}}{{end}}]
}
{{define "day"}}{"day": {{json .day}}}{{end}}`,
		"note/sample.json": `{"id": "7", "count": 2, "clinic": {"town": "T"}, "place": {"street": "S"}, "tests": [{"day": "D"}]}`,
		"note/schema.json": strings.Replace(note()["note/schema.json"], `["id"]`, `["id", "clinic"]`, 1),
	}))
	for _, text := range hostile {
		n, err := set.RenderNotification("note", "en", map[string]any{
			"id": text, "count": 1e6, "clinic": map[string]any{}, "place": map[string]any{"street": text, "hidden": text}, "tests": []any{map[string]any{"day": text}, map[string]any{"day": text}},
		})
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		clean := cleanText(text)
		var got map[string]any
		if err := json.Unmarshal(n.Webhook, &got); err != nil {
			t.Fatalf("%q gives %s: %v", text, n.Webhook, err)
		}
		// Where the text is a name that is there already, the later one counts.
		want := map[string]any{"id": clean}
		want[clean] = 1e6
		maps.Copy(want, map[string]any{
			"place": map[string]any{"street": clean}, "none": "", "days": []any{map[string]any{"day": clean}, map[string]any{"day": clean}},
		})
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q gives %s, want %v", text, n.Webhook, want)
		}
		if strings.ContainsAny(string(n.Webhook), "<>&\n\u2028\u2029") {
			t.Errorf("%q is not escaped for HTML and JavaScript: %s", text, n.Webhook)
		}
	}
}

// TestSet_RenderNotification_DataErrors: permanent, with the field where there is one to
// blame, and without anything of the value.
func TestSet_RenderNotification_DataErrors(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-7d1f"
	set := loadFiles(t, with(note(), map[string]string{
		"note/en/title.txt":      "About {{.id}}",
		"note/en/push-title.txt": "Push {{.other}}",
		"note/en/message.txt":    "{{if ne .id `empty`}}{{.id}} {{.other}} {{.code}}{{end}}",
		"note/webhook.json":      `{"a": 1{{if eq .other "` + canary + `"}},{{end}}, "b": {{json .code}}}`,
		"note/sample.json":       `{"id": "7", "other": "o", "code": "1"}`,
	}))
	tests := []struct {
		name    string
		data    map[string]any
		field   string
		problem string
	}{
		{"no field", map[string]any{}, "id", "is required"},
		{"wrong type", map[string]any{"id": []any{canary}}, "id", "must be string, not array"},
		{"line feed in title", map[string]any{"id": canary + "\nx"}, "id", "must be one line, because the title shows it"},
		{"carriage return", map[string]any{"id": canary + "\rx"}, "id", "must be one line, because the title shows it"},
		{"line separator", map[string]any{"id": "7", "other": canary + "\u2028x"}, "other", "must be one line, because the push title shows it"},
		{"empty message", map[string]any{"id": "empty"}, "", "the message is empty with this data"},
		{"long message", map[string]any{"id": canary + strings.Repeat("x", maxMessage)}, "", "the message would be larger than 4096 bytes"},
		{"not JSON", map[string]any{"id": "7", "other": canary}, "", "the webhook body is not one JSON object of at most 16384 bytes with this data"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n, err := set.RenderNotification("note", "en", test.data)
			bad, ok := errors.AsType[*DataError](err)
			if !ok || bad.Template != "note" || bad.Field != test.field || bad.Problem != test.problem || !bad.Permanent() {
				t.Errorf("%v, want field %q: %s", err, test.field, test.problem)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("the error repeats the value: %v", err)
			}
			if !reflect.DeepEqual(n, Notification{}) {
				t.Errorf("half a notification: %+v", n)
			}
		})
	}
	for _, data := range []map[string]any{{}, {"id": 7}} {
		_, rendered := set.RenderNotification("note", "en", data)
		if checked := set.CheckNotification("note", data); checked == nil || checked.Error() != rendered.Error() {
			t.Errorf("CheckNotification says %v, RenderNotification %v", checked, rendered)
		}
	}
	if err := set.CheckNotification("note", map[string]any{"id": "7"}); err != nil {
		t.Errorf("CheckNotification refuses good data: %v", err)
	}
}

func TestSet_RenderNotification_Lines(t *testing.T) {
	t.Parallel()
	set := loadFiles(t, with(note(), map[string]string{
		"note/en/title.txt":   "  About\t{{.id}}  ",
		"note/en/message.txt": "\n a\n\n{{.other}}\n\n",
	}))
	n, err := set.RenderNotification("note", "en", map[string]any{"id": strings.Repeat("ä", 150), "other": "x\r\ny\x00z"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "About " + strings.Repeat("ä", 95) + "…"; n.Title != want || len(n.Title) > maxTitle {
		t.Errorf("title %q of %d bytes, want %q", n.Title, len(n.Title), want)
	}
	if n.Body != "a\n\nx\nyz" {
		t.Errorf("body %q", n.Body)
	}
}

// TestSet_RenderNotification_Concurrent is for the race detector, and for data of one
// notification leaking into another, or into an email of the same template.
func TestSet_RenderNotification_Concurrent(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			data := builtinSample(t, "appointment-reminder")
			clinic := fmt.Sprintf("Clinic %d", g)
			data["clinic"] = clinic
			for range 50 {
				n, err := set.RenderNotification("appointment-reminder", "en", data)
				if err != nil || strings.Count(n.Body, "Clinic") != 1 || !strings.Contains(n.Body, clinic) {
					t.Errorf("%s got %q, %v", clinic, n.Body, err)
				}
				m, err := set.Render("appointment-reminder", "de", data)
				if err != nil || !strings.Contains(m.Text, clinic) {
					t.Errorf("%s got the mail of another: %v", clinic, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestSet_Generic holds what is shown outside the app of a health notification: the same
// for everybody, whatever happened.
func TestSet_Generic(t *testing.T) {
	t.Parallel()
	set := builtinSet(t)
	for _, locale := range []string{"en", "de", "es"} {
		bare, err := set.RenderNotification(Generic, locale, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]Text{"push": bare.Push, "chat": bare.Chat, "sms": bare.SMS} {
			if text.Body == "" || strings.Contains(text.Body, "\n") || (name == "push") != (text.Title == "MedicaLink") {
				t.Errorf("%s in %s: %+v", name, locale, text)
			}
		}
		const action = "https://portal.example.com/messages"
		linked, err := set.RenderNotification(Generic, locale, map[string]any{"action_url": action, "finding": "CANARY"})
		if err != nil {
			t.Fatal(err)
		}
		if linked.Chat.Body != bare.Chat.Body+"\n"+action || linked.SMS.Body != bare.SMS.Body+" "+action || linked.Push != bare.Push || linked.Text != bare.Text {
			t.Errorf("%s with an action: %+v", locale, linked)
		}
		m := render(t, Generic, locale, map[string]any{"action_url": action, "finding": "CANARY"})
		if !slices.Contains(links(t, m.HTML), action) || !strings.Contains(m.Text, "\n\n"+action+"\n") || strings.Contains(m.HTML+m.Text, "CANARY") {
			t.Errorf("the mail in %s lacks the link or has more:\n%s", locale, m.Text)
		}
		if m := render(t, Generic, locale, nil); len(links(t, m.HTML)) > 0 || strings.Contains(m.Text, "http") {
			t.Errorf("the mail in %s has a link from nowhere:\n%s", locale, m.Text)
		}
	}
}

// TestSet_Plain: a text that came without a template is shown as it was written.
func TestSet_Plain(t *testing.T) {
	t.Parallel()
	m := render(t, Plain, "de", map[string]any{"title": "A <b> & C", "body": "\n one <i>\r\ntwo\n\n \n\nthree\n"})
	if m.Subject != "A <b> & C" || !strings.HasPrefix(m.Text, "A <b> & C\n\none <i>\ntwo\n\nthree\n\n-- \n") {
		t.Errorf("subject %q, text %q", m.Subject, m.Text)
	}
	for _, want := range []string{`<bdi dir="auto">A &lt;b&gt; &amp; C</bdi>`, "one &lt;i&gt;<br>two</p>", ">three</p>", ">one &lt;i&gt;&#847;"} {
		if !strings.Contains(m.HTML, want) {
			t.Errorf("the HTML lacks %s", want)
		}
	}
	if m := render(t, Plain, "en", map[string]any{"title": "Only a title"}); strings.Count(visible(t, m.HTML), "Only a title") != 1 || !strings.HasPrefix(m.Text, "Only a title\n\n-- \n") || len(links(t, m.HTML)) > 0 {
		t.Errorf("text %q", m.Text)
	}
	if _, err := builtinSet(t).Render(Plain, "en", map[string]any{"title": "a\nb"}); err == nil {
		t.Error("a title of two lines rendered")
	}
}

// FuzzSet_RenderNotification renders any JSON as data. Either it is refused as bad data, or
// a notification comes out that keeps every promise, and no marked field leaves the app.
func FuzzSet_RenderNotification(f *testing.F) {
	files := write(f, with(note(), map[string]string{
		"note/en/title.txt":   "{{.id}} {{.finding}}",
		"note/en/message.txt": "{{.id}}{{.finding}}{{range .tests}}{{.name}}{{end}}x",
		"note/en/chat.txt":    "{{.id}}{{.other}}{{range .tests}}{{.day}}{{end}}x",
		"note/webhook.json":   `{"id": {{json .id}}, {{json .other}}: {{json .count}}, "place": {{json .place}}, "days": [{{range $i, $t := .tests}}{{if $i}},{{end}}{{json $t.day}}{{end}}]}`,
	}))
	set, err := Load(files)
	if err != nil {
		f.Fatal(err)
	}
	for _, info := range set.List() {
		if info.Notification {
			sample, err := json.Marshal(info.Sample)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(info.Name, "de", sample)
		}
	}
	f.Add("note", "en", []byte(`{"id":"\u2028\"</script>","other":"\\","count":1e30,"place":{"street":"\ud800"},"tests":[{},{"day":"\r"}],"finding":"x"}`))
	f.Add("note", "x", []byte(`{"id":"","finding":"SECRET","clinic":null,"tests":null}`))
	f.Fuzz(func(t *testing.T, name, locale string, raw []byte) {
		var data map[string]any
		if json.Unmarshal(raw, &data) != nil {
			return
		}
		n, err := set.RenderNotification(name, locale, data)
		if err != nil {
			if _, bad := errors.AsType[*DataError](err); !bad && !errors.Is(err, ErrUnknownTemplate) || !utf8.ValidString(err.Error()) {
				t.Fatalf("an error of neither kind: %q", err)
			}
			return
		}
		for _, text := range []Text{n.Text, n.Push, n.Chat, n.SMS} {
			if !utf8.ValidString(text.Title+text.Body) || strings.ContainsFunc(text.Title+text.Body, isControl) || len(text.Title) > maxTitle || len(text.Body) > maxMessage || checkLine(text.Title) != nil {
				t.Fatalf("text %+q", text)
			}
		}
		if n.Title == "" || n.Body == "" {
			t.Fatalf("title %q, body %q", n.Title, n.Body)
		}
		if n.Webhook != nil && (!json.Valid(n.Webhook) || n.Webhook[0] != '{' || !utf8.Valid(n.Webhook)) {
			t.Fatalf("webhook %q", n.Webhook)
		}
		// Without the marked fields, the outside is shown the same.
		for _, field := range []string{"finding", "doctor", "drugs", "notes"} {
			delete(data, field)
		}
		bare, err := set.RenderNotification(name, locale, data)
		if err == nil && (bare.Push != n.Push || bare.Chat != n.Chat || bare.SMS != n.SMS || !bytes.Equal(bare.Webhook, n.Webhook)) {
			t.Fatalf("a marked field shows outside: %+v and %+v", n, bare)
		}
	})
}
