package mailer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"mime"
	"net/mail"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"
)

// Message is an email as the worker knows it.
type Message struct {
	// ID becomes the Message-ID <ID@domain of From>. Required: the job's id, so
	// that copies of one message can be told to be one.
	ID string
	// Date is when the job was enqueued. Required for the same reason.
	Date time.Time
	// From, To and ReplyTo are single addresses (RFC 5322), with an optional
	// name. ReplyTo may be empty.
	From, To, ReplyTo string
	Subject           string
	// Text and HTML are the alternative bodies, at least one of them.
	Text, HTML string
	// Headers are further header fields. Structural fields and those this
	// package sets itself are refused.
	Headers map[string]string
	// ListUnsubscribe is an https or mailto URI, or several in angle brackets
	// separated by commas (RFC 2369). An https URI adds one-click
	// unsubscription (RFC 8058).
	ListUnsubscribe string
	// Bulk adds Precedence: bulk.
	Bulk        bool
	Attachments []Attachment
}

// Attachment is a file sent along.
type Attachment struct {
	Name        string
	ContentType string // default application/octet-stream
	Content     []byte
}

// Envelope is a finished message and where it goes.
type Envelope struct {
	From string // reverse-path, without brackets; "" is the null path
	To   string // forward-path, without brackets
	Raw  []byte // the whole message, with CRLF line ends
}

const (
	// A line must stay below 998 octets (RFC 5322 §2.1.1); header text is folded
	// at spaces only, so a longer word cannot be carried.
	maxHeaderWord = 900
	// All header fields of one message together, before encoding.
	maxHeaderText = 16 << 10
	maxFileName   = 255
)

// Build renders a message completely, signed if DKIM is configured. The same
// message gives the same bytes, except for the time in a DKIM signature. The
// error is a permanent [*Error]: what cannot be built now never can.
//
// Every value with a control character and every unsafe header name is
// refused, whether or not the producer has checked it.
func (m *Mailer) Build(msg Message) (Envelope, error) {
	env, err := build(&msg)
	if err == nil && m.dkim != nil {
		env.Raw, err = m.dkim.sign(env.Raw)
	}
	if err != nil {
		return Envelope{}, &Error{Phase: PhaseBuild, Reason: ReasonInvalidMessage, Err: err}
	}
	return env, nil
}

