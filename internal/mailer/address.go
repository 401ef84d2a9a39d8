package mailer

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321 §4.5.3.1.
const (
	maxLocalPart = 64
	maxAddress   = 254
)

// parseAddress reads one address with an optional name, checks it and turns an
// international domain into its ASCII form, in which SMTP without SMTPUTF8 can
// carry it. The error never holds the value.
func parseAddress(field, s string) (*mail.Address, error) {
	if hasControl(s) {
		return nil, problem(field + " holds a control character or invalid UTF-8")
	}
	a, err := mail.ParseAddress(s)
	if err != nil || strings.HasSuffix(strings.TrimSpace(s), ";") { // a group of one
		return nil, problem(field + " is not a single email address")
	}
	// An encoded word in the name may decode to anything.
	if hasControl(a.Name) || strings.Contains(a.Name, "=?") {
		return nil, problem(field + " has a name with a control character or a nested encoded word")
	}
	a.Name = squeeze(a.Name)
	at := strings.LastIndexByte(a.Address, '@')
	local, domain := a.Address[:max(at, 0)], a.Address[at+1:]
	if !isASCII(domain) {
		if domain, err = idna.Lookup.ToASCII(domain); err != nil {
			return nil, problem(field + " has an invalid international domain")
		}
		a.Address = local + "@" + domain
	}
	switch {
	case local == "" || hasControl(local):
		return nil, problem(field + " has an invalid local part")
	case len(local) > maxLocalPart || len(a.Address) > maxAddress:
		return nil, problem(field + " is longer than an SMTP address may be")
	case !validDomain(domain):
		return nil, problem(field + " has an invalid domain")
	}
	return a, nil
}

// bareAddress gives the address as it stands between the brackets of MAIL and
// RCPT, its local part quoted where it must be.
func bareAddress(a *mail.Address) string {
	if plainAddress(a.Address) {
		return a.Address
	}
	s := (&mail.Address{Address: a.Address}).String()
	return strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
}

// plainAddress reports whether an address needs no quoting: one @, and
// otherwise only atext, dots and non-ASCII letters.
func plainAddress(s string) bool {
	at := 0
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= utf8.RuneSelf:
		case c == '@':
			at++
		case strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) >= 0:
		default:
			return false
		}
	}
	return at == 1 && s[0] != '@' && s[len(s)-1] != '@' && s[0] != '.' && !strings.Contains(s, "..") && !strings.Contains(s, ".@")
}

// validPath reports whether an envelope address can stand in an SMTP command
// as it is. The null reverse-path is valid.
func validPath(s string) bool {
	if s == "" || plainAddress(s) {
		return !hasControl(s)
	}
	a, err := mail.ParseAddress("<" + s + ">")
	return err == nil && !hasControl(s) && !hasControl(a.Address) && bareAddress(a) == s
}

// validDomain accepts names of up to 255 octets whose labels are letters,
// digits, hyphens and underscores. Address literals are not accepted.
func validDomain(d string) bool {
	if d == "" || len(d) > 255 {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// hasControl reports whether s holds a control character (C0, DEL, C1), a
// Unicode line separator or invalid UTF-8.
func hasControl(s string) bool {
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c < 0x20 || c == 0x7f {
				return true
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if (r == utf8.RuneError && n == 1) || unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return true
		}
		i += n
	}
	return false
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// squeeze trims s and reduces runs of spaces to one. Folding a header inside a
// run of spaces would leave a line of nothing but white space, which some
// parsers take for the end of the header.
func squeeze(s string) string {
	if !strings.Contains(s, "  ") && !strings.HasPrefix(s, " ") && !strings.HasSuffix(s, " ") {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for part := range strings.SplitSeq(s, " ") {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(part)
	}
	return b.String()
}
