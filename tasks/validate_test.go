package tasks

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medicalink/postroom/internal/mailer"
)

// canary stands for a patient's data: no error may repeat it.
const canary = "canary-7f3a"

// fields returns the fields of all ValidationErrors in err.
func fields(err error) []string {
	var all []string
	if joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		for _, inner := range joined.Unwrap() {
			all = append(all, fields(inner)...)
		}
	} else if bad, ok := errors.AsType[*ValidationError](err); ok {
		all = append(all, bad.Field)
	}
	return all
}

// mustBuild fails unless the worker's mailer takes what Validate took. What a
// producer accepts and a worker refuses is a message that nobody misses in time.
func mustBuild(t *testing.T, e Email) {
	t.Helper()
	m, err := mailer.New(mailer.Config{Providers: []mailer.Provider{{Host: "127.0.0.1", Port: 25, TLS: mailer.TLSNone}}})
	if err != nil {
		t.Fatal(err)
	}
	msg := mailer.Message{
		ID: "id", Date: time.Unix(0, 0), From: e.From, To: e.To, ReplyTo: e.ReplyTo, Subject: e.Subject, Text: "text",
		Headers: e.Headers, ListUnsubscribe: e.ListUnsubscribe,
	}
	if msg.From == "" {
		msg.From = "desk@example.com"
	}
	for _, a := range e.Attachments {
		msg.Attachments = append(msg.Attachments, mailer.Attachment(a))
	}
	if _, err := m.Build(msg); err != nil {
		t.Errorf("Validate accepts %+v, and the mailer refuses it: %v", e, err)
	}
}

