package testenv

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Received is a message the SMTP server accepted.
type Received struct {
	From, To string // envelope addresses without brackets; To is the last recipient
	Raw      []byte // as the client built it, dots unstuffed
	At       time.Time
}

// SMTPServer is an SMTP server in this process, on a free loopback port, that
// misbehaves as told. It is written on the bare socket because a library's
// server cannot stop in the middle of things. Its methods are safe for
// concurrent use.
type SMTPServer struct {
	ln   net.Listener
	tls  *tls.Config
	pem  []byte // the CA
	dir  string
	wg   sync.WaitGroup
	done chan struct{}

	mu       sync.Mutex // owns the fields below
	faults   []*activeFault
	messages []Received
	accepted int
	commands []string
	grey     map[string]bool
	conns    map[net.Conn]struct{}
	total    int
	most     int
	hanging  int
}

type activeFault struct {
	Fault
	left int // uses, -1 = unlimited
}

// maxCommands bounds what Commands remembers.
const maxCommands = 20_000

// SMTP starts a server. It is stopped, and its connections are closed, when the
// test ends. By default it offers PIPELINING, SIZE, 8BITMIME and
// ENHANCEDSTATUSCODES, no STARTTLS and no AUTH, and accepts everything.
func SMTP(t testing.TB, faults ...Fault) *SMTPServer {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for SMTP: %v", err)
	}
	s := &SMTPServer{
		ln:    ln,
		dir:   t.TempDir(),
		done:  make(chan struct{}),
		grey:  make(map[string]bool),
		conns: make(map[net.Conn]struct{}),
	}
	s.SetFaults(faults...)
	if slices.ContainsFunc(faults, func(f Fault) bool { return f.kind == kindSTARTTLS || f.kind == kindImplicitTLS }) {
		if err := s.makeCertificate(); err != nil {
			t.Fatalf("make certificate: %v", err)
		}
	}
	s.wg.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

// SetFaults replaces all faults; connections under way obey the new ones from
// their next step on. Faults about TLS must be given to [SMTP].
func (s *SMTPServer) SetFaults(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	for _, f := range faults {
		left := -1
		if f.times > 0 {
			left = f.times
		}
		s.faults = append(s.faults, &activeFault{Fault: f, left: left})
	}
}

// URL is an SMTP_URL for the server, with the credentials and CA it wants.
func (s *SMTPServer) URL() string {
	u := "smtp://"
	query := ""
	if _, ok := s.find(kindImplicitTLS); ok {
		u = "smtps://"
	}
	if f, ok := s.find(kindLogin); ok {
		u += f.user + ":" + f.text + "@"
	}
	if s.tls != nil {
		query = "?ca=" + url.QueryEscape(s.CAFile())
	}
	return u + s.Addr() + query
}

// Addr is the server's host:port.
func (s *SMTPServer) Addr() string { return s.ln.Addr().String() }

// CAFile is the path of a PEM file with the authority behind the server's
// certificate, "" without TLS.
func (s *SMTPServer) CAFile() string {
	if s.pem == nil {
		return ""
	}
	return filepath.Join(s.dir, "ca.pem")
}

// Messages are the accepted messages in the order of acceptance.
func (s *SMTPServer) Messages() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// Count is the number of accepted messages, counted even under [Discard].
func (s *SMTPServer) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Commands are the command lines received, without AUTH's, up to a limit; the
// final dot appears as ".".
func (s *SMTPServer) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commands)
}

// Open is the number of connections open now.
func (s *SMTPServer) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Total is the number of connections ever accepted.
func (s *SMTPServer) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Most is the largest number of connections that were open at once.
func (s *SMTPServer) Most() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// WaitHang waits until n connections have run into a [Hang], and fails the test
// after ten seconds.
func (s *SMTPServer) WaitHang(t testing.TB, n int) {
	t.Helper()
	s.wait(t, n, "hanging connections", func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.hanging
	})
}

// WaitOpen waits until n connections are open, and fails the test after ten seconds.
func (s *SMTPServer) WaitOpen(t testing.TB, n int) {
	t.Helper()
	s.wait(t, n, "open connections", s.Open)
}

// WaitCount waits until n messages were accepted, and fails the test after ten seconds.
func (s *SMTPServer) WaitCount(t testing.TB, n int) {
	t.Helper()
	s.wait(t, n, "accepted messages", s.Count)
}