func build(msg *Message) (Envelope, error) {
	from, err := parseAddress("From", msg.From)
	if err != nil {
		return Envelope{}, err
	}
	to, err := parseAddress("To", msg.To)
	if err != nil {
		return Envelope{}, err
	}
	switch {
	case msg.ID == "":
		return Envelope{}, problem("message has no ID")
	case msg.Date.IsZero():
		return Envelope{}, problem("message has no date")
	case msg.Text == "" && msg.HTML == "":
		return Envelope{}, problem("message has neither a text nor an HTML body")
	}

	gm := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	gm.FromMailAddress(from)
	gm.ToMailAddress(to)
	if msg.ReplyTo != "" {
		replyTo, err := parseAddress("Reply-To", msg.ReplyTo)
		if err != nil {
			return Envelope{}, err
		}
		gm.ReplyToMailAddress(replyTo)
	}
	subject, err := headerText("Subject", msg.Subject)
	if err != nil {
		return Envelope{}, err
	}
	gm.SetGenHeader(gomail.HeaderSubject, subject)
	gm.SetGenHeader(gomail.HeaderMessageID, messageID(msg.ID, from))
	gm.SetDateWithValue(msg.Date.UTC())
	gm.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834
	// Not "All": that would suppress non-delivery reports too (MS-OXCMAIL).
	gm.SetGenHeader(gomail.HeaderXAutoResponseSuppress, "OOF, AutoReply")
	if msg.Bulk {
		gm.SetGenHeader(gomail.HeaderPrecedence, "bulk")
	}
	if msg.ListUnsubscribe != "" {
		value, oneClick, err := listUnsubscribe(msg.ListUnsubscribe)
		if err != nil {
			return Envelope{}, err
		}
		gm.SetGenHeader(gomail.HeaderListUnsubscribe, value)
		if oneClick {
			gm.SetGenHeader(gomail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
		}
	}
	if err := setHeaders(gm, msg.Headers); err != nil {
		return Envelope{}, err
	}
	size, err := setBodies(gm, msg)
	if err != nil {
		return Envelope{}, err
	}

	var out bytes.Buffer
	out.Grow(size)
	if _, err := gm.WriteTo(&out); err != nil {
		return Envelope{}, problem("message cannot be rendered")
	}
	raw := out.Bytes()
	stabilise(raw, msg.ID)
	return Envelope{From: bareAddress(from), To: bareAddress(to), Raw: raw}, nil
}

// setBodies adds the alternative bodies and the attachments and estimates the
// size of the result.
func setBodies(gm *gomail.Msg, msg *Message) (size int, err error) {
	text, html := validUTF8(msg.Text), validUTF8(msg.HTML)
	switch {
	case html == "":
		gm.SetBodyString(gomail.TypeTextPlain, text)
	case text == "":
		gm.SetBodyString(gomail.TypeTextHTML, html)
	default:
		gm.SetBodyString(gomail.TypeTextPlain, text)
		gm.AddAlternativeString(gomail.TypeTextHTML, html)
	}
	size = 2048 + (len(text)+len(html))*9/8
	for i := range msg.Attachments {
		a := &msg.Attachments[i]
		header, err := attachmentHeader(a)
		if err != nil {
			return 0, err
		}
		gm.AttachReadSeeker(a.Name, bytes.NewReader(a.Content), func(f *gomail.File) { f.Header = header })
		size += 512 + len(a.Content)*7/5
	}
	return size, nil
}

// validUTF8 replaces what is not UTF-8: the parts are declared to be.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// attachmentHeader makes a file's header fields. go-mail's own would put an
// encoded word into a quoted string and the content type in unchecked.
func attachmentHeader(a *Attachment) (map[string][]string, error) {
	switch {
	case a.Name == "" || len(a.Name) > maxFileName || hasControl(a.Name):
		return nil, problem("attachment has no name, a name that is too long, or one with a control character")
	case strings.ContainsAny(a.Name, `/\`):
		return nil, problem("attachment has a path in its name")
	}
	ctype := a.ContentType
	if ctype == "" {
		ctype = "application/octet-stream"
	}
	if hasControl(ctype) || len(ctype) > maxFileName {
		return nil, problem("attachment has an invalid content type")
	}
	mediatype, params, err := mime.ParseMediaType(ctype)
	if err != nil || !strings.Contains(mediatype, "/") {
		return nil, problem("attachment has an invalid content type")
	}
	// RFC 2046 forbids base64 for these, and a file must not become structure.
	if strings.HasPrefix(mediatype, "multipart/") || strings.HasPrefix(mediatype, "message/") {
		mediatype, params = "application/octet-stream", nil
	}
	ctype = mime.FormatMediaType(mediatype, params)
	// RFC 2231 for names that are not ASCII.
	disposition := mime.FormatMediaType("attachment", map[string]string{"filename": a.Name})
	if ctype == "" || disposition == "" || len(ctype) > maxHeaderWord || len(disposition) > maxHeaderWord {
		return nil, problem("attachment has an invalid content type or name")
	}
	return map[string][]string{
		"Content-Type":              {ctype},
		"Content-Disposition":       {disposition},
		"Content-Transfer-Encoding": {"base64"},
	}, nil
}

// messageID makes <id@domain>. An id that is no dot-atom is hashed.
func messageID(id string, from *mail.Address) string {
	safe := len(id) <= 128 && !strings.Contains(id, "..") && id[0] != '.' && id[len(id)-1] != '.'
	for i := range len(id) {
		c := id[i]
		safe = safe && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !safe {
		sum := sha256.Sum256([]byte(id))
		id = hex.EncodeToString(sum[:16])
	}
	return "<" + id + from.Address[strings.LastIndexByte(from.Address, '@'):] + ">"
}

// reserved are fields with a meaning to the structure, the transport or the
// identity of a message; nobody sets them through [Message.Headers].
var reserved = map[string]bool{
	"from": true, "to": true, "cc": true, "bcc": true, "sender": true, "reply-to": true, "subject": true, "date": true,
	"message-id": true, "mime-version": true, "received": true, "return-path": true, "dkim-signature": true,
	"domainkey-signature": true, "authentication-results": true, "auto-submitted": true, "x-auto-response-suppress": true,
	"precedence": true, "list-unsubscribe": true, "list-unsubscribe-post": true, "user-agent": true, "x-mailer": true,
	"delivered-to": true, "apparently-to": true, "errors-to": true, "return-receipt-to": true,
	"disposition-notification-to": true,
}

func reservedHeader(name string) bool {
	name = strings.ToLower(name)
	return reserved[name] || strings.HasPrefix(name, "content-") || strings.HasPrefix(name, "resent-") ||
		strings.HasPrefix(name, "arc-") || strings.HasPrefix(name, "received-")
}

func validHeaderName(name string) bool {
	if name == "" || len(name) > 64 || !isLetter(name[0]) {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !isLetter(c) && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func setHeaders(gm *gomail.Msg, headers map[string]string) error {
	total := 0
	seen := make(map[string]bool, len(headers))
	for name, value := range headers {
		lower := strings.ToLower(name)
		switch {
		case !validHeaderName(name):
			return problem("header has an invalid name; want a letter, then letters, digits and hyphens")
		case reservedHeader(name):
			return problem("header " + name + " may not be set")
		case seen[lower]:
			return problem("header " + name + " is given twice")
		}
		seen[lower] = true
		value, err := headerText("header "+name, value)
		if err != nil {
			return err
		}
		if total += len(name) + len(value); total > maxHeaderText {
			return problem("headers are longer than 16 KiB together")
		}
		gm.SetGenHeader(gomail.Header(name), value)
	}
	return nil
}

// headerText checks a value and encodes it (RFC 2047) where it must be.
func headerText(field, value string) (string, error) {
	if hasControl(value) {
		return "", problem(field + " holds a control character or invalid UTF-8")
	}
	if len(value) > maxHeaderText {
		return "", problem(field + " is too long")
	}
	value = squeeze(value)
	if !isASCII(value) {
		return mime.QEncoding.Encode("UTF-8", value), nil
	}
	for word := range strings.SplitSeq(value, " ") {
		if len(word) > maxHeaderWord {
			return "", problem(field + " holds a word of more than 900 characters, which cannot be folded")
		}
	}
	if strings.Contains(value, "=?") {
		// Plain text that looks like an encoded word would be decoded by the
		// reader; encoding it makes it arrive as written.
		return encodeASCII(value), nil
	}
	return value, nil
}

// encodeASCII writes ASCII text as encoded words of at most 75 characters
// (RFC 2047 §2), which mime.WordEncoder leaves as it is.
func encodeASCII(s string) string {
	const perWord = 20 // 3 characters each
	var b strings.Builder
	for i := range len(s) {
		if i%perWord == 0 {
			if i > 0 {
				b.WriteString("?= ")
			}
			b.WriteString("=?UTF-8?q?")
		}
		const hexDigits = "0123456789ABCDEF"
		if c := s[i]; isLetter(c) || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	b.WriteString("?=")
	return b.String()
}

// listUnsubscribe checks the URIs and writes them as RFC 2369 wants them.
// go-mail writes them unchecked, so that a line break in one becomes a header.
func listUnsubscribe(s string) (value string, oneClick bool, err error) {
	const want = "ListUnsubscribe is invalid; want an https or mailto URI, several as <https://…>, <mailto:…>"
	s = strings.TrimSpace(s)
	var uris []string
	if strings.HasPrefix(s, "<") {
		for rest := s; rest != ""; {
			uri, after, ok := strings.Cut(strings.TrimPrefix(rest, "<"), ">")
			if !ok || rest[0] != '<' {
				return "", false, problem(want)
			}
			uris = append(uris, uri)
			after = strings.TrimSpace(after)
			if after == "" {
				break
			}
			if rest, ok = strings.CutPrefix(after, ","); !ok {
				return "", false, problem(want)
			}
			rest = strings.TrimSpace(rest)
		}
	} else {
		uris = []string{s}
	}
	for i, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil || len(uri) > maxHeaderWord-8 {
			return "", false, problem(want)
		}
		lower := strings.ToLower(uri)
		switch {
		case u.Scheme == "https" && u.Host != "" && u.User == nil:
			oneClick = true
		case u.Scheme == "mailto" && strings.Contains(u.Opaque, "@") && !strings.Contains(lower, "%0d") && !strings.Contains(lower, "%0a"):
		default:
			return "", false, problem(want)
		}
		for j := range len(uri) {
			if c := uri[j]; c <= ' ' || c >= 0x7f || strings.IndexByte("<>\"\\^`{|}", c) >= 0 {
				return "", false, problem(want + ", with special characters percent-escaped")
			}
		}
		uris[i] = "<" + strings.ReplaceAll(uri, ",", "%2C") + ">"
	}
	value = strings.Join(uris, ", ")
	if len(uris) > 8 || value == "" {
		return "", false, problem(want)
	}
	return value, oneClick, nil
}