func TestEmail_Validate(t *testing.T) {
	t.Parallel()
	file := Attachment{Name: "report.pdf", ContentType: "application/pdf", Content: []byte("%PDF")}
	tests := []struct {
		name   string
		change func(*Email)
		want   []string // fields
	}{
		{"valid", func(*Email) {}, nil},
		{"html only", func(e *Email) { e.Body, e.HTML = "", "<p>x" }, nil},
		{"template", func(e *Email) {
			*e = Email{To: e.To, Template: "welcome", Data: map[string]any{"name": "Ada"}, Locale: "pt-BR"}
		}, nil},
		{"template with subject", func(e *Email) { e.Body, e.Template = "", "welcome" }, nil},
		{"everything", func(e *Email) {
			e.From, e.ReplyTo, e.Class, e.Tags = "Clinic <desk@example.com>", "desk@example.com", ClassBulk, []string{"reminder", "Bücher"}
			e.Headers = map[string]string{"X-Clinic": "Müller & Söhne", "References": "<a@example.com>", "list-id": "News <news.example.com>", "Feedback-ID": "a:b"}
			e.ListUnsubscribe = "<https://example.com/u?t=1,2>, <mailto:u@example.com?subject=x>"
			e.Attachments = []Attachment{file, {Name: "empty.txt"}, {Name: "レポート.pdf", ContentType: "text/plain; charset=utf-8"}}
		}, nil},
		{"no recipient", func(e *Email) { e.To = "" }, []string{"to"}},
		{"two recipients", func(e *Email) { e.To = "a@example.com, b@example.com" }, []string{"to"}},
		{"sender", func(e *Email) { e.From = "x" }, []string{"from"}},
		{"reply to", func(e *Email) { e.ReplyTo = "x@" }, []string{"reply_to"}},
		{"all at once", func(e *Email) { *e = Email{Class: "vip"} }, []string{"to", "body", "subject", "class"}},
		{"template and body", func(e *Email) { e.Template = "welcome" }, []string{"template"}},
		{"neither", func(e *Email) { e.Body = "" }, []string{"body"}},
		{"blank subject", func(e *Email) { e.Subject = " " }, []string{"subject"}},
		{"subject line break", func(e *Email) { e.Subject = "a\r\nBcc: b@example.com" }, []string{"subject"}},
		{"subject 998", func(e *Email) { e.Subject = strings.Repeat("abc ", 249) + "ab" }, nil},
		{"subject without spaces", func(e *Email) { e.Subject = strings.Repeat("語", 332) }, nil},
		{"subject long word", func(e *Email) { e.Subject = strings.Repeat("a", 901) }, []string{"subject"}},
		{"headers large", func(e *Email) {
			e.Headers = map[string]string{}
			for i := range 20 {
				e.Headers[fmt.Sprint("X-", i)] = strings.Repeat("a", 890)
			}
		}, []string{"headers"}},
		{"subject 999", func(e *Email) { e.Subject = strings.Repeat("a", 999) }, []string{"subject"}},
		{"subject not UTF-8", func(e *Email) { e.Subject = "\xff" }, []string{"subject"}},
		{"body not UTF-8", func(e *Email) { e.Body, e.HTML = "\xff", "\xff" }, []string{"body", "html"}},
		{"template path", func(e *Email) { e.Body, e.Template = "", "../secret" }, []string{"template"}},
		{"template control", func(e *Email) { e.Body, e.Template = "", "welcome\n" }, []string{"template"}},
		{"locale", func(e *Email) { e.Locale = "de_DE\n" }, []string{"locale"}},
		{"locale long", func(e *Email) { e.Locale = "de" + strings.Repeat("-abc", 9) }, []string{"locale"}},
		{"attachment no name", func(e *Email) { e.Attachments = []Attachment{{Content: []byte("x")}} }, []string{"attachments[0].name"}},
		{"attachment path", func(e *Email) { e.Attachments = []Attachment{file, {Name: "../x"}, {Name: `c:\x`}, {Name: ".."}} }, []string{"attachments[1].name", "attachments[2].name", "attachments[3].name"}},
		{"attachment control", func(e *Email) {
			e.Attachments = []Attachment{{Name: "a\nb", ContentType: "text/plain\r\nX: y"}}
		}, []string{"attachments[0].name", "attachments[0].content_type", "attachments[0].content_type"}},
		{"attachment type", func(e *Email) {
			e.Attachments = []Attachment{{Name: "a", ContentType: "pdf"}, {Name: "a", ContentType: "multipart/mixed"}, {Name: "a", ContentType: "message/rfc822"}}
		}, []string{"attachments[0].content_type", "attachments[1].content_type", "attachments[2].content_type"}},
		{"attachments 10 MiB", func(e *Email) {
			e.Attachments = []Attachment{{Name: "a", Content: make([]byte, MaxAttachmentBytes-1)}, {Name: "b", Content: []byte("x")}}
		}, nil},
		{"attachments over 10 MiB", func(e *Email) {
			e.Attachments = []Attachment{{Name: "a", Content: make([]byte, MaxAttachmentBytes)}, {Name: "b", Content: []byte("x")}}
		}, []string{"attachments"}},
		{"attachments many", func(e *Email) { e.Attachments = slices.Repeat([]Attachment{file}, 11) }, []string{"attachments"}},
		{"job over 1 MiB", func(e *Email) { e.Body = strings.Repeat("a", MaxPayloadBytes) }, []string{"email"}},
		{"data not JSON", func(e *Email) { e.Data = map[string]any{canary: math.NaN()} }, []string{"data"}},
		{"headers", func(e *Email) {
			e.Headers = map[string]string{"X-A": "a\nb", "Bcc": "x", "X:B": "x", "x-c": "1", "X-C": "2", "X-D": strings.Repeat("a", 999)}
		}, []string{"headers.Bcc", "headers.X-A", "headers.X-D", "headers", "headers.x-c"}},
		{"headers many", func(e *Email) {
			e.Headers = map[string]string{}
			for i := range 33 {
				e.Headers[fmt.Sprint("X-", i)] = "x"
			}
		}, []string{"headers"}},
		{"tags", func(e *Email) { e.Tags = []string{"a", "", "b\n", strings.Repeat("a", 65)} }, []string{"tags[1]", "tags[2]", "tags[3]"}},
		{"tags many", func(e *Email) { e.Tags = slices.Repeat([]string{"a"}, 9) }, []string{"tags"}},
		{"newer version", func(e *Email) { e.V = Version + 1 }, []string{"v"}},
		{"bulk without unsubscribe", func(e *Email) { e.Class = ClassBulk }, []string{"list_unsubscribe"}},
		{"otp with unsubscribe", func(e *Email) { e.Class, e.ListUnsubscribe = ClassOTP, "https://example.com/u" }, []string{"list_unsubscribe"}},
		{"clinical with unsubscribe", func(e *Email) { e.Class, e.ListUnsubscribe = ClassClinical, "https://example.com/u" }, []string{"list_unsubscribe"}},
		{"transactional with unsubscribe", func(e *Email) { e.ListUnsubscribe = "mailto:u@example.com" }, nil},
	}
	for _, list := range []string{
		"http://example.com/u", "https://", "https:example.com", "https://user:pw@example.com/", "ftp://example.com",
		"<https://example.com/a>, <https://example.com/b>", "https://example.com/a, mailto:u@example.com", "<https://example.com/u>,", "<https://example.com/u", "https://example.com/u>",
		"<>", "<https://example.com/u>, <>", "https://example.com/{id}", "https://example.com/ü", "mailto:u@example.com?subject=a%0D%0Ab", "https://example.com/" + strings.Repeat("a", 800), "mailto:", "mailto:nobody", "https://example.com/\r\nX: y", "mailto:Ada <a@example.com>", "::",
	} {
		tests = append(tests, struct {
			name   string
			change func(*Email)
			want   []string
		}{"unsubscribe " + list, func(e *Email) { e.ListUnsubscribe = list }, []string{"list_unsubscribe"}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := message()
			tt.change(&e)
			err := e.Validate()
			if got := slices.Compact(fields(err)); !slices.Equal(got, slices.Compact(slices.Clone(tt.want))) {
				t.Errorf("Validate() complains about %q, want %q: %v", got, tt.want, err)
			}
			if err == nil {
				mustBuild(t, e)
			}
		})
	}
}