func (s *SMTPServer) wait(t testing.TB, want int, what string, get func() int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for got := get(); got != want; got = get() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: got %d, want %d", what, got, want)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *SMTPServer) close() {
	close(s.done)
	_ = s.ln.Close()
	s.CloseConns()
	s.wg.Wait()
}

// CloseConns closes every open connection, as a restart of the server would.
func (s *SMTPServer) CloseConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *SMTPServer) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.total++
		s.most = max(s.most, len(s.conns))
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				_ = c.Close()
				s.forgetConn(c)
			}()
			select {
			case <-s.done:
				return
			default:
			}
			(&smtpSession{s: s, raw: c}).run()
		})
	}
}

func (s *SMTPServer) forgetConn(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// find returns the first fault of a kind that has uses left, without using it.
func (s *SMTPServer) find(kind faultKind) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.kind == kind && f.left != 0 {
			return f.Fault, true
		}
	}
	return Fault{}, false
}

// take uses up the first fault that applies at a stage for a recipient.
func (s *SMTPServer) take(at Stage, to string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.left == 0 || f.stage != at || (f.to != "" && f.to != to) {
			continue
		}
		if f.left > 0 {
			f.left--
		}
		return f.Fault, true
	}
	return Fault{}, false
}

func (s *SMTPServer) record(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) < maxCommands {
		s.commands = append(s.commands, line)
	}
}

// makeCertificate makes a self-signed certificate for loopback and writes it
// to the CA file.
func (s *SMTPServer) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "testenv"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	s.tls = &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	s.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return os.WriteFile(s.CAFile(), s.pem, 0o600)
}

// smtpSession is one connection.
type smtpSession struct {
	s   *SMTPServer
	raw net.Conn
	net.Conn
	br *bufio.Reader
	bw *bufio.Writer

	mails      int // MAIL commands on this connection
	encrypted  bool
	loggedIn   bool
	from, to   string
	hasFrom    bool
	recipients int
}

// errHangUp ends a session.
var errHangUp = errors.New("session ended by a fault")

func (c *smtpSession) use(conn net.Conn) {
	c.Conn, c.br, c.bw = conn, bufio.NewReaderSize(conn, 16<<10), bufio.NewWriter(conn)
}

func (c *smtpSession) run() {
	c.use(c.raw)
	if _, ok := c.s.find(kindImplicitTLS); ok {
		c.use(tls.Server(c.raw, c.s.tls))
		c.encrypted = true
	}
	done, err := c.fault(StageGreeting)
	if err != nil {
		return
	}
	if !done {
		c.reply(220, "testenv ESMTP")
	}
	for {
		line, err := c.readLine()
		if err != nil {
			return
		}
		if err := c.command(line); err != nil {
			_ = c.bw.Flush()
			return
		}
	}
}

// readLine flushes the replies when nothing more was pipelined, and reads a command.
func (c *smtpSession) readLine() (string, error) {
	if c.br.Buffered() == 0 {
		if err := c.bw.Flush(); err != nil {
			return "", err
		}
	}
	if f, ok := c.s.find(kindDropIdle); ok && c.mails > 0 && !c.hasFrom {
		_ = c.raw.SetReadDeadline(time.Now().Add(f.pause))
		defer c.raw.SetReadDeadline(time.Time{}) //nolint:errcheck // a closed socket tells by its next read
	}
	line, err := c.br.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

func (c *smtpSession) reply(code int, lines ...string) {
	for i, line := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		_, _ = c.bw.WriteString(strconv.Itoa(code) + sep + line + "\r\n") // an error stays in bw until Flush
	}
}

// fault applies a fault at a stage. done tells that the command was answered.
func (c *smtpSession) fault(at Stage) (done bool, err error) {
	f, ok := c.s.take(at, c.to)
	if !ok {
		return false, nil
	}
	switch f.kind {
	case kindRefuse:
		c.reply(f.code, f.text)
		if f.code == 421 || at == StageGreeting {
			_ = c.bw.Flush()
			return true, errHangUp
		}
		return true, nil
	case kindSay:
		_, _ = c.bw.WriteString(f.text)
		return true, nil
	case kindDelay:
		c.rest(f.pause)
	case kindHang:
		_ = c.bw.Flush()
		return true, c.hang(at)
	case kindCut:
		_ = c.bw.Flush()
		c.abort()
		return true, errHangUp
	}
	return false, nil
}

