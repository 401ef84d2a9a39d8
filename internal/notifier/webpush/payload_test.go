package webpush

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/medicalink/postroom/internal/notifier"
)

const someID = "0198c7a2-52a1-7b3c-9d5e-2f6a8b1c3d4e"

func TestEncode(t *testing.T) {
	t.Parallel()
	got, err := encode(&notifier.Message{
		ID: someID, Kind: "lab.result.ready", Title: "Result <ready> & signed", Body: "See “the app”",
		Action: "https://app.example/results/7", User: "u-1", Target: "t", Collapse: "c", Payload: json.RawMessage(`{"x":1}`),
	})
	const want = `{"id":"` + someID + `","kind":"lab.result.ready","title":"Result <ready> & signed",` +
		`"body":"See “the app”","action":"https://app.example/results/7"}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
	got, err = encode(&notifier.Message{ID: someID, Title: "T"})
	if want := `{"id":"` + someID + `","title":"T"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestEncode_cuts(t *testing.T) {
	t.Parallel()
	for name, unit := range map[string]string{
		"letters": "a", "two bytes": "é", "four bytes": "🩺", "escaped": "\"", "six for one": "\x01", "mixed": "a🩺\"é\n", "not UTF-8": "\xff",
	} {
		m := &notifier.Message{
			ID: someID, Kind: "lab.result.ready", Title: "Title", Body: strings.Repeat(unit, 5000/len(unit)),
			Action: "https://app.example/results/7",
		}
		text, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > maxPlaintext || len(text) < maxPlaintext-24 {
			t.Errorf("%s: %d bytes, want just under %d", name, len(text), maxPlaintext)
		}
		var p payload
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatal(err)
		}
		body, cut := strings.CutSuffix(p.Body, "…")
		if !cut || !utf8.ValidString(p.Body) || p.Title != m.Title || p.Action != m.Action || p.ID != m.ID {
			t.Errorf("%s: became %.60s… %s", name, p.Body, p.Action)
		}
		if name != "not UTF-8" && !strings.HasPrefix(m.Body, body) {
			t.Errorf("%s: the body is another one", name)
		}
	}
}

// What no producer may hand in is delivered as well as it can be.
func TestEncode_cutsMoreThanTheBody(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 6000)
	decode := func(m *notifier.Message) (p payload) {
		t.Helper()
		text, err := encode(m)
		if err != nil || len(text) > maxPlaintext {
			t.Fatalf("%d bytes, %v", len(text), err)
		}
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := decode(&notifier.Message{ID: someID, Title: "T", Body: long, Action: "https://app.example/" + long}); p.Title != "T" || p.Action != "" {
		t.Errorf("a link that does not fit: title %.9s, link %.9s", p.Title, p.Action)
	}
	if p := decode(&notifier.Message{ID: someID, Title: long, Body: long}); !strings.HasPrefix(p.Title, "xxx") || p.Body != "" {
		t.Errorf("a title that does not fit: title %.9s, body %.9s", p.Title, p.Body)
	}
	if _, err := encode(&notifier.Message{ID: long}); err == nil {
		t.Error("an id that does not fit: no error")
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("title", "body", 4000)
	f.Add("\xff\"", "🩺\x00", 3900)
	f.Fuzz(func(t *testing.T, title, body string, n int) {
		if body != "" && n > 0 {
			body = strings.Repeat(body, min(n, 5000)/len(body)+1)
		}
		text, err := encode(&notifier.Message{ID: someID, Title: title, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > maxPlaintext || !json.Valid(text) || !utf8.Valid(text) {
			t.Fatalf("%d bytes: %.200q", len(text), text)
		}
	})
}
