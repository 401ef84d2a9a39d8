package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"testing/iotest"
)

// show writes a record as "line to data" or "line! field: problem".
func show(r record) string {
	if r.tail {
		return fmt.Sprintf("%d tail of %d", r.line, len(r.raw))
	}
	if len(r.problems) > 0 {
		p := r.problems[0]
		if p.Field == "" {
			return fmt.Sprintf("%d! %s", r.line, p.Problem)
		}
		return fmt.Sprintf("%d! %s: %s", r.line, p.Field, p.Problem)
	}
	s := fmt.Sprintf("%d %s", r.line, r.to)
	if r.locale != "" {
		s += " locale=" + r.locale
	}
	if r.unsubscribe != "" {
		s += " unsubscribe=" + r.unsubscribe
	}
	if r.key != "" {
		s += " key=" + r.key
	}
	return s + fmt.Sprintf(" %q", r.data)
}

func readAll(src source) (shown []string, raw string, err error) {
	for {
		r, err := src.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return shown, raw, err
		}
		shown = append(shown, show(r))
		raw += r.raw
	}
}

func TestCSVSource_Next(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		in   string
		want []string
	}{
		{"LF", "to,name\na@x,Ada\nb@x,Bob\n", []string{`2 a@x map["name":"Ada"]`, `3 b@x map["name":"Bob"]`}},
		{"CR LF", "to,name\r\na@x,Ada\r\n", []string{`2 a@x map["name":"Ada"]`}},
		{"no line break at the end", "to,name\na@x,Ada", []string{`2 a@x map["name":"Ada"]`}},
		{"cut CR LF at the end", "to,name\n\"a@x\",\"Ada\"\r", []string{`2 a@x map["name":"Ada"]`}},
		{"byte order mark", "\xef\xbb\xbfto,name\na@x,Ada\n", []string{`2 a@x map["name":"Ada"]`}},
		{"known columns", "locale,to,list_unsubscribe,name\npt-BR,a@x,https://u/1,Ada\n", []string{`2 a@x locale=pt-BR unsubscribe=https://u/1 map["name":"Ada"]`}},
		{"spaces around a column's name", "to , name\na@x, Ada\n", []string{`2 a@x map["name":" Ada"]`}},
		{"numbers stay strings", "to,n\na@x,007\n", []string{`2 a@x map["n":"007"]`}},
		{"quoted", "to,name\na@x,\"Lovelace, \"\"Ada\"\"\"\n", []string{`2 a@x map["name":"Lovelace, \"Ada\""]`}},
		{"empty quoted", "to,name\na@x,\"\"\n", []string{`2 a@x map["name":""]`}},
		{"empty last field", "to,name\n\"a@x\",\n", []string{`2 a@x map["name":""]`}},
		{"line break in quotes", "to,name\na@x,\"Ada\r\nLovelace\"\nb@x,Bob\n", []string{`2 a@x map["name":"Ada\r\nLovelace"]`, `4 b@x map["name":"Bob"]`}},
		{"quoted header over two lines", "to,\"first\"\na@x,Ada\n", []string{`2 a@x map["first":"Ada"]`}},
		{"empty lines", "to,name\n\n\r\na@x,Ada\n\n", []string{`4 a@x map["name":"Ada"]`}},
		{"too few fields", "to,name\na@x\nb@x,Bob\n", []string{"2! has 1 fields, the header has 2", `3 b@x map["name":"Bob"]`}},
		{"too many fields", "to,name\na@x,Ada,1\n", []string{"2! has 3 fields, the header has 2"}},
		{"quote inside a field", "to,name\na@x,5\" pipe\nb@x,Bob\n", []string{
			"2! field 2 has a quote inside: put the field in quotes and double that quote", `3 b@x map["name":"Bob"]`,
		}},
		{"text behind a closing quote", "to,name\na@x,\"Ada\" L\nb@x,Bob\n", []string{
			"2! field 2 goes on behind its closing quote: double the quotes inside it", `3 b@x map["name":"Bob"]`,
		}},
		{"CR behind a closing quote", "to,name\na@x,\"Ada\"\r,\nb@x,Bob\n", []string{
			"2! field 2 goes on behind its closing quote: double the quotes inside it", `3 b@x map["name":"Bob"]`,
		}},
		{"quote never closed", "to,name\na@x,\"Ada\nb@x,Bob\n", []string{
			"2! field 2 begins with a quote that is not closed within 1048576 bytes", `3 b@x map["name":"Bob"]`,
		}},
		{"quote closed by a later row", "to,name\na@x,\"Ada\nb@x,\"Bob\"\n", []string{
			"2! field 2 goes on behind its closing quote: double the quotes inside it", `3 b@x map["name":"Bob"]`,
		}},
		{"invalid UTF-8", "to,name\na@x,Jos\xe9\n", []string{"2! name: is not valid UTF-8"}},
		{"header alone", "to,name", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// Byte by byte, every state meets the end of the buffer.
			for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
				src, err := newCSVSource(newScanner(r), emailLayout, "")
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := readAll(src)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("records = %q, %v\nwant      %q", got, err, tt.want)
				}
			}
		})
	}
}