// rest waits, but not beyond the end of the test.
func (c *smtpSession) rest(d time.Duration) {
	_ = c.bw.Flush()
	select {
	case <-time.After(d):
	case <-c.s.done:
	}
}

// hang does nothing until the client or the test ends the connection. In the
// body it does not even read.
func (c *smtpSession) hang(at Stage) error {
	if at == StageBody {
		_, _ = c.br.Peek(1) // the client has got its 354 and is in the body
	}
	c.s.mu.Lock()
	c.s.hanging++
	c.s.mu.Unlock()
	if at == StageBody {
		<-c.s.done
		return errHangUp
	}
	_, _ = io.Copy(io.Discard, c.br)
	return errHangUp
}

func (c *smtpSession) abort() {
	if tcp, ok := c.raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.raw.Close()
}

func (c *smtpSession) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	if _, ok := c.s.find(kindDiscard); !ok {
		if verb == "AUTH" {
			c.s.record("AUTH")
		} else {
			c.s.record(line)
		}
	}
	stage, known := stages[verb]
	if !known {
		c.reply(500, "5.5.2 unknown command")
		return nil
	}
	if verb == "RCPT" {
		c.to = path(arg)
	}
	if verb == "MAIL" {
		c.mails++
		if f, ok := c.s.find(kindEvery421); ok && c.mails%f.n == 0 {
			c.reply(421, "4.3.2 too many messages on this connection")
			return errHangUp
		}
	}
	if done, err := c.fault(stage); done || err != nil {
		return err
	}
	switch verb {
	case "EHLO", "HELO":
		c.forget()
		c.hello(verb == "EHLO")
	case "STARTTLS":
		return c.startTLS()
	case "AUTH":
		return c.auth(arg)
	case "MAIL":
		c.mail(arg)
	case "RCPT":
		c.rcpt()
	case "DATA":
		return c.data()
	case "RSET":
		c.forget()
		c.reply(250, "2.0.0 Ok")
	case "NOOP":
		c.reply(250, "2.0.0 Ok")
	case "QUIT":
		// The client may take the answer as leave to open the next connection.
		c.s.forgetConn(c.raw)
		c.reply(221, "2.0.0 Bye")
		return errHangUp
	}
	return nil
}

func (c *smtpSession) forget() { c.from, c.to, c.hasFrom, c.recipients = "", "", false, 0 }

func (c *smtpSession) hello(extended bool) {
	if !extended {
		c.reply(250, "testenv")
		return
	}
	size := "SIZE 52428800"
	if f, ok := c.s.find(kindSize); ok {
		size = "SIZE " + strconv.Itoa(f.n)
	}
	lines := []string{"testenv", "PIPELINING", size, "8BITMIME", "ENHANCEDSTATUSCODES"}
	if _, ok := c.s.find(kindSMTPUTF8); ok {
		lines = append(lines, "SMTPUTF8")
	}
	if _, ok := c.s.find(kindSTARTTLS); ok && !c.encrypted {
		lines = append(lines, "STARTTLS")
	}
	if _, ok := c.s.find(kindLogin); ok {
		lines = append(lines, "AUTH PLAIN")
	}
	if f, ok := c.s.find(kindWithout); ok {
		lines = slices.DeleteFunc(lines, func(l string) bool {
			name, _, _ := strings.Cut(l, " ")
			return slices.Contains(f.names, name)
		})
	}
	c.reply(250, lines...)
}

func (c *smtpSession) startTLS() error {
	if _, ok := c.s.find(kindSTARTTLS); !ok || c.encrypted {
		c.reply(502, "5.5.1 not available")
		return nil
	}
	c.reply(220, "2.0.0 go ahead")
	if err := c.bw.Flush(); err != nil {
		return err
	}
	c.use(tls.Server(c.raw, c.s.tls))
	c.encrypted = true
	c.forget()
	return nil
}

func (c *smtpSession) auth(arg string) error {
	f, ok := c.s.find(kindLogin)
	mech, initial, _ := strings.Cut(arg, " ")
	if !ok || !strings.EqualFold(mech, "PLAIN") {
		c.reply(504, "5.5.4 mechanism not available")
		return nil
	}
	if initial == "" {
		c.reply(334, "")
		line, err := c.readLine()
		if err != nil {
			return err
		}
		initial = line
	}
	secret, err := base64.StdEncoding.DecodeString(initial)
	if err != nil || string(secret) != "\x00"+f.user+"\x00"+f.text {
		c.reply(535, "5.7.8 authentication failed")
		return nil
	}
	c.loggedIn = true
	c.reply(235, "2.7.0 accepted")
	return nil
}