func TestEmail_ValidateKeepsAttachments(t *testing.T) {
	t.Parallel()
	e := message()
	e.Attachments = []Attachment{{Name: "a.txt", Content: []byte("a")}, {Name: "b.txt", Content: []byte("b")}}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	if string(e.Attachments[0].Content)+string(e.Attachments[1].Content) != "ab" {
		t.Error("Validate changed the attachments of its caller")
	}
}

// Every value is about a patient or may be: no text of an error repeats one.
func TestEmail_ValidateTellsNoValue(t *testing.T) {
	t.Parallel()
	bad := canary + "\n"
	e := Email{
		To: bad, From: bad, ReplyTo: bad, Subject: bad, Body: canary, Template: bad, Locale: bad, Tags: []string{bad}, Class: Class(bad),
		Headers: map[string]string{bad: "x", "X-A": bad, canary + "@example.com": "x"}, ListUnsubscribe: bad,
		Attachments: []Attachment{{Name: bad, ContentType: bad}}, Data: map[string]any{canary: func() {}},
	}
	for _, err := range []error{e.Validate(), func() error { _, err := e.encode(); return err }()} {
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("error repeats a value, or is none: %v", err)
		}
	}
}

func TestHeaderAllowed(t *testing.T) {
	t.Parallel()
	allowed := []string{"X-Clinic", "x-clinic", "References", "in-reply-to", "Importance", "Priority", "Feedback-ID", "List-Id", "LIST-ID", "Organization", "Keywords", "Comments", "X-Priority"}
	refused := []string{
		"From", "from", "To", "Cc", "Bcc", "bCC", "Subject", "Date", "Message-ID", "message-id", "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
		"DKIM-Signature", "Received", "Return-Path", "Sender", "Reply-To", "Auto-Submitted", "List-Unsubscribe", "List-Unsubscribe-Post", "Resent-To", "Resent-Bcc",
		"Apparently-To", "Disposition-Notification-To", "Errors-To", "Precedence", "X-", "x-smtpapi", "X-MC-BccAddress", "X-MSYS-API", "X-Mailgun-Recipient-Variables",
		"X-Auto-Response-Suppress", "X-Mailer", "X-" + strings.Repeat("a", 63), "", " X-A", "X-A ", "X_A", "X-A:", "X-Ä", "X-A\r\nBcc",
	}
	check := func(name string) []string {
		var p problems
		p.headers(map[string]string{name: "value"})
		return fields(errors.Join(p...))
	}
	for _, name := range allowed {
		if got := check(name); got != nil {
			t.Errorf("%q is refused: %q", name, got)
		}
	}
	for _, name := range refused {
		if check(name) == nil {
			t.Errorf("%q is allowed", name)
		}
	}
}

// Whatever is accepted is one line with one of the allowed names.
func FuzzHeader(f *testing.F) {
	f.Add("X-Clinic", "North")
	f.Add("X-Clinic", "North\r\nBcc: spy@example.net")
	f.Add("Bcc", "spy@example.net")
	f.Add("X-A\r\nBcc", "x")
	f.Add("References", "<a@example.com>\n <b@example.com>")
	f.Add("ﬀ-X", "\u2028")
	f.Fuzz(func(t *testing.T, name, value string) {
		e := message()
		e.Headers = map[string]string{name: value}
		e.Subject, e.Tags = value, []string{value}
		bad := fields(e.Validate())
		line := name + ": " + value
		if !slices.ContainsFunc(bad, func(field string) bool { return strings.HasPrefix(field, "headers") }) {
			if bytes.ContainsAny([]byte(line), "\r\n\x00") || strings.ContainsFunc(line, isControl) {
				t.Errorf("accepted the header %q", line)
			}
			lower := strings.ToLower(name)
			if !strings.HasPrefix(lower, "x-") && !slices.Contains([]string{"comments", "feedback-id", "importance", "in-reply-to", "keywords", "list-id", "organization", "priority", "references"}, lower) {
				t.Errorf("accepted the header name %q", name)
			}
		}
		if len(bad) == 0 {
			mustBuild(t, e)
		}
		for _, field := range []string{"subject", "tags[0]"} {
			if !slices.Contains(bad, field) && strings.ContainsFunc(value, isControl) {
				t.Errorf("accepted %q as %s", value, field)
			}
		}
	})
}

func TestEmail_ValidateOrder(t *testing.T) {
	t.Parallel()
	e := message()
	e.Headers = map[string]string{}
	for _, name := range []string{"Zeta", "Alpha", "Mid", "Beta", "Omega"} {
		e.Headers[name] = "x"
	}
	first := e.Validate().Error()
	for range 20 {
		e.Headers = maps.Clone(e.Headers)
		if again := e.Validate().Error(); again != first {
			t.Fatalf("the same message gives different texts:\n%s\n%s", first, again)
		}
	}
}
