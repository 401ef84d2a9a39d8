package templates

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

// stylesheet is a parsed style.css: what can be written into elements, and the
// rest, which stays in the head.
type stylesheet struct {
	rules []rule
	rest  string // on one line, so that it moves no line of the template
}

type rule struct {
	element, class string // either may be empty, not both
	decls          []declaration
}

type declaration struct {
	property, value string
}

// parseCSS reads the small part of CSS that mail clients agree on. A rule
// whose selectors are all an element, a class or an element with a class goes
// into the elements; at-rules, other selectors and anything !important stay.
func parseCSS(src string) (stylesheet, int, error) {
	var sheet stylesheet
	var rest []string
	text, err := dropComments(src)
	if err != nil {
		return sheet, 1, err
	}
	line := func(remaining string) int {
		return 1 + strings.Count(text[:len(text)-len(remaining)], "\n")
	}
	for s := strings.TrimLeft(text, " \t\r\n"); s != ""; s = strings.TrimLeft(s, " \t\r\n") {
		open := strings.IndexAny(s, "{;")
		if open < 0 || s[open] == ';' {
			return sheet, line(s), fmt.Errorf("expected a rule with a block: %.40q", s)
		}
		end := blockEnd(s[open:])
		if end < 0 {
			return sheet, line(s), fmt.Errorf("the block of %.40q is not closed", strings.TrimSpace(s[:open]))
		}
		prelude, block, all := strings.TrimSpace(s[:open]), s[open+1:open+end], s[:open+end+1]
		if strings.ContainsAny(all, "<\\") {
			return sheet, line(s), fmt.Errorf("%.40q: < and \\ are not supported", prelude)
		}
		rules, ok := inlinable(prelude, block)
		if !ok {
			rest = append(rest, strings.Join(strings.Fields(all), " "))
		} else {
			decls, err := parseDeclarations(block)
			if err != nil {
				return sheet, line(s), fmt.Errorf("%.40q: %w", prelude, err)
			}
			for _, r := range rules {
				r.decls = decls
				sheet.rules = append(sheet.rules, r)
			}
		}
		s = s[open+end+1:]
	}
	// A class beats an element, an element with a class beats a class; within
	// one kind the later rule wins, which the stable sort keeps.
	weight := func(r rule) int {
		w := 0
		if r.class != "" {
			w += 2
		}
		if r.element != "" {
			w++
		}
		return w
	}
	slices.SortStableFunc(sheet.rules, func(a, b rule) int { return weight(a) - weight(b) })
	sheet.rest = strings.Join(rest, " ")
	return sheet, 0, nil
}

// dropComments blanks comments but keeps their line breaks.
func dropComments(src string) (string, error) {
	var b strings.Builder
	for {
		before, comment, found := strings.Cut(src, "/*")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		comment, after, closed := strings.Cut(comment, "*/")
		if !closed {
			return "", fmt.Errorf("a comment is not closed")
		}
		b.WriteString(strings.Repeat("\n", strings.Count(comment, "\n")) + " ")
		src = after
	}
}

