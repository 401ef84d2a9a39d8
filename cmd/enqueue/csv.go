package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Columns (and members of a JSON line) that are about the message.
const (
	columnTo          = "to"
	columnLocale      = "locale"
	columnUnsubscribe = "list_unsubscribe"
	columnUser        = "user"
	columnEmail       = "email"
	columnPhone       = "phone"
	columnAction      = "action"
)

// A layout says which columns are about the message; all others are template data.
type layout struct {
	columns []string // the first one is required: it says whom the message is for
	field   func(r *record, column string) *string
}

func (l layout) recipient() string { return l.columns[0] }

// The layouts.
var (
	emailLayout = layout{
		columns: []string{columnTo, columnLocale, columnUnsubscribe},
		field: func(r *record, column string) *string {
			switch column {
			case columnTo:
				return &r.to
			case columnLocale:
				return &r.locale
			case columnUnsubscribe:
				return &r.unsubscribe
			}
			return nil
		},
	}
	notificationLayout = layout{
		columns: []string{columnUser, columnLocale, columnEmail, columnPhone, columnAction},
		field: func(r *record, column string) *string {
			switch column {
			case columnUser:
				return &r.user
			case columnLocale:
				return &r.locale
			case columnEmail:
				return &r.to
			case columnPhone:
				return &r.phone
			case columnAction:
				return &r.action
			}
			return nil
		},
	}
)

// csvSource reads CSV as of RFC 4180: comma-separated, fields optionally in double quotes, which may
// hold line breaks, commas and doubled quotes. Beyond the RFC it takes LF for a line break, ignores a
// byte order mark and skips empty lines.
//
// A record that is not well-formed costs its first line only: reading goes on with the next line, so
// that one stray quote does not swallow the rows behind it.
type csvSource struct {
	s         *scanner
	long      tooLong
	layout    layout
	columns   []string
	rawHeader string
	keyColumn string
}

func newCSVSource(s *scanner, l layout, keyColumn string) (*csvSource, error) {
	c := &csvSource{s: s, layout: l, keyColumn: keyColumn}
	bom, err := s.skipBOM()
	if err != nil {
		return nil, err
	}
	head, fields, err := c.read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the file is empty: its first line must name the columns")
	}
	if err != nil {
		return nil, err
	}
	if len(head.problems) > 0 {
		return nil, fmt.Errorf("line %d: the header %s", head.line, head.problems[0].Problem)
	}
	for i, name := range fields {
		fields[i] = strings.TrimSpace(name)
	}
	// The header's words stay out of these messages: in a file without one they are a person's data.
	at := make(map[string]int, len(fields))
	for i, name := range fields {
		switch {
		case name == "":
			return nil, fmt.Errorf("line %d: column %d has no name", head.line, i+1)
		case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			return nil, fmt.Errorf("line %d: the name of column %d holds a control character or invalid UTF-8; lines must end in LF or CR LF", head.line, i+1)
		}
		if first, ok := at[name]; ok {
			return nil, fmt.Errorf("line %d: columns %d and %d have the same name", head.line, first+1, i+1)
		}
		at[name] = i
	}
	if _, ok := at[l.recipient()]; !ok {
		hint := ""
		if len(fields) == 1 && strings.ContainsAny(fields[0], ";\t") {
			hint = "; it seems to be separated by semicolons or tabs: save it with commas"
		}
		return nil, fmt.Errorf("line %d: no column is called %q: the first line must name the columns%s", head.line, l.recipient(), hint)
	}
	if _, ok := at[keyColumn]; keyColumn != "" && !ok {
		return nil, fmt.Errorf("line %d: no column is called %q, as --idempotency-key-column asks", head.line, keyColumn)
	}
	c.columns = fields
	c.rawHeader = bom + head.raw
	if !strings.HasSuffix(c.rawHeader, "\n") {
		c.rawHeader += "\n"
	}
	return c, nil
}

func (c *csvSource) header() string { return c.rawHeader }

