package mailer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/medicalink/postroom/internal/testenv"
)

func testMessage() Message {
	return Message{
		ID: "job-1", Date: time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC),
		From: "MedicaLink <no-reply@medicalink.example>", To: "Ada Lovelace <ada@example.com>",
		Subject: "Welcome", Text: "Hello Ada", HTML: "<p>Hello Ada</p>",
	}
}

func builder(t testing.TB, dkimCfg *DKIM) *Mailer {
	t.Helper()
	return newMailer(t, "smtp://localhost", func(c *Config) { c.DKIM = dkimCfg })
}

func build1(t testing.TB, msg Message) Envelope {
	t.Helper()
	env, err := builder(t, nil).Build(msg)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// leaf is one part of a parsed message that has no parts of its own.
type leaf struct {
	ctype, file, body string
	path              []string // the multiparts it is in
}

// parse takes a message apart with another library.
func parse(t testing.TB, raw []byte) (*mail.Header, []leaf) {
	t.Helper()
	entity, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, raw)
	}
	var leaves []leaf
	var walk func(e *message.Entity, path []string)
	walk = func(e *message.Entity, path []string) {
		ctype, _, err := e.Header.ContentType()
		if err != nil {
			t.Fatalf("parse content type: %v", err)
		}
		if mr := e.MultipartReader(); mr != nil {
			for {
				part, err := mr.NextPart()
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					t.Fatalf("parse part: %v\n%s", err, raw)
				}
				walk(part, append(slices.Clone(path), ctype))
			}
		}
		body, err := io.ReadAll(e.Body)
		if err != nil {
			t.Fatalf("read part: %v", err)
		}
		file, err := (&mail.AttachmentHeader{Header: e.Header}).Filename()
		if err != nil {
			t.Fatalf("file name: %v", err)
		}
		leaves = append(leaves, leaf{ctype: ctype, file: file, body: string(body), path: path})
	}
	walk(entity, nil)
	return &mail.Header{Header: entity.Header}, leaves
}

// fields are the names of all header fields in order.
func fields(h *mail.Header) []string {
	var names []string
	for f := h.Fields(); f.Next(); {
		names = append(names, f.Key())
	}
	slices.Sort(names)
	return names
}

