package mailer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

const (
	bodyChunk    = 256 << 10       // what one BodyTimeout is granted for
	probeTimeout = 3 * time.Second // a server that does not answer NOOP by then is gone
	quitTimeout  = 3 * time.Second
	resetTimeout = 10 * time.Second
)

// wire is the raw socket. Deadlines are set here and not through go-mail,
// whose client holds its lock while it waits for the server.
type wire struct {
	raw net.Conn

	mu      sync.Mutex // orders deadline and cut
	cutting bool
}

// deadline starts a phase. It has no effect once the wire was cut.
func (w *wire) deadline(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.cutting {
		_ = w.raw.SetDeadline(time.Now().Add(d)) // fails on a closed socket only; the next read or write tells
	}
}

// cut makes the running and all further reads and writes fail at once.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cutting = true
	_ = w.raw.SetDeadline(time.Unix(1, 0))
}

// conn is one SMTP session. One goroutine uses it at a time; only cut may be
// called by others.
type conn struct {
	*wire
	cfg  *Config
	name string // the provider's

	client *smtp.Client
	br     *bufio.Reader // of client.Text
	bw     *bufio.Writer // of client.Text

	pipelining, eightBit, utf8 bool
	maxSize                    int // 0 if not told

	tlsVersion, mechanism string

	born, used time.Time
	messages   int
	dead       bool // out of step, refused with 421, or broken: to be closed hard

	reply reply
	cmd   []byte
}

// dial opens a session: connect, greeting, EHLO, TLS, AUTH. Whatever fails,
// the socket is closed.
func (p *pool) dial(ctx context.Context) (_ *conn, derr *Error) {
	phase := PhaseConnect
	fail := func(err error) *Error { return p.dialError(ctx, phase, err) }

	dctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	key := &dialing{cancel: cancel}
	if !p.register(key) {
		return nil, &Error{Phase: phase, Provider: p.name, Reason: ReasonAborted, Err: ErrClosed}
	}
	defer p.unregister(key)

	var dialer net.Dialer
	raw, err := dialer.DialContext(dctx, "tcp", p.prov.addr())
	if err != nil {
		return nil, fail(err)
	}
	c := &conn{wire: &wire{raw: raw}, cfg: p.cfg, name: p.name}
	// dctx ends with its timeout; each phase has its own from here on.
	stop := context.AfterFunc(ctx, c.cut)
	defer func() {
		if !stop() && derr == nil {
			derr = contextError(ctx, phase, p.name)
		}
		if derr == nil && !p.register(c.wire) {
			derr = &Error{Phase: phase, Provider: p.name, Reason: ReasonAborted, Err: ErrClosed}
		}
		if derr != nil {
			_ = raw.Close()
		}
	}()
	key.setCut(c.cut)

	stream := raw
	if p.prov.TLS == TLSImplicit {
		phase = PhaseTLS
		c.deadline(p.cfg.ConnectTimeout)
		t := tls.Client(raw, p.tls)
		if err := t.Handshake(); err != nil { //nolint:noctx // the context acts on the socket's deadline
			return nil, fail(err)
		}
		stream, phase = t, PhaseConnect
	}
	c.deadline(p.cfg.ConnectTimeout)
	if c.client, err = smtp.NewClient(stream, p.prov.Host); err != nil {
		return nil, fail(err)
	}
	if err = c.client.Hello(p.cfg.HELO); err != nil {
		return nil, fail(err)
	}
	if p.prov.TLS == TLSMandatory || p.prov.TLS == TLSOpportunistic {
		phase = PhaseTLS
		offered, _ := c.client.Extension("STARTTLS")
		if !offered && p.prov.TLS == TLSMandatory {
			return nil, &Error{Phase: phase, Provider: p.name, Reason: ReasonTLS, Err: errNoSTARTTLS}
		}
		if offered {
			c.deadline(p.cfg.ConnectTimeout)
			if err = c.client.StartTLS(p.tls); err != nil {
				return nil, fail(err)
			}
		}
	}
	if p.prov.Username != "" {
		phase = PhaseAuth
		c.deadline(p.cfg.ConnectTimeout)
		if err = p.authenticate(c); err != nil {
			return nil, fail(err)
		}
	}
	c.ready()
	return c, nil
}