// blockEnd returns the index of the brace that closes the one s begins with.
func blockEnd(s string) int {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func inlinable(prelude, block string) ([]rule, bool) {
	if strings.HasPrefix(prelude, "@") || strings.Contains(block, "!important") {
		return nil, false
	}
	var rules []rule
	for selector := range strings.SplitSeq(prelude, ",") {
		element, class, hasClass := strings.Cut(strings.TrimSpace(selector), ".")
		if element == "" && !hasClass || element != "" && !isName(element) || hasClass && !isName(class) {
			return nil, false
		}
		rules = append(rules, rule{element: strings.ToLower(element), class: class})
	}
	return rules, true
}

func isName(s string) bool {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	return s != "" && !strings.ContainsFunc(s, odd)
}

func parseDeclarations(block string) ([]declaration, error) {
	var decls []declaration
	for part := range strings.SplitSeq(block, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		property, value, found := strings.Cut(part, ":")
		property, value = strings.ToLower(strings.TrimSpace(property)), strings.Join(strings.Fields(value), " ")
		if !found || !isName(property) || value == "" {
			return nil, fmt.Errorf("%.40q is not a declaration", strings.TrimSpace(part))
		}
		if strings.Contains(value, "{{") {
			return nil, fmt.Errorf("%s: a stylesheet has no actions", property)
		}
		// The value will stand in a double-quoted attribute.
		decls = append(decls, declaration{property, strings.ReplaceAll(value, `"`, "'")})
	}
	return decls, nil
}

// style returns what the rules say about an element, later declarations of a
// property in place of earlier ones.
func (s *stylesheet) style(element string, classes []string) string {
	var decls []declaration
	for _, r := range s.rules {
		if r.element != "" && r.element != element || r.class != "" && !slices.Contains(classes, r.class) {
			continue
		}
		for _, d := range r.decls {
			decls = slices.DeleteFunc(decls, func(old declaration) bool { return old.property == d.property })
			decls = append(decls, d)
		}
	}
	parts := make([]string, len(decls))
	for i, d := range decls {
		parts[i] = d.property + ":" + d.value
	}
	return strings.Join(parts, ";")
}

// stylesheetMark is replaced by the rest of the stylesheet.
const stylesheetMark = "{{stylesheet}}"

// inline writes the stylesheet into the source of a template. It works on
// tokens and changes nothing but style attributes: a parser that builds a tree
// would move {{range}} out of the table it stands in and so break the
// template. Actions are blanked in the copy that is tokenised, so their quotes
// and angle brackets cannot confuse it. Lines stay where they are.
func (s *stylesheet) inline(src string, report func(line int, problem string)) string {
	blanked := blankActions(src)
	var out strings.Builder
	z := html.NewTokenizer(strings.NewReader(blanked))
	offset, copied := 0, 0
	problem := func(format string, args ...any) {
		report(1+strings.Count(src[:offset], "\n"), fmt.Sprintf(format, args...))
	}
	for {
		kind := z.Next()
		if kind == html.ErrorToken {
			break // the end: reading from a string does not fail
		}
		raw := len(z.Raw())
		if kind == html.StartTagToken || kind == html.SelfClosingTagToken {
			tag := z.Token()
			if edit, at := s.edit(tag, blanked[offset:offset+raw], problem); edit != "" {
				out.WriteString(src[copied : offset+at])
				out.WriteString(edit)
				copied = offset + at
			}
		}
		offset += raw
	}
	out.WriteString(src[copied:])
	return strings.Replace(out.String(), stylesheetMark, s.rest, 1)
}

// edit returns what to write into a tag and before which byte of it.
func (s *stylesheet) edit(tag html.Token, blanked string, problem func(string, ...any)) (edit string, at int) {
	var classes []string
	hasStyle, hasAlt := false, false
	for _, a := range tag.Attr {
		switch a.Key {
		case "class":
			if strings.Contains(a.Val, blank) {
				problem("<%s>: a class must be literal, or its style could not be inlined", tag.Data)
			}
			classes = strings.Fields(a.Val)
		case "style":
			hasStyle = true
		case "alt":
			hasAlt = true
		}
	}
	if tag.Data == "img" && !hasAlt {
		problem(`<img> has no alt text (alt="" if it is decoration)`)
	}
	style := s.style(tag.Data, classes)
	if style == "" {
		return "", 0
	}
	if !hasStyle {
		// After the tag's name, which starts after the angle bracket.
		return ` style="` + style + `"`, 1 + len(tag.Data)
	}
	// The element's own declarations come last and so win.
	at = attributeValue(blanked, "style")
	if at < 0 {
		problem("<%s>: write style=\"…\" with double quotes and no spaces around =", tag.Data)
		return "", 0
	}
	return style + ";", at
}

// attributeValue returns where the double-quoted value of an attribute begins.
func attributeValue(tag, name string) int {
	i := strings.Index(strings.ToLower(tag), name+`="`)
	if i < 1 || !strings.ContainsRune(" \t\r\n", rune(tag[i-1])) {
		return -1
	}
	return i + len(name) + 2
}

// blank stands for every byte of an action. It can be no part of a name.
const blank = "\x01"

// blankActions replaces {{…}} by as many blanks, so that offsets stay.
func blankActions(src string) string {
	var b strings.Builder
	for {
		i := strings.Index(src, "{{")
		if i < 0 {
			b.WriteString(src)
			return b.String()
		}
		n := actionLen(src[i:])
		b.WriteString(src[:i])
		b.WriteString(strings.Repeat(blank, n))
		src = src[i+n:]
	}
}

// actionLen returns the length of the action s begins with: braces within
// quotes and comments do not end it.
func actionLen(s string) int {
	body := strings.TrimLeft(strings.TrimPrefix(s[2:], "-"), " \t\r\n")
	if strings.HasPrefix(body, "/*") {
		if i := strings.Index(s, "*/"); i >= 0 {
			if j := strings.Index(s[i:], "}}"); j >= 0 {
				return i + j + 2
			}
		}
		return len(s)
	}
	for i := 2; i < len(s); i++ {
		switch c := s[i]; c {
		case '"', '\'', '`':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' && c != '`' {
					i++
				}
			}
		case '}':
			if strings.HasPrefix(s[i:], "}}") {
				return i + 2
			}
		}
	}
	return len(s)
}