func TestMailer_Build(t *testing.T) {
	t.Parallel()
	msg := testMessage()
	msg.ReplyTo = "Help <help@medicalink.example>"
	msg.Bulk = true
	msg.ListUnsubscribe = "https://medicalink.example/u?t=abc"
	msg.Headers = map[string]string{"Feedback-ID": "a:b:c", "X-Entity-Ref-ID": "42"}
	msg.Attachments = []Attachment{
		{Name: "Bericht für Zoë.pdf", ContentType: "application/pdf", Content: bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n', '.'}, 500)},
		{Name: "note.txt", Content: []byte("x")},
	}
	env := build1(t, msg)
	if env.From != "no-reply@medicalink.example" || env.To != "ada@example.com" {
		t.Errorf("envelope %q %q", env.From, env.To)
	}
	h, leaves := parse(t, env.Raw)
	for name, want := range map[string]string{
		"From":                     `"MedicaLink" <no-reply@medicalink.example>`,
		"To":                       `"Ada Lovelace" <ada@example.com>`,
		"Reply-To":                 `"Help" <help@medicalink.example>`,
		"Subject":                  "Welcome",
		"Date":                     "Mon, 23 Nov 2026 09:30:00 +0000",
		"Message-Id":               "<job-1@medicalink.example>",
		"Auto-Submitted":           "auto-generated",
		"X-Auto-Response-Suppress": "OOF, AutoReply",
		"Precedence":               "bulk",
		"List-Unsubscribe":         "<https://medicalink.example/u?t=abc>",
		"List-Unsubscribe-Post":    "List-Unsubscribe=One-Click",
		"Feedback-Id":              "a:b:c",
		"X-Entity-Ref-Id":          "42",
		"Mime-Version":             "1.0",
		"User-Agent":               "",
		"X-Mailer":                 "",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	want := []leaf{
		{"text/plain", "", "Hello Ada", []string{"multipart/mixed", "multipart/alternative"}},
		{"text/html", "", "<p>Hello Ada</p>", []string{"multipart/mixed", "multipart/alternative"}},
		{"application/pdf", "Bericht für Zoë.pdf", string(msg.Attachments[0].Content), []string{"multipart/mixed"}},
		{"application/octet-stream", "note.txt", "x", []string{"multipart/mixed"}},
	}
	if fmt.Sprint(leaves) != fmt.Sprint(want) {
		t.Errorf("parts:\n%q\nwant:\n%q", leaves, want)
	}
}

func TestMailer_Build_shapes(t *testing.T) {
	t.Parallel()
	pdf := []Attachment{{Name: "a.pdf", ContentType: "application/pdf", Content: []byte("%PDF")}}
	for _, tt := range []struct {
		name       string
		text, html string
		files      []Attachment
		want       string
	}{
		{"text", "a", "", nil, "[text/plain []]"},
		{"html", "", "b", nil, "[text/html []]"},
		{"both", "a", "b", nil, "[text/plain [multipart/alternative] text/html [multipart/alternative]]"},
		{"text and file", "a", "", pdf, "[text/plain [multipart/mixed] application/pdf [multipart/mixed]]"},
		{"html and file", "", "b", pdf, "[text/html [multipart/mixed] application/pdf [multipart/mixed]]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			msg := testMessage()
			msg.Text, msg.HTML, msg.Attachments = tt.text, tt.html, tt.files
			_, leaves := parse(t, build1(t, msg).Raw)
			var got []any
			for _, l := range leaves {
				got = append(got, l.ctype, l.path)
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("shape %v, want %s", got, tt.want)
			}
		})
	}
}

func TestMailer_Build_stable(t *testing.T) {
	t.Parallel()
	msg := testMessage()
	msg.Headers = map[string]string{"X-A": "1", "X-B": "2", "X-C": "3", "X-D": "4"}
	msg.Attachments = []Attachment{{Name: "a.bin", Content: []byte("abc")}}
	first := build1(t, msg).Raw
	for range 20 {
		if again := build1(t, msg).Raw; !bytes.Equal(first, again) {
			t.Fatalf("two renderings differ:\n%s\n---\n%s", first, again)
		}
	}
	msg.ID = "job-2"
	if bytes.Equal(first, build1(t, msg).Raw) {
		t.Error("another job has the same bytes")
	}
	// A body that holds the boundary it would get must not break the structure.
	msg.ID = "job-3"
	msg.Text = "--" + string(boundary(nil, "job-3", 0)) + "\r\n\r\n--" + string(boundary(nil, "job-3", 1)) + "--\r\n"
	_, leaves := parse(t, build1(t, msg).Raw)
	if len(leaves) != 3 || leaves[0].body != msg.Text {
		t.Errorf("parts: %q", leaves)
	}
}

func TestMailer_Build_text(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("Termin bestätigt für Zoë 漢字 ", 60)
	for _, s := range []string{
		"plain", "Überweisung für Zoë", "漢字と仮名", "emoji 👩‍⚕️", long, "=?UTF-8?q?looks_encoded?=", "a=b?c_d", "a, b; \"c\" <d@e>",
		strings.Repeat("word ", 100) + "end", strings.Repeat("x", 500), ".", "..", "From here", "",
	} {
		msg := testMessage()
		msg.Subject, msg.Text, msg.HTML = s, s+"\n.\n..x\nFrom y\n"+s, "<p>"+s+"</p>"
		msg.To = (&mail.Address{Name: strings.ReplaceAll(s, "=?", "="), Address: "ada@example.com"}).String()
		if len(s) > 300 {
			msg.To = "ada@example.com"
		}
		raw := build1(t, msg).Raw
		h, leaves := parse(t, raw)
		subject, err := h.Subject()
		if err != nil || subject != squeeze(s) {
			t.Errorf("subject %q (%v), want %q", subject, err, s)
		}
		if got := strings.ReplaceAll(leaves[0].body, "\r\n", "\n"); got != msg.Text {
			t.Errorf("text %q, want %q", got, msg.Text)
		}
		if leaves[1].body != msg.HTML {
			t.Errorf("html %q, want %q", leaves[1].body, msg.HTML)
		}
		for line := range bytes.SplitSeq(raw, []byte("\r\n")) {
			if len(line) > 998 || (len(bytes.TrimSpace(line)) == 0 && len(line) > 0) || hasEightBit(line) {
				t.Errorf("line %q is too long, blank or not 7-bit", line)
			}
		}
		if !cleanLines(raw) {
			t.Errorf("message has a bare CR or LF:\n%q", raw)
		}
	}
}

func TestMailer_Build_addresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ to, envelope, header string }{
		{"ada@example.com", "ada@example.com", "<ada@example.com>"},
		{"<ada@example.com>", "ada@example.com", "<ada@example.com>"},
		{"Ada  Lovelace <ada@example.com>", "ada@example.com", `"Ada Lovelace" <ada@example.com>`},
		{`"Riverside <Family> Health, Ltd." <r@example.com>`, "r@example.com", `"Riverside <Family> Health, Ltd." <r@example.com>`},
		{"Zoë <zoe@example.com>", "zoe@example.com", "=?utf-8?q?Zo=C3=AB?= <zoe@example.com>"},
		{"=?UTF-8?q?Zo=C3=AB?= <zoe@example.com>", "zoe@example.com", "=?utf-8?q?Zo=C3=AB?= <zoe@example.com>"},
		{"a@müller.example", "a@xn--mller-kva.example", "<a@xn--mller-kva.example>"},
		{`"a b"@example.com`, `"a b"@example.com`, `<"a b"@example.com>`},
		{`"a>b"@example.com`, `"a>b"@example.com`, `<"a>b"@example.com>`},
		{"jörg@example.com", "jörg@example.com", "<jörg@example.com>"},
		{"o'hara+tag@sub_domain.example.com", "o'hara+tag@sub_domain.example.com", "<o'hara+tag@sub_domain.example.com>"},
	} {
		msg := testMessage()
		msg.To = tt.to
		env := build1(t, msg)
		h, _ := parse(t, env.Raw)
		if env.To != tt.envelope || h.Get("To") != tt.header {
			t.Errorf("%s: envelope %q, header %q; want %q, %q", tt.to, env.To, h.Get("To"), tt.envelope, tt.header)
		}
		if _, err := prepare(env); err != nil {
			t.Errorf("%s: prepare: %v", tt.to, err)
		}
	}
}