const (
	errNoSTARTTLS problem = "server does not offer STARTTLS; use smtps://, or tls=none if it is inside a trusted network"
	errClearAuth  problem = "credentials are not sent over an unencrypted or unverified connection; use tls=mandatory or give ca="
	errNoAuth     problem = "server does not offer AUTH"
	errMechanism  problem = "server offers none of the usable AUTH mechanisms"
)

// authenticate logs in, but never where someone could listen.
func (p *pool) authenticate(c *conn) error {
	if !p.trusted(c) {
		return errClearAuth
	}
	ok, offered := c.client.Extension("AUTH")
	if !ok {
		return errNoAuth
	}
	mechs := strings.Fields(strings.ToUpper(offered))
	mech := p.prov.Auth
	if mech == "" {
		for _, m := range authMechanisms {
			if m != "XOAUTH2" && slices.Contains(mechs, m) {
				mech = m
				break
			}
		}
	}
	if mech == "" || !slices.Contains(mechs, mech) {
		return errMechanism
	}
	var a smtp.Auth
	switch mech {
	case "SCRAM-SHA-256":
		a = smtp.ScramSHA256Auth(p.prov.Username, p.prov.Password)
	case "SCRAM-SHA-1":
		a = smtp.ScramSHA1Auth(p.prov.Username, p.prov.Password)
	case "PLAIN": // the connection was judged above, by address and certificate
		a = smtp.PlainAuth("", p.prov.Username, p.prov.Password, p.prov.Host, true)
	case "LOGIN":
		a = smtp.LoginAuth(p.prov.Username, p.prov.Password, p.prov.Host, true)
	case "CRAM-MD5":
		a = smtp.CRAMMD5Auth(p.prov.Username, p.prov.Password)
	case "XOAUTH2":
		a = smtp.XOAuth2Auth(p.prov.Username, p.prov.Password)
	}
	c.mechanism = mech
	return c.client.Auth(a)
}

// trusted reports whether the peer is loopback, or proved its name in TLS.
func (p *pool) trusted(c *conn) bool {
	if tcp, ok := c.raw.RemoteAddr().(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		return true
	}
	state, ok := c.client.TLSConnectionState()
	if !ok {
		return false
	}
	if !p.tls.InsecureSkipVerify {
		return true
	}
	if len(state.PeerCertificates) == 0 {
		return false
	}
	pool := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		pool.AddCert(cert)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: p.prov.Host, Intermediates: pool})
	return err == nil
}

// ready notes what the server can do.
func (c *conn) ready() {
	c.br, c.bw = c.client.Text.R, c.client.Text.W
	c.pipelining, _ = c.client.Extension("PIPELINING")
	c.eightBit, _ = c.client.Extension("8BITMIME")
	c.utf8, _ = c.client.Extension("SMTPUTF8")
	if _, size := c.client.Extension("SIZE"); size != "" {
		if n, err := strconv.Atoi(strings.TrimSpace(size)); err == nil && n > 0 {
			c.maxSize = n
		}
	}
	if state, ok := c.client.TLSConnectionState(); ok {
		c.tlsVersion = tls.VersionName(state.Version)
	}
	c.born = time.Now()
	c.used = c.born
	c.cmd = make([]byte, 0, 512)
	c.reply.text = make([]byte, 0, maxReplyText)
}

// dialError files a failure of dial under its phase.
func (p *pool) dialError(ctx context.Context, phase Phase, err error) *Error {
	e := wireError(ctx, phase, err)
	e.Provider = p.name
	if own, ok := errors.AsType[problem](err); ok && own != errReply {
		e.Err = own
		if own == errClearAuth {
			e.Reason = ReasonTLS
		}
	}
	if p.wasCut() {
		e.Reason, e.Err = ReasonAborted, ErrClosed
	}
	return e
}

