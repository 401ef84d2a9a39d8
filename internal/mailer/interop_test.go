package mailer

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
)

// backend is a strict server written by others.
type backend struct {
	mu  sync.Mutex
	got [][]byte
}

func (b *backend) NewSession(*gosmtp.Conn) (gosmtp.Session, error) { return &backendSession{b: b}, nil }

type backendSession struct {
	b  *backend
	ok bool
}

func (s *backendSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *backendSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "user" || password != "secret" {
			return gosmtp.ErrAuthFailed
		}
		s.ok = true
		return nil
	}), nil
}

func (s *backendSession) Mail(string, *gosmtp.MailOptions) error {
	if !s.ok {
		return gosmtp.ErrAuthRequired
	}
	return nil
}

func (s *backendSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	if strings.HasPrefix(to, "nobody@") {
		return &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	return nil
}

func (s *backendSession) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.got = append(s.b.got, raw)
	return nil
}

func (s *backendSession) Reset()        {}
func (s *backendSession) Logout() error { return nil }

func TestMailer_Send_toGoSMTP(t *testing.T) {
	t.Parallel()
	b := &backend{}
	srv := gosmtp.NewServer(b)
	srv.Domain, srv.AllowInsecureAuth, srv.EnableSMTPUTF8 = "localhost", true, true
	srv.ReadTimeout, srv.WriteTimeout = 10*time.Second, 10*time.Second
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		_ = srv.Close()
		wg.Wait()
	})

	m := newMailer(t, "smtp://user:secret@"+ln.Addr().String()+"?conns=2")
	msg := testMessage()
	msg.Text = ".\n..\n.x\n\n.\n"
	msg.Attachments = []Attachment{{Name: "a.bin", Content: bytes.Repeat([]byte("\r\n.\r\n"), 100_000)}}
	env, err := m.Build(msg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		to := env
		if i%3 == 2 {
			to.To = "nobody@example.com"
		}
		_, err := m.Send(t.Context(), to, Options{})
		if e, ok := errors.AsType[*Error](err); i%3 == 2 && (!ok || e.Enhanced != "5.1.1" || !e.Permanent()) {
			t.Fatalf("send %d: %v, want 5.1.1", i, err)
		} else if i%3 != 2 && err != nil {
			t.Fatalf("send %d: %v", i, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.got) != 20 {
		t.Fatalf("%d messages, want 20", len(b.got))
	}
	for _, raw := range b.got {
		if !bytes.Equal(raw, env.Raw) {
			t.Fatal("a message arrived changed")
		}
	}
}
