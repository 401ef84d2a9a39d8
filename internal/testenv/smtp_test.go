package testenv

import (
	"crypto/tls"
	"crypto/x509"
	"net/smtp"
	"net/url"
	"os"
	"strings"
	"testing"
)

func TestSMTP(t *testing.T) {
	t.Parallel()
	s := SMTP(t, Greylist(), Refuse(550, "5.1.1 no such user", StageRcpt).For("nobody@example.com"))
	send := func(to string) error {
		return smtp.SendMail(s.Addr(), nil, "a@example.com", []string{to}, []byte("Subject: x\r\n\r\n.dot\r\n"))
	}
	if err := send("b@example.com"); err == nil || !strings.HasPrefix(err.Error(), "450") {
		t.Errorf("first attempt: %v, want 450", err)
	}
	if err := send("b@example.com"); err != nil {
		t.Errorf("second attempt: %v", err)
	}
	for range 2 {
		if err := send("nobody@example.com"); err == nil || !strings.HasPrefix(err.Error(), "550") {
			t.Errorf("unknown recipient: %v, want 550", err)
		}
	}
	got := s.Messages()
	if len(got) != 1 || got[0].From != "a@example.com" || got[0].To != "b@example.com" ||
		string(got[0].Raw) != "Subject: x\r\n\r\n.dot\r\n" || got[0].At.IsZero() {
		t.Errorf("messages %+v", got)
	}
	s.SetFaults(Refuse(451, "4.3.0 later", StageData).Times(1))
	if err := send("c@example.com"); err == nil {
		t.Error("the new fault did not strike")
	}
	if err := send("c@example.com"); err != nil {
		t.Errorf("after its only use: %v", err)
	}
	s.WaitCount(t, 2)
	s.WaitOpen(t, 0)
	if s.Total() != 6 {
		t.Errorf("%d connections, want 6", s.Total())
	}
}

func TestSMTP_tlsAndLogin(t *testing.T) {
	t.Parallel()
	s := SMTP(t, STARTTLS(), Login("user", "secret"))
	u, err := url.Parse(s.URL())
	if err != nil || u.Scheme != "smtp" || u.User.Username() != "user" || u.Query().Get("ca") != s.CAFile() {
		t.Fatalf("URL %s: %v", s.URL(), err)
	}
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("the CA file holds no certificate")
	}
	for password, want := range map[string]string{"secret": "", "wrong": "535"} {
		c, err := smtp.Dial(s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.StartTLS(&tls.Config{ServerName: "127.0.0.1", RootCAs: roots, MinVersion: tls.VersionTLS12}); err != nil {
			t.Fatal(err)
		}
		err = c.Auth(smtp.PlainAuth("", "user", password, "127.0.0.1"))
		if (err == nil) != (want == "") || (err != nil && !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("password %s: %v, want %q", password, err, want)
		}
		_ = c.Close()
	}
}