// stabilise replaces the random multipart boundaries in a rendered message by
// ones derived from its id, in place. go-mail's SetBoundary would give nested
// multiparts the same boundary, which hides the attachments.
func stabilise(raw []byte, id string) {
	const (
		field = "Content-Type: multipart/"
		param = ";\r\n boundary="
		size  = 60 // of mime/multipart's random boundaries
	)
	at := 0
	for level := range 2 { // mixed, alternative
		// The first one starts a line of the header, where no value can; the
		// second one can only be the first line of the first part.
		if level == 0 {
			i := bytes.Index(raw, []byte("\r\n"+field))
			end := bytes.Index(raw, []byte("\r\n\r\n"))
			if i < 0 || i > end {
				return
			}
			at = i + 2
		} else if !bytes.HasPrefix(raw[at:], []byte(field)) {
			return
		}
		i := bytes.Index(raw[at:], []byte(param))
		if i < 0 {
			return
		}
		start := at + i + len(param)
		if start+size > len(raw) {
			return
		}
		random := bytes.Clone(raw[start : start+size])
		stable := boundary(raw, id, level)
		end := bytes.Index(raw, []byte("\r\n--"))
		for pos := start; ; {
			copy(raw[pos:], stable)
			j := bytes.Index(raw[pos:], random)
			if j < 0 {
				break
			}
			pos += j
		}
		if level == 0 {
			at = end + len("\r\n--") + size + len("\r\n")
			if end < 0 || at > len(raw) {
				return
			}
		}
	}
}

// boundary derives a boundary that does not occur in the message yet.
func boundary(raw []byte, id string, level int) []byte {
	for n := 0; ; n++ {
		sum := sha256.Sum256([]byte("boundary " + strconv.Itoa(level) + " " + strconv.Itoa(n) + " " + id))
		b := hex.AppendEncode(nil, sum[:])[:60]
		if !bytes.Contains(raw, b) {
			return b
		}
	}
}
