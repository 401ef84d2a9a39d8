package tasks

import (
	"errors"
	"fmt"
	"mime"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	idName    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	localeTag = regexp.MustCompile(`^[A-Za-z]{2,8}([_-][A-Za-z0-9]{1,8})*$`)
	// What stands between two URLs in angle brackets, and a line break in one.
	angleSeparator = regexp.MustCompile(`> *, *<`)
	escapedBreak   = regexp.MustCompile(`(?i)%0[ad]`)
)

// A ValidationError says what is wrong with one field of a job or one option.
// Its text never holds the value, which may be about a patient.
type ValidationError struct {
	// Field is the name in the payload, such as to or attachments[0].name, or
	// of the option, such as max_retry.
	Field string
	// Problem says what is wrong and what is accepted.
	Problem string
}

// Error returns field and problem.
func (e *ValidationError) Error() string { return e.Field + ": " + e.Problem }

// Permanent reports true: the same job would be refused again.
func (e *ValidationError) Permanent() bool { return true }

// problems collects what is wrong with a job.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, &ValidationError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

// Validate reports everything that is wrong with e, as *ValidationError values
// joined into one error. A producer refuses what a worker would refuse; what
// only a worker can know (whether a template exists and its data fits) is not
// checked here.
func (e Email) Validate() error {
	if err := e.check(); err != nil {
		return err
	}
	for i, a := range e.Attachments {
		if i == 0 {
			e.Attachments = slices.Clone(e.Attachments)
		}
		a.Content = nil
		e.Attachments[i] = a
	}
	_, err := e.encode()
	return err
}

// check is Validate without the checks that need the encoded job.
func (e Email) check() error {
	var p problems
	p.address("to", e.To)
	if e.From != "" {
		p.address("from", e.From)
	}
	if e.ReplyTo != "" {
		p.address("reply_to", e.ReplyTo)
	}
	p.content(e)
	p.attachments(e.Attachments)
	p.headers(e.Headers)
	p.unsubscribe(e)
	p.tags(e.Tags)
	p.class(e.Class)
	p.version(e.V)
	return errors.Join(p...)
}

func (p *problems) tags(tags []string) {
	if len(tags) > MaxTags {
		p.add("tags", "has %d, the limit is %d", len(tags), MaxTags)
	}
	for i, tag := range tags {
		field := fmt.Sprintf("tags[%d]", i)
		if strings.TrimSpace(tag) == "" {
			p.add(field, "is empty")
		}
		p.headerText(field, tag, 64)
	}
}

func (p *problems) class(c Class) {
	if !c.known() {
		p.add("class", "must be %s, %s, %s or %s", ClassOTP, ClassClinical, ClassTransactional, ClassBulk)
	}
}

func (p *problems) version(v int) {
	if v < 0 || v > Version {
		p.add("v", "must be left out, or at most %d", Version)
	}
}

func (p *problems) content(e Email) {
	switch hasText := e.Body != "" || e.HTML != ""; {
	case e.Template != "" && hasText:
		p.add("template", "cannot be combined with body or html: give one or the other")
	case e.Template == "" && !hasText:
		p.add("body", "is missing: give a template, or a body or html")
	}
	if e.Template == "" {
		if strings.TrimSpace(e.Subject) == "" {
			p.add("subject", "is required without a template")
		}
	} else {
		p.id("template", e.Template)
	}
	p.headerText("subject", e.Subject, 998)
	p.locale(e.Locale)
	if !utf8.ValidString(e.Body) {
		p.add("body", "is not valid UTF-8")
	}
	if !utf8.ValidString(e.HTML) {
		p.add("html", "is not valid UTF-8")
	}
}

// id checks the name of something that the workers have.
func (p *problems) id(field, name string) {
	if !idName.MatchString(name) {
		p.add(field, "must be lower-case letters, digits, - and _, at most 64, and begin with a letter or digit")
	}
}

func (p *problems) locale(tag string) {
	if tag != "" && (len(tag) > 35 || !localeTag.MatchString(tag)) {
		p.add("locale", "must be a language tag such as en or pt-BR, at most 35 characters")
	}
}

