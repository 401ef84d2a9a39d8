package devbox

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

func newStore() *store { return &store{changed: func() {}} }

func letter(to, subject, text string) []byte {
	return crlf(fmt.Sprintf("From: MedicaLink <no-reply@medicalink.example>\nTo: %s\nSubject: %s\nDate: Mon, 23 Nov 2026 15:04:05 +0100\n\n%s", to, subject, text))
}

func TestStore_List(t *testing.T) {
	t.Parallel()
	s := newStore()
	if l := s.list("", 10); l.Messages == nil || l.Total != 0 {
		t.Errorf("empty store lists %+v, want an empty list", l)
	}
	s.add(envelope{To: []string{"ada@example.com"}}, letter("Ada <ada@example.com>", "Welcome", "Hello Ada,\n\n  nice to   see you"))
	s.add(envelope{To: []string{"grace@example.com"}}, letter("grace@example.com", "Your appointment", "Hello Grace"))
	s.add(envelope{From: "x@example.com", To: []string{"hidden@example.com"}}, []byte("Subject: no headers\r\n\r\nbody"))

	tests := []struct {
		query string
		limit int
		want  []uint64
		match int
	}{
		{"", 10, []uint64{3, 2, 1}, 3},
		{"", 2, []uint64{3, 2}, 3},
		{"HELLO", 10, []uint64{2, 1}, 2},
		{"hello ada", 10, []uint64{1}, 1},
		{"hello nobody", 10, nil, 0},
		{"hidden@example.com", 10, []uint64{3}, 1},
	}
	for _, tt := range tests {
		l := s.list(tt.query, tt.limit)
		var got []uint64
		for _, m := range l.Messages {
			got = append(got, m.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) || l.Matched != tt.match || l.Total != 3 {
			t.Errorf("list(%q, %d) = %v, matched %d of %d; want %v, %d of 3", tt.query, tt.limit, got, l.Matched, l.Total, tt.want, tt.match)
		}
	}
	all := s.list("", 10).Messages
	if m := all[2]; m.Snippet != "Hello Ada, nice to see you" || m.To[0] != (address{"Ada", "ada@example.com"}) || m.Subject != "Welcome" {
		t.Errorf("summary %+v", m)
	}
	if m := all[0]; m.To[0].Address != "hidden@example.com" || m.From[0].Address != "x@example.com" || m.Problems != 1 {
		t.Errorf("without headers the envelope is shown: got %+v", m)
	}
}

func TestStore_Bounds(t *testing.T) {
	t.Parallel()
	t.Run("messages", func(t *testing.T) {
		t.Parallel()
		s := newStore()
		for i := range keepMessages + 5 {
			s.add(envelope{}, letter("a@example.com", fmt.Sprint(i), ""))
		}
		l := s.list("", 1)
		if l.Total != keepMessages || l.Dropped != 5 || l.Messages[0].Subject != fmt.Sprint(keepMessages+4) {
			t.Errorf("kept %d, dropped %d, newest %q", l.Total, l.Dropped, l.Messages[0].Subject)
		}
		for id, want := range map[uint64]bool{5: false, 6: true, keepMessages + 5: true, keepMessages + 6: false} {
			if m, ok := s.get(id); ok != want || ok && m.ID != id {
				t.Errorf("get(%d) found %v, want %v", id, ok, want)
			}
		}
		s.clear()
		if l := s.list("", 1); l.Total != 0 || l.Dropped != 0 {
			t.Errorf("after clearing: %+v", l)
		}
		s.add(envelope{}, letter("a@example.com", "next", ""))
		if m, ok := s.latest(); !ok || m.ID != keepMessages+6 {
			t.Errorf("an id was used twice: %+v", m)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		s := newStore()
		big := bytes.Repeat([]byte("x"), keepBytes/3)
		for range 4 {
			s.add(envelope{}, append([]byte("Subject: big\r\n\r\n"), big...))
		}
		if l := s.list("", 9); l.Total != 2 || l.Dropped != 2 {
			t.Errorf("kept %d, dropped %d, want 2 and 2", l.Total, l.Dropped)
		}
		s.add(envelope{}, bytes.Repeat([]byte("y"), keepBytes+1))
		if l := s.list("", 9); l.Total != 1 {
			t.Errorf("kept %d, want the newest alone, though it is too big", l.Total)
		}
	})
}

func TestStore_Concurrent(t *testing.T) {
	t.Parallel()
	c := newChanges()
	s := &store{changed: func() { c.note(func(v *versions) { v.Inbox++ }) }}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				s.add(envelope{}, letter("a@example.com", "x", "y"))
				s.list("x", 10)
				s.get(uint64(i))
			}
		})
	}
	wg.Wait()
	now, _ := c.state()
	if l := s.list("", 1); l.Total != 400 || now.Inbox != 400 {
		t.Errorf("%d messages, %d changes, want 400 each", l.Total, now.Inbox)
	}
}