// wireError files a failure to read or write.
func wireError(ctx context.Context, phase Phase, err error) *Error {
	if ctx.Err() != nil {
		return contextError(ctx, phase, "")
	}
	if t, ok := errors.AsType[*textproto.Error](err); ok {
		r := reply{code: t.Code}
		first, _, _ := strings.Cut(t.Msg, "\n")
		r.enhanced, r.text = cutEnhanced(t.Code, []byte(first))
		return classify(phase, &r)
	}
	e := &Error{Phase: phase, Reason: ReasonConnect, Err: err}
	var netErr net.Error
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		e.Reason, e.Err = ReasonTimeout, os.ErrDeadlineExceeded
	case isTLSError(err):
		e.Reason = ReasonTLS
	case errors.Is(err, errReply), errors.As(err, new(textproto.ProtocolError)):
		// textproto's error repeats the line it could not read.
		e.Reason, e.Err = ReasonProtocol, errReply
	case phase == PhaseAuth && !isNetworkError(err):
		// The mechanism gave up, perhaps quoting the server's challenge.
		e.Reason, e.Err = ReasonAuth, problem("AUTH exchange failed")
	case phase == PhaseTLS && !isNetworkError(err):
		e.Reason = ReasonTLS
	}
	return e
}

// isNetworkError tells a lost connection from a failure of TLS or AUTH on a
// sound one. A TLS alert from the peer looks like the former to net.
func isNetworkError(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return false
	}
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &netErr)
}

// contextError is the failure of a send whose context ended before the dot.
func contextError(ctx context.Context, phase Phase, provider string) *Error {
	e := &Error{Phase: phase, Provider: provider, Reason: ReasonAborted, Err: ctx.Err()}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		e.Reason = ReasonTimeout
	}
	return e
}

// prepared is an envelope in the form in which it goes over the wire.
type prepared struct {
	from, to string
	size     int    // octets of the message, for SIZE
	body     []byte // dot-stuffed, without its last line end
	eightBit bool   // has octets above 127
	utf8     bool   // has them in an address or the header (RFC 6531)
}

func prepare(env Envelope) (*prepared, *Error) {
	invalid := func(p problem) *Error {
		return &Error{Phase: PhaseBuild, Reason: ReasonInvalidMessage, Err: p}
	}
	switch {
	case !validPath(env.From):
		return nil, invalid("envelope sender is not an address")
	case env.To == "" || !validPath(env.To):
		return nil, invalid("envelope recipient is not an address")
	case len(env.Raw) == 0:
		return nil, invalid("message is empty")
	}
	raw := env.Raw
	if !cleanLines(raw) {
		raw = fixLines(raw)
	}
	p := &prepared{from: env.From, to: env.To, size: len(raw), eightBit: hasEightBit(raw)}
	p.utf8 = !isASCII(env.From) || !isASCII(env.To)
	if p.eightBit && !p.utf8 {
		header, _, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		p.utf8 = hasEightBit(header)
	}
	p.body = stuff(raw[:len(raw)-2])
	return p, nil
}

// cleanLines reports whether every line ends in CRLF and no CR or LF stands
// alone. A bare one can be read as a line end by some servers and not by
// others, which is how messages are smuggled.
func cleanLines(raw []byte) bool {
	if !bytes.HasSuffix(raw, []byte("\r\n")) {
		return false
	}
	n := 0
	for at := 0; ; n++ {
		i := bytes.IndexByte(raw[at:], '\n')
		if i < 0 {
			break
		}
		if at+i == 0 || raw[at+i-1] != '\r' {
			return false
		}
		at += i + 1
	}
	return bytes.Count(raw, []byte{'\r'}) == n
}

// fixLines turns every CR, LF and CRLF into CRLF and ends the last line.
func fixLines(raw []byte) []byte {
	out := make([]byte, 0, len(raw)+len(raw)/32+2)
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; c {
		case '\r':
			out = append(out, '\r', '\n')
			if i+1 < len(raw) && raw[i+1] == '\n' {
				i++
			}
		case '\n':
			out = append(out, '\r', '\n')
		default:
			out = append(out, c)
		}
	}
	if !bytes.HasSuffix(out, []byte("\r\n")) {
		out = append(out, '\r', '\n')
	}
	return out
}

// stuff doubles the dot at the start of a line (RFC 5321 §4.5.2). Without one
// the bytes are used as they are.
func stuff(body []byte) []byte {
	n := bytes.Count(body, []byte("\n."))
	first := len(body) > 0 && body[0] == '.'
	if n == 0 && !first {
		return body
	}
	out := make([]byte, 0, len(body)+n+1)
	if first {
		out = append(out, '.')
	}
	for {
		i := bytes.Index(body, []byte("\n."))
		if i < 0 {
			return append(out, body...)
		}
		out = append(out, body[:i+2]...)
		out = append(out, '.')
		body = body[i+2:]
	}
}