func TestNewCSVSource_Header(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, key, want string }{
		{"empty", "", "", "the file is empty: its first line must name the columns"},
		{"no recipient", "mail,name\n", "", `line 1: no column is called "to": the first line must name the columns`},
		{"semicolons", "to;name\n", "", `line 1: no column is called "to": the first line must name the columns; it seems to be separated by semicolons or tabs: save it with commas`},
		{"twice", "to,name,name\n", "", "line 1: columns 2 and 3 have the same name"},
		{"unnamed", "to,\n", "", "line 1: column 2 has no name"},
		{"malformed", "\n\"to\"x,name\n", "", "line 2: the header field 1 goes on behind its closing quote: double the quotes inside it"},
		{"old Mac line breaks", "to,name\ra@x,Ada\r", "", "line 1: the name of column 2 holds a control character or invalid UTF-8; lines must end in LF or CR LF"},
		{"UTF-16", "\xff\xfet\x00o\x00", "", "the file is UTF-16: save it as UTF-8"},
		{"key column missing", "to,name\n", "id", `line 1: no column is called "id", as --idempotency-key-column asks`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := newCSVSource(newScanner(strings.NewReader(tt.in)), emailLayout, tt.key)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestCSVSource_KeyColumn(t *testing.T) {
	t.Parallel()
	src, err := newCSVSource(newScanner(strings.NewReader("to,id\na@x,7\n")), emailLayout, "id")
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := readAll(src)
	if want := `[2 a@x key=7 map["id":"7"]]`; err != nil || fmt.Sprint(got) != want {
		t.Errorf("records = %v, %v, want %s", got, err, want)
	}
}

func TestJSONLSource_Next(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		in   string
		key  string
		want []string
	}{
		{"flat", `{"to":"a@x","locale":"de","name":"Ada"}` + "\n", "", []string{`1 a@x locale=de map["name":"Ada"]`}},
		{"nested", `{"to":"a@x","data":{"name":"Ada","n":12345678901234567890}}`, "", []string{`1 a@x map["n":"12345678901234567890" "name":"Ada"]`}},
		{"beside data", `{"to":"a@x","data":{},"name":"Ada"}`, "", []string{"1! name: stands beside data: put it inside"}},
		{"data not an object", `{"to":"a@x","data":7}`, "", []string{"1! data: must be an object"}},
		{"recipient not a string", `{"to":7}`, "", []string{"1! to: must be a string"}},
		{"null is nothing", `{"to":"a@x","locale":null}`, "", []string{`1 a@x map[]`}},
		{"empty lines, CR LF, byte order mark", "\xef\xbb\xbf{\"to\":\"a@x\"}\r\n \n\r\n{\"to\":\"b@x\"}\r\n", "", []string{`1 a@x map[]`, `4 b@x map[]`}},
		{"not JSON", "{\"to\":\n{\"to\":\"b@x\"}\n", "", []string{"1! is not valid JSON: it ends too early", `2 b@x map[]`}},
		{"syntax", "{\"to\" x}\n", "", []string{"1! is not valid JSON at byte 7"}},
		{"not an object", "[1]\n", "", []string{"1! must be a JSON object"}},
		{"two objects", "{} {}\n", "", []string{"1! has more than one JSON object"}},
		{"invalid UTF-8", "{\"to\":\"\xe9\"}\n", "", []string{"1! is not valid UTF-8"}},
		{"key at the top", `{"to":"a@x","id":7}`, "id", []string{`1 a@x key=7 map["id":"7"]`}},
		{"key in data", `{"to":"a@x","data":{"id":"7"}}`, "id", []string{`1 a@x key=7 map["id":"7"]`}},
		{"key is the recipient", `{"to":"a@x","data":{}}`, "to", []string{`1 a@x key=a@x map[]`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
				src, err := newJSONLSource(newScanner(r), emailLayout, tt.key)
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := readAll(src)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("records = %q, %v\nwant      %q", got, err, tt.want)
				}
			}
		})
	}
}

func TestScanner_LongLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*maxRecord+5)
	formats := map[string]struct{ before, good string }{
		formatCSV:   {"to,name\n", "b@x,Bob\n"},
		formatJSONL: {"", `{"to":"b@x","name":"Bob"}` + "\n"},
	}
	for format, f := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			s := newScanner(strings.NewReader(f.before + long + "\n" + f.good))
			src, first := sourceOf(t, format, s), strings.Count(f.before, "\n")+1
			got, raw, err := readAll(src)
			want := []string{
				fmt.Sprintf("%d! is longer than 1048576 bytes", first),
				fmt.Sprintf("%d tail of 1048576", first), fmt.Sprintf("%d tail of 1048576", first), fmt.Sprintf("%d tail of 6", first),
				fmt.Sprintf(`%d b@x map["name":"Bob"]`, first+1),
			}
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("records = %q, %v, want %q", got, err, want)
			}
			if raw != long+"\n"+f.good {
				t.Error("the pieces are not the input")
			}
			if len(s.buf) > 2*maxRecord {
				t.Errorf("buffer has %d bytes", len(s.buf))
			}
		})
	}
}

