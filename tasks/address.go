package tasks

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of an address: a path has at most 256 octets with its angle brackets
// (RFC 5321 §4.5.3.1.3), a local part 64 (§4.5.3.1.1), a domain 255 and each of
// its labels 63 (RFC 1035 §2.3.4).
const (
	maxAddress = 254
	maxLocal   = 64
	maxLabel   = 63
	maxName    = 128 // characters
)

func (p *problems) address(field, text string) {
	if problem := addressProblem(text); problem != "" {
		p.add(field, "%s", problem)
	}
}

// addressProblem says what keeps text from being one address with an optional
// display name, or returns "". It is stricter than net/mail, which also takes
// comments, groups, quoted local parts and address literals: each of them has
// been used to make two programs read one text as two addresses.
func addressProblem(text string) string {
	switch {
	case strings.TrimSpace(text) == "":
		return "is required"
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	case strings.ContainsFunc(text, isControl):
		return "must not contain control characters or line breaks"
	}
	spec := strings.TrimSpace(text)
	if strings.HasSuffix(spec, ">") {
		spec = spec[strings.LastIndexByte(spec, '<')+1 : len(spec)-1]
	}
	// The length of the bare address is checked first, so that a long text is
	// reported as such and not as bad syntax.
	if len(spec) > maxAddress {
		return "has an address of more than 254 octets"
	}
	local, domain, found := strings.Cut(spec, "@")
	if !found || local == "" || domain == "" {
		return "must be one address such as ada@example.com or Ada Lovelace <ada@example.com>"
	}
	switch {
	case len(local) > maxLocal:
		return "has more than 64 octets before the @"
	case strings.ContainsFunc(local, func(r rune) bool { return r > unicode.MaxASCII }):
		// SMTPUTF8 (RFC 6531) would be needed at every hop.
		return "has characters before the @ that are not ASCII"
	case !plausibleHost(domain):
		return "must have a domain name after the @, such as example.com"
	}
	parsed, err := mail.ParseAddress(text)
	switch {
	case err != nil:
		return "must be one address such as ada@example.com or Ada Lovelace <ada@example.com>; a name with special characters needs double quotes"
	case parsed.Address != spec, hasComment(text):
		// Also a group, a route, a quoted local part, white space.
		return "must be a plain address, without comments, groups or quotes before the @; a name with parentheses needs double quotes"
	case strings.ContainsFunc(parsed.Name, isControl), !utf8.ValidString(parsed.Name), strings.Contains(parsed.Name, "=?"):
		// They can hide in an encoded word (RFC 2047), and that in another.
		return "has a name with control characters or a nested encoded word"
	case utf8.RuneCountInString(parsed.Name) > maxName:
		return "has a name of more than 128 characters"
	}
	return ""
}

// hasComment reports a parenthesis outside of double quotes.
func hasComment(text string) bool {
	quoted := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case !quoted && (c == '(' || c == ')'):
			return true
		}
	}
	return false
}

// plausibleHost reports whether host can be a DNS name, also an international
// one. It needs a dot, except in localhost, because a missing ending is the
// most common slip in an address.
func plausibleHost(host string) bool {
	labels := strings.Split(host, ".")
	last := labels[len(labels)-1]
	if len(labels) < 2 && host != "localhost" || strings.Trim(last, "0123456789") == "" {
		return false
	}
	for _, label := range labels {
		if label == "" || len(label) > maxLabel || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		for _, r := range label {
			ascii := r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
			if !ascii && (r <= unicode.MaxASCII || !unicode.In(r, unicode.L, unicode.M, unicode.Nd)) {
				return false
			}
		}
	}
	return true
}
