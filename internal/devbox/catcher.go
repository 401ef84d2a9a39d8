package devbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/rs/zerolog"
)

// Limits of the catcher: above everything postroom sends (10 MiB of attachments
// are 14 MiB on the wire), so that it is never the catcher that refuses.
const (
	catcherMaxMessage    = 32 << 20
	catcherMaxRecipients = 100
	catcherIdleTimeout   = 5 * time.Minute // RFC 5321, section 4.5.3.2.7
)

// catcher is an SMTP server that accepts everything and delivers nothing.
type catcher struct {
	addr   string
	server *smtp.Server
	served chan error
}

func startCatcher(ctx context.Context, keep *store, log zerolog.Logger) (*catcher, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for SMTP: %w", err)
	}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &session{keep: keep}, nil
	}))
	server.Domain = "localhost"
	server.MaxMessageBytes = catcherMaxMessage
	server.MaxRecipients = catcherMaxRecipients
	server.ReadTimeout = catcherIdleTimeout
	server.WriteTimeout = catcherIdleTimeout
	server.EnableSMTPUTF8 = true
	server.EnableDSN = true
	server.ErrorLog = smtpLog{log}
	c := &catcher{addr: ln.Addr().String(), server: server, served: make(chan error, 1)}
	go func() { c.served <- server.Serve(ln) }()
	return c, nil
}

func (c *catcher) url() string { return "smtp://" + c.addr }

// stop closes the listener and the connections.
func (c *catcher) stop(context.Context) error {
	return errors.Join(c.server.Close(), <-c.served)
}

// session is one SMTP connection.
type session struct {
	keep *store
	env  envelope
}

func (s *session) Reset() { s.env = envelope{} }

func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.env = envelope{From: from}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.env.To = append(s.env.To, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err // go-smtp's own: too large, or the connection ended
	}
	s.keep.add(s.env, raw)
	return nil
}

// smtpLog is go-smtp's log of its own errors: connections that broke.
type smtpLog struct{ log zerolog.Logger }

func (l smtpLog) Printf(format string, v ...any) { l.log.Debug().Msgf("catcher: "+format, v...) }

func (l smtpLog) Println(v ...any) { l.log.Debug().Msg("catcher: " + fmt.Sprint(v...)) }