func TestMailer_Build_refuses(t *testing.T) {
	t.Parallel()
	const canary = "canary"
	for name, change := range map[string]func(*Message){
		"no id":                    func(m *Message) { m.ID = "" },
		"no date":                  func(m *Message) { m.Date = time.Time{} },
		"no body":                  func(m *Message) { m.Text, m.HTML = "", "" },
		"no recipient":             func(m *Message) { m.To = "" },
		"two recipients":           func(m *Message) { m.To = "canary@example.com, b@example.com" },
		"group":                    func(m *Message) { m.To = "canary: a@example.com;" },
		"CRLF in address":          func(m *Message) { m.To = "a@example.com>\r\nBcc: canary@example.com" },
		"CRLF in name":             func(m *Message) { m.To = "canary\r\nBcc: x <a@example.com>" },
		"CRLF in encoded name":     func(m *Message) { m.To = "=?utf-8?q?canary=0D=0ABcc:_x?= <a@example.com>" },
		"nested encoded word":      func(m *Message) { m.To = `"=?utf-8?q?canary?=" <a@example.com>` },
		"address literal":          func(m *Message) { m.To = "canary@[127.0.0.1]" },
		"bad domain":               func(m *Message) { m.To = "canary@-example.com" },
		"long local part":          func(m *Message) { m.To = strings.Repeat("c", 65) + "@example.com" },
		"bad From":                 func(m *Message) { m.From = "canary" },
		"bad Reply-To":             func(m *Message) { m.ReplyTo = "canary" },
		"CRLF in subject":          func(m *Message) { m.Subject = "canary\r\nBcc: x@example.com" },
		"LF in subject":            func(m *Message) { m.Subject = "canary\nBcc: x@example.com" },
		"NUL in subject":           func(m *Message) { m.Subject = "canary\x00" },
		"Latin-1 in subject":       func(m *Message) { m.Subject = "canary\xfc" },
		"C1 in subject":            func(m *Message) { m.Subject = "canary\u0085Bcc: x" },
		"line separator":           func(m *Message) { m.Subject = "canary\u2028Bcc: x" },
		"word beyond a line":       func(m *Message) { m.Subject = strings.Repeat("canary", 200) },
		"header name with colon":   func(m *Message) { m.Headers = map[string]string{"X:canary": "a"} },
		"header name with CRLF":    func(m *Message) { m.Headers = map[string]string{"X-A\r\nBcc": "canary"} },
		"header name with space":   func(m *Message) { m.Headers = map[string]string{"X A": "canary"} },
		"empty header name":        func(m *Message) { m.Headers = map[string]string{"": "canary"} },
		"header value with CRLF":   func(m *Message) { m.Headers = map[string]string{"X-A": "canary\r\nBcc: x"} },
		"Bcc":                      func(m *Message) { m.Headers = map[string]string{"bCC": "canary@example.com"} },
		"Content-Type":             func(m *Message) { m.Headers = map[string]string{"Content-Type": "canary"} },
		"Return-Path":              func(m *Message) { m.Headers = map[string]string{"Return-Path": "canary"} },
		"DKIM-Signature":           func(m *Message) { m.Headers = map[string]string{"DKIM-Signature": "canary"} },
		"same header twice":        func(m *Message) { m.Headers = map[string]string{"X-A": "canary", "x-a": "canary"} },
		"too many headers":         func(m *Message) { m.Headers = map[string]string{"X-A": strings.Repeat("canary ", 3000)} },
		"CRLF in unsubscribe":      func(m *Message) { m.ListUnsubscribe = "https://x.example/>\r\nBcc: canary@example.com" },
		"bracket in unsubscribe":   func(m *Message) { m.ListUnsubscribe = "https://x.example/>, <http://canary" },
		"http unsubscribe":         func(m *Message) { m.ListUnsubscribe = "http://canary.example/" },
		"javascript unsubscribe":   func(m *Message) { m.ListUnsubscribe = "javascript:canary" },
		"credentials in URL":       func(m *Message) { m.ListUnsubscribe = "https://canary:x@x.example/" },
		"CRLF in mailto":           func(m *Message) { m.ListUnsubscribe = "mailto:canary@x.example?subject=a%0D%0ABcc:x" },
		"non-ASCII unsubscribe":    func(m *Message) { m.ListUnsubscribe = "https://x.example/canäry" },
		"attachment without name":  func(m *Message) { m.Attachments = []Attachment{{}} },
		"attachment CRLF in name":  func(m *Message) { m.Attachments = []Attachment{{Name: "a\r\nBcc: canary"}} },
		"attachment path":          func(m *Message) { m.Attachments = []Attachment{{Name: "../canary"}} },
		"attachment CRLF in type":  func(m *Message) { m.Attachments = []Attachment{{Name: "a", ContentType: "text/plain\r\nBcc: canary"}} },
		"attachment type nonsense": func(m *Message) { m.Attachments = []Attachment{{Name: "a", ContentType: "canary"}} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			msg := testMessage()
			change(&msg)
			env, err := builder(t, nil).Build(msg)
			e, ok := errors.AsType[*Error](err)
			if !ok || !e.Permanent() || e.Phase != PhaseBuild || e.Reason != ReasonInvalidMessage || env.Raw != nil {
				t.Fatalf("Build = %q, %v; want a permanent error", env.Raw, err)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("error repeats the value: %v", err)
			}
			if len(err.Error()) < len("send mail: build: invalid_message: ")+10 {
				t.Errorf("error does not say what is wrong: %v", err)
			}
		})
	}
}

