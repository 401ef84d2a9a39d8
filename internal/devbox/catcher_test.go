package devbox

import (
	"bytes"
	"errors"
	"net/smtp"
	"net/textproto"
	"testing"

	"github.com/rs/zerolog"
)

func newCatcher(t *testing.T) (*catcher, *store) {
	t.Helper()
	s := newStore()
	c, err := startCatcher(t.Context(), s, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return c, s
}

func TestCatcher(t *testing.T) {
	t.Parallel()
	c, s := newCatcher(t)
	raw := letter("Ada <ada@example.com>", "Dots", "one\n.\n..two\n")
	if err := smtp.SendMail(c.addr, nil, "bounce@example.com", []string{"ada@example.com", "grace@example.com"}, raw); err != nil {
		t.Fatal(err)
	}
	m, ok := s.latest()
	if !ok {
		t.Fatal("nothing was kept")
	}
	if !bytes.Equal(m.raw, raw) {
		t.Errorf("kept\n%q, want the bytes as they were sent\n%q", m.raw, raw)
	}
	if m.envelope.From != "bounce@example.com" || len(m.envelope.To) != 2 {
		t.Errorf("envelope %+v", m.envelope)
	}
}

// One connection, several messages: the second must not inherit the first's
// recipients.
func TestCatcher_Reset(t *testing.T) {
	t.Parallel()
	c, s := newCatcher(t)
	client, err := smtp.Dial(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, to := range []string{"a@example.com", "b@example.com"} {
		if err := errors.Join(client.Mail("x@example.com"), client.Rcpt(to)); err != nil {
			t.Fatal(err)
		}
		w, err := client.Data()
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(letter(to, to, ""))
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		if m, _ := s.latest(); m == nil || len(m.envelope.To) != 1 || m.envelope.To[0] != to {
			t.Errorf("kept %+v, want one for %s", m, to)
		}
	}
}

func TestCatcher_TooLarge(t *testing.T) {
	t.Parallel()
	c, s := newCatcher(t)
	raw := append([]byte("Subject: x\r\n\r\n"), bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), catcherMaxMessage/64+1)...)
	err := smtp.SendMail(c.addr, nil, "a@example.com", []string{"b@example.com"}, raw)
	if refused, ok := errors.AsType[*textproto.Error](err); !ok || refused.Code != 552 {
		t.Errorf("error %v, want a 552", err)
	}
	if _, ok := s.latest(); ok {
		t.Error("a message that was refused was kept")
	}
}
