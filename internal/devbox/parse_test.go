package devbox

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

func TestParseMail(t *testing.T) {
	t.Parallel()
	p := parseMail(crlf(`From: =?utf-8?q?Jos=C3=A9?= <jose@example.com>
To: "Riverside <Family> Health" <a@example.com>, b@example.com
Reply-To: help@example.com
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
Date: Mon, 23 Nov 2026 15:04:05 +0100
X-LONG: one
 two
Content-Type: multipart/mixed; boundary=m

--m
Content-Type: multipart/related; boundary=r

--r
Content-Type: multipart/alternative; boundary=a

--a
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Gr=FC=DFe
--a
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: base64

` + base64.StdEncoding.EncodeToString([]byte("<p>Grüße")) + `
--a--
--r
Content-Type: image/png
Content-ID: <logo@x>
Content-Disposition: inline; filename="../logo.png"

png
--r--
--m
Content-Type: text/plain; name="=?utf-8?q?pr=C3=BCfung.txt?="
Content-Disposition: attachment

attached text
--m
Content-Type: application/pdf

pdf
--m--
`))
	if len(p.Problems) > 0 {
		t.Errorf("problems %q, want none", p.Problems)
	}
	if want := []address{{"José", "jose@example.com"}}; !reflect.DeepEqual(p.From, want) {
		t.Errorf("From = %v, want %v", p.From, want)
	}
	if want := []address{{"Riverside <Family> Health", "a@example.com"}, {"", "b@example.com"}}; !reflect.DeepEqual(p.To, want) {
		t.Errorf("To = %v, want %v", p.To, want)
	}
	if p.Subject != "Grüße" || p.Date.Hour() != 15 {
		t.Errorf("subject %q, date %v", p.Subject, p.Date)
	}
	if !p.HasText || p.Text != "Grüße" || !p.HasHTML || p.HTML != "<p>Grüße" {
		t.Errorf("text %q, HTML %q", p.Text, p.HTML)
	}
	want := []part{
		{Name: ".._logo.png", Type: "image/png", ContentID: "logo@x", Inline: true, Body: []byte("png")},
		{Name: "prüfung.txt", Type: "text/plain", Body: []byte("attached text")},
		{Name: "part-3.pdf", Type: "application/pdf", Body: []byte("pdf")},
	}
	if !reflect.DeepEqual(p.Parts, want) {
		t.Errorf("parts:\n%+v, want\n%+v", p.Parts, want)
	}
	// In their order, unfolded and decoded.
	if got := p.Headers[5]; p.Headers[0] != (headerField{"From", "José <jose@example.com>"}) || got != (headerField{"X-LONG", "one two"}) {
		t.Errorf("headers %v", p.Headers)
	}
}

// What is wrong with a message is what a developer looks for: it is named, and
// the rest is shown.
func TestParseMail_Problems(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	many.WriteString("Date: Mon, 23 Nov 2026 15:04:05 +0100\nContent-Type: multipart/mixed; boundary=m\n\n")
	for range maxParts + 1 {
		many.WriteString("--m\nContent-Type: image/png\n\nx\n")
	}
	many.WriteString("--m--\n")
	tests := []struct {
		name, raw, problem, text string
	}{
		{"no header", "hello, I am no header\n\nhello", "the message cannot be read", ""},
		{"no date", "Subject: x\n\nhello", "there is no Date header", "hello"},
		{"bad date", "Date: yesterday\n\nhello", "the Date header cannot be read", "hello"},
		{"bad address", "Date: Mon, 23 Nov 2026 15:04:05 +0100\nTo: <<<\n\nhello", "the To header cannot be read", "hello"},
		{"cut off", "Date: Mon, 23 Nov 2026 15:04:05 +0100\nContent-Type: multipart/mixed; boundary=m\n\n--m\n\nhello\n", "the message ends too early", "hello"},
		{"unknown charset", "Date: Mon, 23 Nov 2026 15:04:05 +0100\nContent-Type: text/plain; charset=klingon\n\nhello", "encoding is not known", "hello"},
		{"too many parts", many.String(), fmt.Sprintf("only the first %d parts", maxParts), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := parseMail(crlf(tt.raw))
			if all := strings.Join(p.Problems, "\n"); !strings.Contains(all, tt.problem) {
				t.Errorf("problems %q, want one with %q", p.Problems, tt.problem)
			}
			if strings.TrimSpace(p.Text) != tt.text {
				t.Errorf("text %q, want %q", p.Text, tt.text)
			}
		})
	}
}

func FuzzParseMail(f *testing.F) {
	f.Add([]byte("From: a@b\r\n\r\nx"))
	f.Add(crlf("Content-Type: multipart/mixed; boundary=m\n\n--m\nContent-Type: text/html\n\n<img src=cid:x>\n--m--\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		p := parseMail(raw)
		frame(p.HTML, p.Parts)
		snippet(p.Text)
	})
}