func TestMailer_Build_listUnsubscribe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in, want string
		oneClick bool
	}{
		{"https://x.example/u?a=1&b=2", "<https://x.example/u?a=1&b=2>", true},
		{"https://x.example/a,b", "<https://x.example/a%2Cb>", true},
		{"mailto:u@x.example?subject=stop", "<mailto:u@x.example?subject=stop>", false},
		{"<https://x.example/u>, <mailto:u@x.example>", "<https://x.example/u>, <mailto:u@x.example>", true},
		{"<mailto:u@x.example>,<https://x.example/u>", "<mailto:u@x.example>, <https://x.example/u>", true},
		{"https://x.example/" + strings.Repeat("t", 700), "<https://x.example/" + strings.Repeat("t", 700) + ">", true},
	} {
		msg := testMessage()
		msg.ListUnsubscribe = tt.in
		h, _ := parse(t, build1(t, msg).Raw)
		if got := h.Get("List-Unsubscribe"); got != tt.want || (h.Get("List-Unsubscribe-Post") != "") != tt.oneClick {
			t.Errorf("%s: %q, post %q", tt.in, got, h.Get("List-Unsubscribe-Post"))
		}
	}
}

func TestMailer_Build_unsafeIDIsHashed(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a b", "a>b", "a@b", "a\r\nBcc: x", ".a", "a..b", strings.Repeat("a", 200), "ü"} {
		msg := testMessage()
		msg.ID = id
		h, _ := parse(t, build1(t, msg).Raw)
		got := h.Get("Message-Id")
		if len(got) != len("<@medicalink.example>")+32 || !strings.HasSuffix(got, "@medicalink.example>") {
			t.Errorf("id %q: Message-ID %q", id, got)
		}
	}
}