func (p *problems) attachments(attachments []Attachment) {
	if len(attachments) > MaxAttachments {
		p.add("attachments", "has %d files, the limit is %d", len(attachments), MaxAttachments)
	}
	total := 0
	for i, a := range attachments {
		total += len(a.Content)
		name := fmt.Sprintf("attachments[%d].name", i)
		switch {
		case strings.TrimSpace(a.Name) == "":
			p.add(name, "is required")
		case strings.ContainsAny(a.Name, `/\`), a.Name == ".", a.Name == "..":
			p.add(name, "must be a file name without a directory")
		}
		p.headerText(name, a.Name, 255)
		if a.ContentType == "" {
			continue
		}
		contentType := fmt.Sprintf("attachments[%d].content_type", i)
		p.headerText(contentType, a.ContentType, 255)
		media, _, err := mime.ParseMediaType(a.ContentType)
		switch {
		case err != nil || !strings.Contains(media, "/"):
			p.add(contentType, "must be a media type such as application/pdf")
		case strings.HasPrefix(media, "multipart/"), strings.HasPrefix(media, "message/"):
			p.add(contentType, "must not be multipart or message: attach the file itself")
		}
	}
	if total > MaxAttachmentBytes {
		p.add("attachments", "have %d bytes together, the limit is %d", total, MaxAttachmentBytes)
	}
}

func (p *problems) unsubscribe(e Email) {
	const field = "list_unsubscribe"
	if e.ListUnsubscribe == "" {
		if e.Class.policy().Unsubscribe == UnsubscribeRequired {
			p.add(field, "is required for class %s", e.Class)
		}
		return
	}
	if e.Class.policy().Unsubscribe == UnsubscribeRefused {
		p.add(field, "is refused for class %s: nobody can unsubscribe from it", e.Class)
	}
	p.headerText(field, e.ListUnsubscribe, 998)
	items := []string{e.ListUnsubscribe}
	if n := len(e.ListUnsubscribe); n > 1 && e.ListUnsubscribe[0] == '<' && e.ListUnsubscribe[n-1] == '>' {
		items = angleSeparator.Split(e.ListUnsubscribe[1:n-1], -1)
	}
	seen := map[string]bool{}
	for _, item := range items {
		u, err := url.Parse(item)
		valid := err == nil && !strings.ContainsFunc(item, isUnescaped) &&
			!seen[u.Scheme] && len(item) <= 800 &&
			(u.Scheme == "https" && plausibleHost(u.Hostname()) && u.User == nil ||
				u.Scheme == "mailto" && addressProblem(u.Opaque) == "" && !escapedBreak.MatchString(item))
		if !valid {
			p.add(field, "must be one https URL or one mailto URL, or both as <https://…>, <mailto:…>, with special characters percent-escaped")
			return
		}
		seen[u.Scheme] = true
	}
}

// isUnescaped reports the characters that RFC 3986 leaves out of a URL: they must be
// escaped.
func isUnescaped(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune("<>\"\\^`{|}", r)
}

// maxWord bounds a word of an ASCII header: lines have at most 998 octets (RFC
// 5322 §2.1.1) and are folded between words.
const maxWord = 900

// headerText checks a value that ends in a header: valid UTF-8 of at most limit
// octets in which no character can end the line.
func (p *problems) headerText(field, value string, limit int) {
	if len(value) <= min(limit, maxWord) && isPlain(value) {
		return // the usual case, in one pass
	}
	switch {
	case !utf8.ValidString(value):
		p.add(field, "is not valid UTF-8")
	case strings.ContainsFunc(value, isControl):
		p.add(field, "must not contain control characters or line breaks")
	}
	isASCII := !strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII })
	for word := range strings.SplitSeq(value, " ") {
		if isASCII && len(word) > maxWord && len(value) <= limit {
			p.add(field, "has a word of more than %d characters", maxWord)
		}
	}
	if len(value) > limit {
		p.add(field, "has %d bytes, the limit is %d", len(value), limit)
	}
}

// isPlain reports whether s consists of printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// isControl reports control characters (C0, DEL, C1) and the two separators of
// Unicode that some software treats as the end of a line.
func isControl(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
}