func (c *csvSource) next() (record, error) {
	rec, fields, err := c.read()
	if err != nil || rec.tail || len(rec.problems) > 0 {
		return rec, err
	}
	if len(fields) != len(c.columns) {
		rec.refuse("", "has %d fields, the header has %d", len(fields), len(c.columns))
		return rec, nil
	}
	rec.data = make(map[string]any, len(fields))
	for i, name := range c.columns {
		value := fields[i]
		if !utf8.ValidString(value) {
			rec.refuse(name, "is not valid UTF-8")
			continue
		}
		if name == c.keyColumn {
			rec.key = value
		}
		if field := c.layout.field(&rec, name); field != nil {
			*field = value
		} else {
			rec.data[name] = value
		}
	}
	return rec, nil
}

// read returns the next record that is not an empty line, and its fields.
func (c *csvSource) read() (record, []string, error) {
	if rec, ok := c.long.more(c.s); ok {
		return rec, nil, nil
	}
	for {
		n, ok := c.s.lineEnd()
		switch {
		case !ok:
			return c.long.first(c.s, n), nil, nil
		case c.s.cutShort(n):
			return record{}, nil, c.s.readErr()
		case n == 0:
			return record{}, nil, io.EOF
		}
		line := c.s.window()[:n]
		if len(trimLineBreak(line)) == 0 {
			c.s.take(n)
			continue
		}
		if bytes.IndexByte(line, '"') < 0 {
			rec := c.s.take(n)
			return rec, strings.Split(trimLineBreak(rec.raw), ","), nil
		}
		length, wrong, err := c.quoted(n)
		if err != nil {
			return record{}, nil, err
		}
		rec := c.s.take(length)
		if wrong != "" {
			rec.refuse("", "%s", wrong)
			return rec, nil, nil
		}
		return rec, splitQuoted(trimLineBreak(rec.raw)), nil
	}
}

// quoted measures a record that has quotes in its first line, which is n long. When it is not
// well-formed, wrong says why and the length is that of the first line.
func (c *csvSource) quoted(n int) (length int, wrong string, err error) {
	const (
		fieldStart = iota
		plain
		inQuotes
		quoteInQuotes // the closing quote, or the first of two
		crBehindQuote
	)
	state, field := fieldStart, 1
	for i := 0; ; i++ {
		if i == len(c.s.window()) && !c.s.fill() {
			switch {
			case c.s.readErr() != nil:
				return 0, "", c.s.readErr()
			case state == inQuotes:
				return n, fmt.Sprintf("field %d begins with a quote that is not closed within %d bytes", field, maxRecord), nil
			case c.s.err == nil:
				return n, fmt.Sprintf("is longer than %d bytes", maxRecord), nil
			}
			return i, "", nil
		}
		w := c.s.window()
		if state == inQuotes {
			skip := bytes.IndexByte(w[i:], '"')
			if skip < 0 {
				i = len(w) - 1
				continue
			}
			i += skip
			state = quoteInQuotes
			continue
		}
		switch b := w[i]; {
		case b == '\n':
			return i + 1, "", nil
		case state == crBehindQuote,
			state == quoteInQuotes && b != ',' && b != '"' && b != '\r':
			return n, fmt.Sprintf("field %d goes on behind its closing quote: double the quotes inside it", field), nil
		case state == quoteInQuotes && b == '\r':
			state = crBehindQuote
		case b == ',':
			state, field = fieldStart, field+1
		case b == '"' && state == plain:
			return n, fmt.Sprintf("field %d has a quote inside: put the field in quotes and double that quote", field), nil
		case b == '"':
			state = inQuotes
		default:
			state = plain
		}
	}
}

// splitQuoted cuts a well-formed record into its fields.
func splitQuoted(s string) []string {
	fields := make([]string, 0, strings.Count(s, ",")+1)
	for {
		if !strings.HasPrefix(s, `"`) {
			field, rest, more := strings.Cut(s, ",")
			fields = append(fields, field)
			if !more {
				return fields
			}
			s = rest
			continue
		}
		s = s[1:]
		i := 0
		for {
			i += strings.IndexByte(s[i:], '"')
			if !strings.HasPrefix(s[i+1:], `"`) {
				break
			}
			i += 2
		}
		fields = append(fields, strings.ReplaceAll(s[:i], `""`, `"`))
		s = s[i+1:]
		if s == "" {
			return fields
		}
		s = s[1:] // the comma
	}
}

// trimLineBreak removes LF or CR LF, and the CR of a CR LF that the end of the input cut in two.
func trimLineBreak[T string | []byte](line T) T {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
	}
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line
}