func TestMailer_Send_SMTPUTF8(t *testing.T) {
	t.Parallel()
	msg := testMessage()
	msg.To = "jörg@müller.example"
	env := build1(t, msg)

	with := testenv.SMTP(t, testenv.SMTPUTF8())
	if _, err := newMailer(t, with.URL()).Send(t.Context(), env, Options{}); err != nil {
		t.Fatal(err)
	}
	mailLine := with.Commands()[1]
	if got := with.Messages()[0]; got.To != "jörg@xn--mller-kva.example" || !strings.HasSuffix(mailLine, " BODY=8BITMIME SMTPUTF8") {
		t.Errorf("to %q with %q", got.To, mailLine)
	}

	without := testenv.SMTP(t)
	e := sendErr(t, t.Context(), newMailer(t, without.URL()), env, Options{})
	if e == nil || !e.Permanent() || e.Reason != ReasonInvalidMessage || without.Count() != 0 {
		t.Errorf("without SMTPUTF8: %v, want a permanent error", e)
	}

	msg.To = "joerg@müller.example"
	if _, err := newMailer(t, without.URL()).Send(t.Context(), build1(t, msg), Options{}); err != nil {
		t.Errorf("international domain alone: %v", err)
	}
}

func TestMailer_Build_DKIM(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPub, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		key    crypto.Signer
		record string
	}{
		{"RSA", rsaKey, "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(rsaDER)},
		{"Ed25519", edKey, "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(edPub)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pkcs8, err := x509.MarshalPKCS8PrivateKey(tt.key)
			if err != nil {
				t.Fatal(err)
			}
			key, err := ParseDKIMKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
			if err != nil {
				t.Fatal(err)
			}
			m := builder(t, &DKIM{Domain: "medicalink.example", Selector: "s1", Signer: key})
			verify := func(raw []byte) error {
				v, err := dkim.VerifyWithOptions(bytes.NewReader(raw), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
					if name != "s1._domainkey.medicalink.example" {
						t.Errorf("looked up %q", name)
					}
					return []string{tt.record}, nil
				}})
				if err != nil || len(v) != 1 {
					t.Fatalf("verify: %v, %d signatures", err, len(v))
				}
				return v[0].Err
			}
			for _, msg := range []Message{testMessage(), func() Message {
				msg := testMessage()
				msg.Subject = strings.Repeat("Überweisung ", 30)
				msg.Text = "trailing   \n\n.\nFrom x\n\n\n"
				msg.Bulk = true
				msg.ListUnsubscribe = "<https://x.example/" + strings.Repeat("t", 200) + ">, <mailto:u@x.example>"
				msg.Headers = map[string]string{"References": strings.Repeat("<a@b.example> ", 40)}
				msg.Attachments = []Attachment{{Name: "ä.pdf", Content: bytes.Repeat([]byte("x\r\n."), 999)}}
				return msg
			}()} {
				env, err := m.Build(msg)
				if err != nil {
					t.Fatal(err)
				}
				if err := verify(env.Raw); err != nil {
					t.Errorf("signature: %v", err)
				}
				if h, _ := parse(t, env.Raw); !strings.Contains(h.Get("Dkim-Signature"), "c=relaxed/relaxed") {
					t.Errorf("signature field %q", h.Get("Dkim-Signature"))
				}
				for _, line := range []string{"From: x@y.example\r\n", "Subject: x\r\n", "List-Unsubscribe: <https://evil.example>\r\n", "List-Unsubscribe-Post: x\r\n"} {
					if verify(append([]byte(line), env.Raw...)) == nil {
						t.Errorf("signature survives an added %q", line)
					}
				}
				// What arrives is what was signed.
				s := testenv.SMTP(t)
				if _, err := newMailer(t, s.URL()).Send(t.Context(), env, Options{}); err != nil {
					t.Fatal(err)
				}
				if err := verify(s.Messages()[0].Raw); err != nil {
					t.Errorf("signature after transport: %v", err)
				}
			}
		})
	}
}

