package templates

import (
	"fmt"
	htmltemplate "html/template"
	"net/url"
	"strings"
	texttemplate "text/template"
)

// valueError says what is wrong with a value without containing it, so that it
// may be stored and logged.
type valueError string

func (e valueError) Error() string { return string(e) }

// funcs are the functions of templates in one locale. None of them turns data
// into markup: the ones that return a type html/template trusts either build
// it from a checked alphabet (tel, cid) or take a literal only (mso, held by
// the check of the parse tree).
func (l *locale) funcs() texttemplate.FuncMap {
	return texttemplate.FuncMap{
		"lang": func() string { return l.lang },
		"dir":  func() string { return l.data.Direction },
		"word": func(name string) (string, error) {
			if s, ok := l.data.Words[name]; ok {
				return s, nil
			}
			return "", fmt.Errorf("locale %s has no word %q", l.lang, name)
		},
		"date": func(value string, zone ...string) (string, error) {
			t, err := l.zones.parseTime(value, strings.Join(zone, ""))
			if err != nil {
				return "", err
			}
			return l.format(l.date, t), nil
		},
		"time": func(value string, zone ...string) (string, error) {
			t, err := l.zones.parseTime(value, strings.Join(zone, ""))
			if err != nil {
				return "", err
			}
			return l.format(l.time, t), nil
		},
		"duration": func(value any) (string, error) {
			d, ok, err := parseDuration(value)
			switch {
			case err != nil:
				return "", err
			case ok:
				return l.duration(d), nil
			}
			if s, isText := value.(string); isText {
				return s, nil
			}
			return "", valueError("is neither a text nor a number of minutes")
		},
		"paragraphs": paragraphs,

		"link": newLink,
		"tel":  telURL,
		"cid":  cidURL,
		"mso":  msoComment,
	}
}

// msoComment shows markup to Outlook on Windows only. html/template drops
// comments that stand in a template, which is why this is a function.
func msoComment(markup string) htmltemplate.HTML {
	return htmltemplate.HTML("<!--[if mso]>" + markup + "<![endif]-->") //nolint:gosec // a literal of the template, see literalMarkup
}

// paragraphs splits a plain text at empty lines, and each paragraph into its lines.
func paragraphs(text string) [][]string {
	var all [][]string
	var lines []string
	for line := range strings.SplitSeq(text+"\n", "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		} else if lines != nil {
			all, lines = append(all, lines), nil
		}
	}
	return all
}

// Link is what {{link .url "label"}} hands to a shared template such as
// "button".
type Link struct {
	URL, Label string
}

var errNotALink = valueError("must be an absolute http or https address without user name and spaces")

func newLink(address, label string) (Link, error) {
	if err := checkURL(address); err != nil {
		return Link{}, err
	}
	return Link{URL: address, Label: label}, nil
}

// checkURL holds data to web addresses. html/template filters dangerous
// schemes too, but by printing #ZgotmplZ: a patient would get a dead button.
func checkURL(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || isControl(r) || r == '\\' }) {
		return errNotALink
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil {
		return errNotALink
	}
	return nil
}

var errNotAPhone = valueError("is not a telephone number of 3 to 15 digits")

// telURL makes a tel: address (RFC 3966), which html/template would refuse:
// digits with at most a leading plus; separators people write are dropped.
// 15 digits is the most E.164 allows.
func telURL(number string) (htmltemplate.URL, error) {
	b := []byte("tel:")
	digits := 0
	for i, r := range number {
		switch {
		case r >= '0' && r <= '9':
			b = append(b, byte(r))
			digits++
		case r == '+' && i == 0:
			b = append(b, '+')
		case strings.ContainsRune(" -./()\u00a0", r):
		default:
			return "", errNotAPhone
		}
	}
	if digits < 3 || digits > 15 {
		return "", errNotAPhone
	}
	return htmltemplate.URL(b), nil //nolint:gosec // tel:, an optional plus and digits
}

var errNotAContentID = valueError("is not a content id of letters, digits and . _ - @")

// cidURL points to an embedded file (RFC 2392).
func cidURL(id string) (htmltemplate.URL, error) {
	ok := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._-@", r)
	}
	if id == "" || len(id) > 200 || strings.ContainsFunc(id, func(r rune) bool { return !ok(r) }) {
		return "", errNotAContentID
	}
	return htmltemplate.URL("cid:" + id), nil //nolint:gosec // the alphabet above
}