func hasEightBit(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// exchange sends one message. On return c.dead tells whether the connection
// may be used again.
func (c *conn) exchange(ctx context.Context, m *prepared, commit func(context.Context, string) error) (string, *Error) {
	if err := c.acceptable(m); err != nil {
		return "", err
	}
	if err := c.envelope(ctx, m); err != nil {
		return "", err
	}
	// From here on the connection is past 354: only a verdict can save it.
	c.dead = true
	if err := c.body(ctx, m.body); err != nil {
		return "", err
	}
	if commit != nil {
		if err := commit(ctx, c.name); err != nil {
			return "", &Error{Phase: PhaseBody, Provider: c.name, Reason: ReasonAborted, Err: err}
		}
	}
	if ctx.Err() != nil {
		return "", contextError(ctx, PhaseBody, c.name)
	}
	c.deadline(c.cfg.VerdictTimeout)
	if err := c.write("\r\n.\r\n"); err != nil {
		// The end of data did not get out whole, so there is no message yet.
		return "", c.ioError(ctx, PhaseBody, err)
	}
	return c.verdict(ctx)
}

// acceptable checks what can be known to fail before anything is sent.
func (c *conn) acceptable(m *prepared) *Error {
	e := &Error{Phase: PhaseMail, Provider: c.name, Reason: ReasonInvalidMessage}
	switch {
	case c.maxSize > 0 && m.size > c.maxSize:
		e.Reason, e.Err = ReasonTooBig, problem("message is larger than the server's SIZE")
	case m.utf8 && !c.utf8:
		e.Err = problem("address is not ASCII and the server does not support SMTPUTF8")
	case m.eightBit && !c.eightBit:
		e.Err = problem("message has 8-bit text and the server does not support 8BITMIME")
	default:
		return nil
	}
	return e
}

// envelope gets from MAIL to the 354, in one write where the server allows it.
func (c *conn) envelope(ctx context.Context, m *prepared) *Error {
	b := append(c.cmd[:0], "MAIL FROM:<"...)
	b = append(b, m.from...)
	b = append(b, '>')
	if c.maxSize > 0 {
		b = append(b, " SIZE="...)
		b = strconv.AppendInt(b, int64(m.size), 10)
	}
	if m.eightBit || (m.utf8 && c.eightBit) {
		b = append(b, " BODY=8BITMIME"...)
	}
	if m.utf8 {
		b = append(b, " SMTPUTF8"...)
	}
	b = append(b, "\r\n"...)
	mail := len(b)
	b = append(b, "RCPT TO:<"...)
	b = append(b, m.to...)
	b = append(b, ">\r\n"...)
	rcpt := len(b)
	b = append(b, "DATA\r\n"...)
	c.cmd = b

	c.deadline(c.cfg.CommandTimeout)
	if c.pipelining {
		return c.pipelined(ctx, b)
	}
	for _, step := range []struct {
		phase Phase
		line  []byte
		want  int
	}{{PhaseMail, b[:mail], 2}, {PhaseRcpt, b[mail:rcpt], 2}, {PhaseData, b[rcpt:], 3}} {
		c.deadline(c.cfg.CommandTimeout)
		if err := c.writeBytes(step.line); err != nil {
			return c.ioError(ctx, step.phase, err)
		}
		if err := c.expect(ctx, step.phase, step.want); err != nil {
			c.reset()
			return err
		}
	}
	return nil
}

// pipelined sends MAIL, RCPT and DATA at once (RFC 2920) and reads all three answers.
func (c *conn) pipelined(ctx context.Context, commands []byte) *Error {
	if err := c.writeBytes(commands); err != nil {
		return c.ioError(ctx, PhaseMail, err)
	}
	mailErr := c.expect(ctx, PhaseMail, 2)
	if mailErr != nil && c.dead {
		return mailErr
	}
	refused := mailErr
	rcptErr := c.expect(ctx, PhaseRcpt, 2)
	if refused == nil {
		refused = rcptErr
	}
	if c.dead {
		return refused
	}
	dataErr := c.expect(ctx, PhaseData, 3)
	switch {
	case refused == nil && dataErr == nil:
		return nil
	case refused == nil:
		refused = dataErr
	case dataErr == nil && rcptErr == nil:
		// MAIL was refused, RCPT and DATA were not: a dot could deliver an
		// empty message.
		c.dead = true
	case dataErr == nil:
		// No recipient, but the server wants data: end it at once (RFC 2920 §3.1).
		if err := c.write(".\r\n"); err != nil || readReply(c.br, &c.reply) != nil {
			c.dead = true
		}
	}
	c.reset()
	return refused
}

// expect reads one reply and demands a class of codes. Anything but a proper
// refusal leaves the connection dead.
func (c *conn) expect(ctx context.Context, phase Phase, class int) *Error {
	if err := readReply(c.br, &c.reply); err != nil {
		return c.ioError(ctx, phase, err)
	}
	if c.reply.code/100 == class {
		return nil
	}
	e := classify(phase, &c.reply)
	e.Provider = c.name
	c.dead = c.reply.code == 421 || c.reply.code < 400
	return e
}

// reset makes the server forget the transaction, so that the connection can be
// kept after a refusal.
func (c *conn) reset() {
	if c.dead {
		return
	}
	c.deadline(resetTimeout)
	if c.write("RSET\r\n") != nil || readReply(c.br, &c.reply) != nil || !c.reply.ok() {
		c.dead = true
	}
}

// body writes the message up to, and without, its last line end.
func (c *conn) body(ctx context.Context, body []byte) *Error {
	for len(body) > 0 {
		chunk := body[:min(len(body), bodyChunk)]
		body = body[len(chunk):]
		c.deadline(c.cfg.BodyTimeout)
		if err := c.writeBytes(chunk); err != nil {
			e := c.ioError(ctx, PhaseBody, err)
			// A server that hangs up in the middle often says why before.
			c.deadline(250 * time.Millisecond)
			if e.Reason == ReasonConnect && readReply(c.br, &c.reply) == nil && c.reply.code >= 400 {
				e = classify(PhaseBody, &c.reply)
				e.Provider = c.name
			}
			return e
		}
	}
	return nil
}

// verdict reads the answer to the final dot. Without a clear one the outcome is unknown.
func (c *conn) verdict(ctx context.Context) (string, *Error) {
	unknown := &Error{Phase: PhaseVerdict, Provider: c.name, Reason: ReasonUnknownOutcome}
	if err := readReply(c.br, &c.reply); err != nil {
		e := c.ioError(ctx, PhaseVerdict, err)
		unknown.Err = e.Err
		return "", unknown
	}
	code := c.reply.code
	// More than one reply waiting: the two sides are out of step.
	c.dead = code == 421 || c.br.Buffered() > 0
	switch {
	case c.reply.ok():
		c.messages++
		return queueID(c.reply.text), nil
	case code >= 400:
		e := classify(PhaseVerdict, &c.reply)
		e.Provider = c.name
		return "", e
	}
	c.dead = true
	unknown.Code = code
	return "", unknown
}

func (c *conn) ioError(ctx context.Context, phase Phase, err error) *Error {
	c.dead = true
	e := wireError(ctx, phase, err)
	e.Provider = c.name
	if e.Reason == ReasonTimeout && ctx.Err() == nil && c.wasCut() {
		e.Reason, e.Err = ReasonAborted, ErrClosed
	}
	return e
}

func (w *wire) wasCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cutting
}

func (c *conn) write(s string) error {
	if _, err := c.bw.WriteString(s); err != nil {
		return err
	}
	return c.bw.Flush()
}

// writeBytes hands b to the socket in one write: what does not fit into the
// buffer is passed through it.
func (c *conn) writeBytes(b []byte) error {
	if _, err := c.bw.Write(b); err != nil {
		return err
	}
	return c.bw.Flush()
}

// probe asks an idle connection for a sign of life.
func (c *conn) probe() bool {
	c.deadline(probeTimeout)
	return c.write("NOOP\r\n") == nil && readReply(c.br, &c.reply) == nil && c.reply.ok()
}

// quit ends the session politely. A connection that idled may never answer;
// it is not waited for.
func (c *conn) quit(wait bool) {
	c.deadline(quitTimeout)
	if c.write("QUIT\r\n") == nil && wait {
		_ = readReply(c.br, &c.reply) // the socket is closed either way
	}
	_ = c.raw.Close()
}

// abort closes the socket at once; what the server has not read is thrown away.
func (c *conn) abort() {
	if tcp, ok := c.raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.raw.Close()
}