func TestParseDKIMKey(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseDKIMKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSigner(&DKIM{Domain: "x.example", Selector: "s", Signer: key}); err == nil {
		t.Error("an ECDSA key was accepted")
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDKIMKey(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})); err != nil {
		t.Errorf("PKCS #1: %v", err)
	}
	for _, bad := range []string{"", "canary", "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseDKIMKey([]byte(bad)); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Whatever the input, the header holds exactly the fields it should.
func FuzzMailer_Build(f *testing.F) {
	f.Add("Ada <ada@example.com>", "Hello", "X-A", "value", "https://x.example/u", "a.pdf", "text/plain", "text", "<p>html</p>")
	f.Add("a@example.com>\r\nBcc: x@y.example", "s\r\nBcc: x@y.example", "X\r\nBcc", "v\nBcc: x", "https://x/>\r\nBcc: y", "n\r\nBcc: z", "t/p\r\nBcc: q", "\r\n.\r\n", "")
	f.Add("=?utf-8?q?=0D=0ABcc:_x?= <a@b.example>", "=?utf-8?q?=0D=0A?=", "Bcc", strings.Repeat(" ", 300)+"Bcc: x", "<mailto:a@b?c=%0d>", "=?x?=", "multipart/mixed; boundary=x", "--x\r\nBcc: y", "\x00")
	f.Add("\"a b\"@example.com", strings.Repeat("a ", 80)+strings.Repeat("b", 75)+"  "+strings.Repeat("c", 74), "x-a", "a  b", "", "ä", "", "ä", "ß")
	m := builder(f, nil)
	f.Fuzz(func(t *testing.T, to, subject, name, value, unsubscribe, file, ctype, text, html string) {
		msg := testMessage()
		msg.To, msg.Subject, msg.Text, msg.HTML, msg.ListUnsubscribe = to, subject, text, html, unsubscribe
		msg.Headers = map[string]string{name: value}
		msg.Attachments = []Attachment{{Name: file, ContentType: ctype, Content: []byte(text)}}
		env, err := m.Build(msg)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || !e.Permanent() {
				t.Fatalf("error %v is not permanent", err)
			}
			return
		}
		if !cleanLines(env.Raw) {
			t.Fatalf("bare CR or LF in %q", env.Raw)
		}
		if _, err := prepare(env); err != nil {
			t.Fatalf("prepare: %v", err)
		}
		h, leaves := parse(t, env.Raw)
		want := []string{
			"From", "To", "Subject", "Date", "Message-Id", "Mime-Version", "Content-Type", "Auto-Submitted",
			"X-Auto-Response-Suppress", canonical(name),
		}
		if unsubscribe != "" {
			want = append(want, "List-Unsubscribe")
			if h.Get("List-Unsubscribe-Post") != "" {
				want = append(want, "List-Unsubscribe-Post")
			}
		}
		slices.Sort(want)
		if got := fields(h); !slices.Equal(got, want) {
			t.Fatalf("fields %q, want %q in\n%s", got, want, env.Raw)
		}
		if got, err := h.AddressList("To"); err != nil || len(got) != 1 {
			t.Fatalf("To: %v %v", got, err)
		}
		bodies := 2
		if text == "" || html == "" {
			bodies = 1
		}
		if len(leaves) != bodies+1 {
			t.Fatalf("%d parts, want %d bodies and a file in\n%s", len(leaves), bodies, env.Raw)
		}
		if subject, err := h.Subject(); err != nil || subject != squeeze(msg.Subject) {
			t.Fatalf("subject %q (%v), want %q", subject, err, squeeze(msg.Subject))
		}
	})
}

func canonical(name string) string {
	h := message.Header{}
	h.Set(name, "x")
	f := h.Fields()
	f.Next()
	return f.Key()
}