func (c *smtpSession) mail(arg string) {
	switch _, login := c.s.find(kindLogin); {
	case login && !c.loggedIn:
		c.reply(530, "5.7.0 authentication required")
	case c.hasFrom:
		c.reply(503, "5.5.1 nested MAIL")
	default:
		c.from, c.hasFrom = path(arg), true
		c.reply(250, "2.1.0 Ok")
	}
}

func (c *smtpSession) rcpt() {
	if !c.hasFrom {
		c.reply(503, "5.5.1 MAIL first")
		return
	}
	if _, ok := c.s.find(kindGreylist); ok {
		c.s.mu.Lock()
		seen := c.s.grey[c.to]
		c.s.grey[c.to] = true
		c.s.mu.Unlock()
		if !seen {
			c.reply(450, "4.7.1 <"+c.to+">: greylisted, try again in 300 seconds")
			return
		}
	}
	c.recipients++
	c.reply(250, "2.1.5 Ok")
}

func (c *smtpSession) data() error {
	if _, lenient := c.s.find(kindDataAnyway); c.recipients == 0 && !lenient {
		c.reply(503, "5.5.1 RCPT first")
		return nil
	}
	c.reply(354, "go ahead")
	if err := c.bw.Flush(); err != nil {
		return err
	}
	raw, err := c.readBody()
	if err != nil {
		return err
	}
	if c.recipients == 0 {
		c.forget()
		c.reply(554, "5.5.1 no valid recipients")
		return nil
	}
	return c.verdict(raw)
}

// readBody reads up to the final dot, badly if told so.
func (c *smtpSession) readBody() ([]byte, error) {
	f, _ := c.s.take(StageBody, c.to)
	switch f.kind {
	case kindHang:
		return nil, c.hang(StageBody)
	case kindCut, kindCutBody:
		_, _ = io.CopyN(io.Discard, c.br, int64(f.n))
		c.abort()
		return nil, errHangUp
	case kindRefuse:
		c.reply(f.code, f.text)
		_ = c.bw.Flush()
		return nil, errHangUp
	}
	_, discard := c.s.find(kindDiscard)
	var raw []byte
	sinceRest := 0
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if f.kind == kindSlow {
			if sinceRest += len(line); sinceRest >= f.n {
				sinceRest = 0
				select {
				case <-time.After(f.pause):
				case <-c.s.done:
					return nil, errHangUp
				}
			}
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			break
		}
		if line[0] == '.' {
			line = line[1:]
		}
		if !discard {
			raw = append(raw, line...)
		}
	}
	if !discard {
		c.s.record(".")
	}
	return raw, nil
}

// verdict answers the final dot. A refusal keeps nothing; a hang or a cut
// comes after the message was kept.
func (c *smtpSession) verdict(raw []byte) error {
	from, to := c.from, c.to
	f, faulty := c.s.take(StageVerdict, to)
	c.forget()
	if faulty && f.kind == kindRefuse {
		c.reply(f.code, f.text)
		if f.code == 421 {
			return errHangUp
		}
		return nil
	}
	_, discard := c.s.find(kindDiscard)
	c.s.mu.Lock()
	c.s.accepted++
	id := c.s.accepted
	if !discard {
		c.s.messages = append(c.s.messages, Received{From: from, To: to, Raw: raw, At: time.Now()})
	}
	c.s.mu.Unlock()
	if faulty {
		switch f.kind {
		case kindDelay:
			c.rest(f.pause)
		case kindHang:
			return c.hang(StageVerdict)
		case kindCut:
			c.abort()
			return errHangUp
		case kindSay:
			_, _ = c.bw.WriteString(f.text)
			return nil
		}
	}
	c.reply(250, "2.0.0 Ok: queued as T"+strconv.Itoa(id))
	if f.kind == kindCloseAfterAccept {
		return errHangUp
	}
	return nil
}

// path takes the address out of "FROM:<address> PARAMETER".
func path(arg string) string {
	_, rest, _ := strings.Cut(arg, "<")
	if i := strings.LastIndexByte(rest, '>'); i >= 0 {
		return rest[:i]
	}
	return rest
}
