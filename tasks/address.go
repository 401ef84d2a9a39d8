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
	if isBareAddress(text) {
		return ""
	}
	return fullAddressProblem(text)
}

func fullAddressProblem(text string) string {
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

// isBareAddress reports an address of the most common form, such as
// ada.lovelace@example.com: dot-atoms of letters, digits and -_+ (RFC 5322 §3.2.3).
// Of all others it says nothing.
func isBareAddress(text string) bool {
	local, domain, _ := strings.Cut(text, "@")
	if len(text) > maxAddress || len(local) > maxLocal || !plausibleHost(domain) {
		return false
	}
	after := byte('.') // an atom has to begin
	for i := range len(local) {
		c := local[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '+', c == '.' && after != '.':
		default:
			return false
		}
		after = c
	}
	for i := range len(domain) {
		if domain[i] >= utf8.RuneSelf {
			return false
		}
	}
	return after != '.'
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
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == host && host != "localhost" || strings.Trim(last, "0123456789") == "" {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
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
