package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds one record of an input file, in bytes. A job is refused above 1 MiB, so a longer
// record could not be sent anyway; without a bound one missing line break would read a whole file into
// memory.
const maxRecord = 1 << 20

// problem is what is wrong with a record, in words that never hold the offending value.
type problem struct {
	Field   string `json:"field,omitempty"`
	Problem string `json:"problem"`
}

// record is one entry of an input file: what is to be sent, or why it cannot be.
type record struct {
	line int    // number of its first line in the file, from 1
	end  int64  // offset in the file of the byte behind it
	raw  string // its bytes as they are in the file, line break included

	// tail marks a further piece of a line too long to be held at once: it belongs to the record
	// before it and is not counted.
	tail bool

	// What the columns of the layout say; to is the address, also of a notification.
	to, locale, unsubscribe, user, phone, action string

	key      string // value of the column chosen by --idempotency-key-column
	data     map[string]any
	problems []problem // empty when the record is good
}

func (r *record) refuse(field, format string, args ...any) {
	r.problems = append(r.problems, problem{Field: field, Problem: fmt.Sprintf(format, args...)})
}

// source reads records one after the other. next returns io.EOF behind the last one; any other error
// is about the input as a whole and ends it.
type source interface {
	next() (record, error)
	header() string // the bytes to put in front of rejected records, if the format has a header
}

// scanner cuts an input into pieces and knows where each one was. Its memory is bounded by maxRecord.
type scanner struct {
	r          io.Reader
	buf        []byte
	start, end int // what is read and not yet taken is buf[start:end]
	err        error
	line       int   // number of the line at start
	offset     int64 // of start
}

func newScanner(r io.Reader) *scanner {
	return &scanner{r: r, buf: make([]byte, 64<<10), line: 1}
}

func (s *scanner) window() []byte { return s.buf[s.start:s.end] }

// fill reads more behind the window. It reports false when there is no more to read or no room for it.
func (s *scanner) fill() bool {
	if s.err != nil {
		return false
	}
	if s.start > 0 && s.end == len(s.buf) {
		copy(s.buf, s.window())
		s.start, s.end = 0, s.end-s.start
	}
	if s.end == len(s.buf) {
		if len(s.buf) >= maxRecord {
			return false
		}
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	for range 100 {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 {
			return true
		}
		if err != nil {
			return false
		}
	}
	s.err = io.ErrNoProgress
	return false
}

// readErr returns the error that ended the input, nil at a regular end.
func (s *scanner) readErr() error {
	if s.err == nil || errors.Is(s.err, io.EOF) {
		return nil
	}
	return fmt.Errorf("read line %d: %w", s.line, s.err)
}

// cutShort reports whether the first n bytes of the window are what a failed read left of a line.
func (s *scanner) cutShort(n int) bool {
	return s.readErr() != nil && (n == 0 || s.window()[n-1] != '\n')
}

// take removes the first n bytes of the window and returns them as a record.
func (s *scanner) take(n int) record {
	raw := s.buf[s.start : s.start+n]
	rec := record{line: s.line, raw: string(raw)}
	s.line += bytes.Count(raw, []byte{'\n'})
	s.start += n
	s.offset += int64(n)
	rec.end = s.offset
	return rec
}

// fillMark reads as much as a byte order mark would take.
func (s *scanner) fillMark() {
	for len(s.window()) < 3 && s.fill() {
	}
}

// skipBOM removes the byte order mark that spreadsheets put in front of UTF-8 and returns it.
func (s *scanner) skipBOM() (string, error) {
	s.fillMark()
	if b := s.window(); bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return "", errors.New("the file is UTF-16: save it as UTF-8")
	}
	if bytes.HasPrefix(s.window(), []byte("\xef\xbb\xbf")) {
		return s.take(3).raw, nil
	}
	return "", nil
}

// lineEnd returns the length of the window's first line with its line break, reading as needed. ok is
// false when the line is longer than maxRecord; n is then what there is of it. n is 0 at the end.
func (s *scanner) lineEnd() (n int, ok bool) {
	seen := 0
	for {
		w := s.window()
		if i := bytes.IndexByte(w[seen:], '\n'); i >= 0 {
			return seen + i + 1, true
		}
		seen = len(w)
		if !s.fill() {
			return seen, s.err != nil
		}
	}
}

// tooLong cuts pieces from a line longer than maxRecord, so that it can be copied without being held.
type tooLong struct{ within bool }

func (t *tooLong) first(s *scanner, n int) record {
	rec := s.take(n)
	rec.refuse("", "is longer than %d bytes", maxRecord)
	t.within = true
	return rec
}

// more returns the next piece; ok is false when the line has ended.
func (t *tooLong) more(s *scanner) (rec record, ok bool) {
	if !t.within {
		return record{}, false
	}
	n, complete := s.lineEnd()
	t.within = !complete
	if n == 0 || s.cutShort(n) {
		return record{}, false
	}
	rec = s.take(n)
	rec.tail = true
	return rec, true
}

// sniff tells JSON lines from CSV by the first character; a header of CSV does not begin with a brace.
func (s *scanner) sniff() string {
	s.fillMark()
	for {
		if w := bytes.TrimLeft(bytes.TrimPrefix(s.window(), []byte("\xef\xbb\xbf")), " \t\r\n"); len(w) > 0 {
			if w[0] == '{' {
				return formatJSONL
			}
			return formatCSV
		}
		if !s.fill() {
			return formatCSV
		}
	}
}