func TestSource_ReadError(t *testing.T) {
	t.Parallel()
	// A read that fails in the middle of a line must not pass off the half as a line.
	tests := []struct{ format, in string }{
		{formatCSV, "to,name\na@x,Ada\nb@x,Bo"},
		{formatCSV, "to,name\na@x,Ada\nb@x,\"Bo"},
		{formatCSV, "to,name\na@x,Ada\nb@x,\"Bo\nb"},
		{formatJSONL, "{\"to\":\"a@x\"}\n{\"to\":\"b@x\"}"},
	}
	broken := errors.New("broken")
	for _, tt := range tests {
		src := sourceOf(t, tt.format, newScanner(io.MultiReader(strings.NewReader(tt.in), iotest.ErrReader(broken))))
		got, _, err := readAll(src)
		if len(got) != 1 || !errors.Is(err, broken) {
			t.Errorf("%q: records = %q, error = %v, want one record and the read's error", tt.in, got, err)
		}
	}
}

func TestScanner_Sniff(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"to,name\n": formatCSV, "": formatCSV, "{\"to\":1}": formatJSONL, "\xef\xbb\xbf\n {": formatJSONL,
	} {
		if got := newScanner(iotest.OneByteReader(strings.NewReader(in))).sniff(); got != want {
			t.Errorf("sniff(%q) = %s, want %s", in, got, want)
		}
	}
}

func sourceOf(t *testing.T, format string, s *scanner) source {
	t.Helper()
	var src source
	var err error
	if format == formatCSV {
		src, err = newCSVSource(s, emailLayout, "")
	} else {
		src, err = newJSONLSource(s, emailLayout, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// checkSource reads src to its end and holds what is true of any input: every byte that is not in an
// empty line belongs to exactly one record, in order, and the records know where they are.
func checkSource(t *testing.T, src source, in []byte, offset int) {
	t.Helper()
	line := 1 + bytes.Count(in[:offset], []byte("\n"))
	for {
		r, err := src.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		start := int(r.end) - len(r.raw)
		if start < offset || !bytes.Equal(in[start:r.end], []byte(r.raw)) {
			t.Fatalf("record at %d is not what the input has there", start)
		}
		if skipped := bytes.TrimSpace(in[offset:start]); len(skipped) > 0 {
			t.Fatalf("%q belongs to no record", skipped)
		}
		line += bytes.Count(in[offset:start], []byte("\n"))
		if !r.tail && r.line != line {
			t.Fatalf("record says line %d, is on line %d", r.line, line)
		}
		line += strings.Count(r.raw, "\n")
		offset = int(r.end)
		if len(r.problems) == 0 && !r.tail && r.data == nil {
			t.Fatal("a record is neither good nor refused")
		}
	}
	if rest := bytes.TrimSpace(in[offset:]); len(rest) > 0 {
		t.Fatalf("%q belongs to no record", rest)
	}
}

func FuzzCSVSource(f *testing.F) {
	for _, in := range []string{
		"to,name\na@x,Ada\n", "to,name\r\n\"a@x\r\nBcc: b@x\",Ada\r\n", "to\n\"\"\"\"\n\n\"", "\xef\xbb\xbfto,n\na,\"b\"c\nd,e\"f\n", "to\n\"x\"\r\"\n", "to\n\xff\r",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		src, err := newCSVSource(newScanner(bytes.NewReader(in)), emailLayout, "")
		if err != nil {
			return
		}
		checkSource(t, src, in, int(src.s.offset))

		// How the bytes arrive makes no difference.
		whole, _ := newCSVSource(newScanner(bytes.NewReader(in)), emailLayout, "")
		single, err := newCSVSource(newScanner(iotest.OneByteReader(bytes.NewReader(in))), emailLayout, "")
		if err != nil {
			t.Fatal(err)
		}
		for {
			a, errA := whole.next()
			b, errB := single.next()
			if a.raw != b.raw || a.line != b.line || !maps.Equal(a.data, b.data) || !errors.Is(errA, errB) {
				t.Fatalf("read at once: %+v, %v; byte by byte: %+v, %v", a, errA, b, errB)
			}
			if errA != nil {
				return
			}
		}
	})
}

func FuzzJSONLSource(f *testing.F) {
	for _, in := range []string{
		`{"to":"a@x","name":"Ada"}`, "{\"to\":\"a@x\",\"data\":{}}\r\n\n[1]\n{", "\xef\xbb\xbf{}\n{\"to\":1,\"data\":2,\"x\":3}", "{\"to\":\"\xff\"}",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		src, err := newJSONLSource(newScanner(bytes.NewReader(in)), emailLayout, "to")
		if err != nil {
			return
		}
		checkSource(t, src, in, int(src.s.offset))
	})
}
