package tasks

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file that pins the wire format: jobs in Redis
// outlive a deployment, so a difference needs a thought about old workers.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the wire format changed; got:\n%s\nwant, as in %s:\n%s", got, path, want)
	}
}

func fullEmail() Email {
	return Email{
		To: "Ada Lovelace <ada@example.com>", From: "Clínica del Sol <desk@example.com>", ReplyTo: "desk@example.com",
		Subject: "Your appointment & more", Template: "appointment-reminder", Locale: "pt-BR",
		Data: map[string]any{
			"first_name": "Ada", "clinic": "Riverside <Family> Health", "count": 1000000, "id": int64(9007199254740993),
			"price": 12.5, "tiny": 1e-9, "long": json.Number("98765432109876543210"), "list": []any{1, "two", nil, true}, "nested": map[string]any{"n": 2},
		},
		Attachments:     []Attachment{{Name: "termin.ics", ContentType: "text/calendar", Content: []byte("BEGIN:VCALENDAR")}},
		Headers:         map[string]string{"X-Clinic": "Sol", "References": "<a@example.com>"},
		ListUnsubscribe: "<https://example.com/u/1>, <mailto:u@example.com>", Tags: []string{"reminder"}, Class: ClassBulk,
	}
}

func TestEmail_WireFormat(t *testing.T) {
	t.Parallel()
	for name, email := range map[string]Email{
		"email.json":       fullEmail(),
		"email-plain.json": {To: "ada@example.com", Subject: "Hi", Body: "Text", HTML: "<p>Text & more</p>"},
	} {
		payload, err := email.encode()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, append(payload, '\n'))
	}
}

func TestDecodeEmail_RoundTrip(t *testing.T) {
	t.Parallel()
	want := fullEmail()
	payload, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeEmail(payload)
	if err != nil {
		t.Fatal(err)
	}
	want.V = Version
	want.Data = map[string]any{
		"first_name": "Ada", "clinic": "Riverside <Family> Health", "count": int64(1000000), "id": int64(9007199254740993),
		"price": 12.5, "tiny": 1e-9, "long": json.Number("98765432109876543210"), "list": []any{int64(1), "two", nil, true}, "nested": map[string]any{"n": int64(2)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("DecodeEmail() = %+v\nwant %+v", got, want)
	}
}

func TestDecodeEmail_Accepts(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"least":         `{"v":1,"to":"ada@example.com","template":"welcome"}`,
		"unknown field": `{"v":1,"to":"ada@example.com","template":"welcome","of_a_newer_producer":{"a":[1]}}`,
		"white space":   " {\"v\":1,\"to\":\"ada@example.com\",\"template\":\"welcome\"}\n",
	}
	for name, payload := range tests {
		got, err := DecodeEmail([]byte(payload))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got.Class != ClassTransactional || got.Template != "welcome" {
			t.Errorf("%s: DecodeEmail() = %+v, want class transactional and template welcome", name, got)
		}
	}
}

func TestDecodeEmail_Refuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, payload, want string }{
		{"empty", ``, "ends too early"},
		{"cut", `{"v":1,"to":"` + canary, "ends too early"},
		{"not JSON", canary, "not valid JSON"},
		{"null", `null`, "no version"},
		{"array", `[1]`, "not a JSON object"},
		{"string", `"` + canary + `"`, "not a JSON object"},
		{"no version", `{"to":"ada@example.com","template":"welcome"}`, "no version"},
		{"version zero", `{"v":0,"to":"ada@example.com","template":"welcome"}`, "no version"},
		{"newer version", `{"v":2,"to":"ada@example.com","template":"welcome"}`, "deploy newer workers"},
		{"newer version of another shape", `{"v":2,"to":["` + canary + `"],"template":{}}`, "deploy newer workers"},
		{"version type", `{"v":"1","to":"ada@example.com","template":"welcome"}`, "field v "},
		{"field type", `{"v":1,"to":12345,"template":"welcome"}`, "field to "},
		{"field type big number", `{"v":1,"to":"ada@example.com","tags":[98765432109876543210]}`, "field tags "},
		{"two objects", `{"v":1,"to":"ada@example.com","template":"welcome"}{}`, "goes on"},
		{"base64", `{"v":1,"to":"ada@example.com","template":"welcome","attachments":[{"name":"a","content":"` + canary + `!"}]}`, "base64"},
		{"invalid", `{"v":1,"to":"` + canary + `","template":"welcome"}`, "to: "},
		{"injection", `{"v":1,"to":"ada@example.com","body":"x","subject":"a\r\nBcc: ` + canary + `"}`, "subject: "},
		{"huge", `{"v":1,"body":"` + strings.Repeat("a", 16<<20) + `"}`, "the limit is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeEmail([]byte(tt.payload))
			if err == nil {
				t.Fatalf("DecodeEmail() = %+v, want an error", got)
			}
			permanent, ok := errors.AsType[interface {
				error
				Permanent() bool
			}](err)
			if !ok || !permanent.Permanent() {
				t.Errorf("error %v is not permanent", err)
			}
			if _, ok := errors.AsType[*DecodeError](err); !ok {
				t.Errorf("error is %T, want *DecodeError", err)
			}
			if invalid := fields(err); strings.HasSuffix(tt.want, ": ") && (len(invalid) != 1 || !strings.HasPrefix(tt.want, invalid[0])) {
				t.Errorf("error %v wraps the problems of %q, want %q", err, invalid, tt.want)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "98765") || strings.Contains(err.Error(), "12345") {
				t.Errorf("error repeats a value: %v", err)
			}
		})
	}
}

// The largest message that Validate accepts must be readable.
func TestDecodeEmail_Largest(t *testing.T) {
	t.Parallel()
	e := message()
	e.Body = strings.Repeat("a", MaxPayloadBytes-2000)
	for range MaxAttachments {
		e.Attachments = append(e.Attachments, Attachment{Name: "a.bin", Content: make([]byte, MaxAttachmentBytes/MaxAttachments)})
	}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	payload, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEmail(payload); err != nil {
		t.Errorf("a worker refuses what a producer accepts: %v", err)
	}
}

// No payload makes the decoder panic, and what it returns can be sent on.
func FuzzDecodeEmail(f *testing.F) {
	for _, name := range []string{"email.json", "email-plain.json"} {
		payload, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte(`{"v":1,"to":"ada@example.com","template":"welcome","data":{"a":1e999,"b":[-0,0.1,1E3]}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		email, err := DecodeEmail(payload)
		if err != nil {
			return
		}
		again, err := email.encode()
		if err != nil {
			if len(payload) > MaxPayloadBytes/8 {
				return
			}
			t.Fatalf("decoded from %q, but cannot be encoded: %v", payload, err)
		}
		second, err := DecodeEmail(again)
		if err != nil {
			t.Fatalf("decoded from %q, encoded as %q: %v", payload, again, err)
		}
		// An empty list or map is left out, and comes back as nil.
		third, err := second.encode()
		if err != nil || !bytes.Equal(again, third) {
			t.Errorf("%q\nbecomes %q (%v)", again, third, err)
		}
	})
}
