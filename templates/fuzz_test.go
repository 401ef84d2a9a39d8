package templates

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzSet_Render renders any JSON as data of the template with most fields.
// Either it is refused as bad data, or a mail comes out whose headers, links
// and structure the data cannot have changed.
func FuzzSet_Render(f *testing.F) {
	set := builtinSet(f)
	names := map[string][]string{}
	for _, info := range emails(f) {
		for _, locale := range info.Locales {
			names[info.Name] = elements(f, render(f, info.Name, locale, info.Sample).HTML)
		}
		sample, err := json.Marshal(info.Sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(info.Name, "de", sample)
	}
	f.Add("appointment-reminder", "en", []byte(`{"first_name":"<b>","last_name":"\r\n","clinic":"\u202e","appointment_at":"2026-12-03T09:15:00+14:00","confirm_url":"HTTPS://x/\"><script>","time_zone":"Asia/Kolkata"}`))
	f.Add("password-reset", "x", []byte(`{"name":"\u0000","reset_url":"http://[::1]/?a=%zz","expires_in":1e2}`))
	f.Add("one-time-code", "", []byte(`{"code":"0000 0000","expires_in":"9000h"}`))
	f.Fuzz(func(t *testing.T, name, locale string, raw []byte) {
		var data map[string]any
		if json.Unmarshal(raw, &data) != nil {
			return
		}
		m, err := set.Render(name, locale, data)
		if err != nil {
			_, bad := errors.AsType[*DataError](err)
			if !bad && !errors.Is(err, ErrUnknownTemplate) {
				t.Fatalf("an error of neither kind: %v", err)
			}
			if !utf8.ValidString(err.Error()) {
				t.Fatalf("an error that is not UTF-8: %q", err)
			}
			return
		}
		if m.Subject == "" || strings.ContainsFunc(m.Subject, func(r rune) bool { return r < ' ' || isControl(r) }) {
			t.Fatalf("subject %q", m.Subject)
		}
		for _, part := range []string{m.Text, m.HTML} {
			if !utf8.ValidString(part) || strings.ContainsFunc(part, isControl) || strings.Contains(part, "ZgotmplZ") {
				t.Fatalf("part %q", part)
			}
		}
		if got, want := strings.Join(elements(t, m.HTML), "\n"), strings.Join(names[name], "\n"); got != want {
			t.Fatalf("the data changed the structure\ngot  %s\nwant %s", got, want)
		}
		for _, href := range links(t, m.HTML) {
			if low := strings.ToLower(href); !strings.HasPrefix(low, "http://") && !strings.HasPrefix(low, "https://") {
				t.Fatalf("links to %q", href)
			}
		}
	})
}
