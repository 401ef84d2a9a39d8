package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Defaults of [Config].
const (
	DefaultTimeout       = 20 * time.Second
	DefaultDialTimeout   = 5 * time.Second
	DefaultTLSTimeout    = 5 * time.Second
	DefaultHeaderTimeout = 15 * time.Second
	DefaultMaxBody       = 64 << 10
)

const (
	// maxHeader bounds the headers of an answer in bytes.
	maxHeader = 32 << 10
	// maxTransports bounds the pools of connections: two for each allow-list that
	// requests are made with.
	maxTransports = 64
	// maxIdlePerHost is how many connections wait for the next request: all users of
	// a browser share its maker's push service.
	maxIdlePerHost = 32
	idleTimeout    = 90 * time.Second

	// A connection of HTTP/2 that was silent for pingAfter is asked for a sign of
	// life, and given up when none comes: it carries all requests to its host.
	pingAfter   = 15 * time.Second
	pingTimeout = 5 * time.Second
)

// Config holds the limits of a [Client].
type Config struct {
	// Timeout bounds a request from the name to the end of the answer's body.
	// Default 20 s. A context that ends earlier wins.
	Timeout time.Duration
	// DialTimeout bounds resolving the name and connecting, TLSTimeout the handshake,
	// HeaderTimeout the wait from the end of the request to the answer's headers.
	// Defaults 5 s, 5 s, 15 s.
	DialTimeout, TLSTimeout, HeaderTimeout time.Duration
	// MaxBody is how much of an answer's body can be read: a read beyond it fails
	// with *[http.MaxBytesError]. Default 64 KiB.
	MaxBody int64
	// RootCAs are the authorities to trust. Default: those of the system.
	RootCAs *x509.CertPool
	// Resolver finds addresses. Default: [net.DefaultResolver].
	Resolver *net.Resolver
}

// Client makes requests. It is safe for concurrent use.
type Client struct {
	cfg Config

	mu         sync.Mutex // owns what follows
	transports map[string]*transport
	clock      uint64
}

// transport is a pool of connections that were made under one allow-list and scheme.
type transport struct {
	*http.Transport
	used uint64 // the clock at its last use
}

// New returns a client. It starts nothing; [Client.Close] ends the connections that
// requests leave behind.
func New(cfg Config) (*Client, error) {
	for _, d := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{
		{"Timeout", &cfg.Timeout, DefaultTimeout},
		{"DialTimeout", &cfg.DialTimeout, DefaultDialTimeout},
		{"TLSTimeout", &cfg.TLSTimeout, DefaultTLSTimeout},
		{"HeaderTimeout", &cfg.HeaderTimeout, DefaultHeaderTimeout},
	} {
		if *d.value < 0 {
			return nil, fmt.Errorf("egress config: %s is %s: it must be positive", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	if cfg.MaxBody < 0 {
		return nil, fmt.Errorf("egress config: MaxBody is %d: it must be positive", cfg.MaxBody)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = DefaultMaxBody
	}
	return &Client{cfg: cfg, transports: make(map[string]*transport)}, nil
}

// Close ends the connections that wait for a next request. The client stays usable.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Do makes the request and returns its answer, whatever its status; the caller closes
// its body. allow lists the addresses that may be called although they are private;
// usually there are none. It fails with *[ForbiddenError] if the request may not be
// made, and otherwise with *[Error].
func (c *Client) Do(req *http.Request, allow []netip.Prefix) (*http.Response, error) {
	if err := check(req.URL, allow); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as RoundTrip does
		}
		return nil, err
	}
	var connected, sent atomic.Bool
	ctx, cancel := context.WithTimeout(req.Context(), c.cfg.Timeout)
	traced := req.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { connected.Store(true) },
		WroteHeaders: func() { sent.Store(true) }, // nobody can act on less
	}))
	if traced.Header.Get("User-Agent") == "" {
		if traced.Header == nil {
			traced.Header = make(http.Header)
		}
		traced.Header.Set("User-Agent", "postroom")
	}
	resp, err := c.transport(req.URL.Scheme, allow).RoundTrip(traced)
	if err != nil {
		defer cancel()
		if forbidden, ok := errors.AsType[*ForbiddenError](err); ok {
			return nil, forbidden
		}
		// A context that ends does not wait for what is being written in that moment.
		return nil, explain(ctx, err, sent.Load() || ctx.Err() != nil && connected.Load())
	}
	resp.Body = &body{ReadCloser: http.MaxBytesReader(nil, resp.Body, c.cfg.MaxBody), ctx: ctx, cancel: cancel}
	return resp, nil
}

// HTTP returns c as a client of net/http that makes every request under allow, for
// packages that want one. It keeps to the rules of [Client.Do]; its errors are those
// of Do within a *url.Error, whose text names the URL.
func (c *Client) HTTP(allow []netip.Prefix) *http.Client {
	return &http.Client{
		Transport:     roundTripper{client: c, allow: slices.Clone(allow)},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type roundTripper struct {
	client *Client
	allow  []netip.Prefix
}

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.client.Do(req, r.allow)
}

// transport returns the pool for one scheme and allow-list. http.Transport keeps
// connections by scheme, host and port alone and asks nobody before it uses one
// again, so that one pool for all would let a request without an allow-list use the
// private connection of another.
func (c *Client) transport(scheme string, allow []netip.Prefix) *transport {
	list := make([]string, len(allow))
	for i, p := range allow {
		list[i] = p.Masked().String()
	}
	slices.Sort(list)
	key := scheme + " " + strings.Join(slices.Compact(list), " ")

	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	t, ok := c.transports[key]
	if !ok {
		if len(c.transports) >= maxTransports {
			c.dropOldest()
		}
		t = &transport{Transport: c.newTransport(scheme, slices.Clone(allow))}
		c.transports[key] = t
	}
	t.used = c.clock
	return t
}

// dropOldest forgets the pool that was used least recently. Requests under way end as
// they would; their connections are closed then, and not kept.
func (c *Client) dropOldest() {
	var oldest string
	for key, t := range c.transports {
		if oldest == "" || t.used < c.transports[oldest].used {
			oldest = key
		}
	}
	c.transports[oldest].CloseIdleConnections()
	delete(c.transports, oldest)
}

func (c *Client) newTransport(scheme string, allow []netip.Prefix) *http.Transport {
	dialer := &net.Dialer{
		Timeout:  c.cfg.DialTimeout,
		Resolver: c.cfg.Resolver,
		Control: func(_, address string, _ syscall.RawConn) error {
			return judge(scheme, address, allow)
		},
	}
	return &http.Transport{
		Proxy:                  nil, // a proxy would resolve the name itself
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.cfg.RootCAs},
		TLSHandshakeTimeout:    c.cfg.TLSTimeout,
		ResponseHeaderTimeout:  c.cfg.HeaderTimeout,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           4 * maxIdlePerHost,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true, // a small answer could become a big one
		ForceAttemptHTTP2:      true, // which a dialer of one's own switches off
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// judge decides about an address that is about to be connected to.
func judge(scheme, address string, allow []netip.Prefix) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return &ForbiddenError{Rule: "invalid address", Resolved: true}
	}
	if allowed(at.Addr(), allow) {
		return nil
	}
	if r := rule(at.Addr()); r != "" {
		return &ForbiddenError{Rule: r, Resolved: true}
	}
	if r := public(scheme, fmt.Sprint(at.Port())); r != "" {
		return &ForbiddenError{Rule: "public address, which is called with https on port 443 only", Resolved: true}
	}
	return nil
}

// body is an answer's body, whose time is over when it is closed.
type body struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // the time that is left for reading
	cancel context.CancelFunc
}

// Read returns io.EOF, *[http.MaxBytesError] or *[Error].
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return n, err
	}
	return n, explain(b.ctx, err, true)
}

// Close ends the request.
func (b *body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// A Reason is why a request has no answer, in one word.
type Reason string

// The reasons.
const (
	// ReasonDNS: the host's name does not resolve.
	ReasonDNS Reason = "dns"
	// ReasonConnect: nobody listens there, or there is no way to it.
	ReasonConnect Reason = "connect"
	// ReasonTLS: the handshake failed, such as for a certificate that is not valid.
	ReasonTLS Reason = "tls"
	// ReasonTimeout: one of the times was over.
	ReasonTimeout Reason = "timeout"
	// ReasonProtocol: the connection broke, or what came was no answer.
	ReasonProtocol Reason = "protocol"
	// ReasonCanceled: the context of the request ended.
	ReasonCanceled Reason = "canceled"
)

// An Error is a request without an answer, or without all of it. Its text names
// neither the URL nor the address.
type Error struct {
	Reason Reason
	// Sent is true if the request has gone out, or may have, so that it may have been
	// acted on.
	Sent bool
	// Err is the cause if it says nothing of the URL, such as the error of the
	// context or of the system; otherwise nil.
	Err error
}

// Error returns what failed, for people.
func (e *Error) Error() string {
	text := map[Reason]string{
		ReasonDNS:      "the host's name does not resolve",
		ReasonConnect:  "no connection to the host",
		ReasonTLS:      "no secure connection to the host",
		ReasonTimeout:  "no answer in time",
		ReasonProtocol: "the connection broke",
		ReasonCanceled: "the request was cancelled",
	}[e.Reason]
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// explain replaces an error of net/http, which names hosts and addresses.
func explain(ctx context.Context, err error, sent bool) error {
	e := &Error{Reason: ReasonProtocol, Sent: sent}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		e.Err = errno
	}
	op, isOp := errors.AsType[*net.OpError](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(context.Cause(ctx), context.Canceled):
		e.Reason, e.Err = ReasonCanceled, context.Canceled
	case ctx.Err() != nil, isNet && timeout.Timeout(), isDNS && dns.IsTimeout, errors.Is(err, os.ErrDeadlineExceeded):
		e.Reason, e.Err = ReasonTimeout, context.DeadlineExceeded
	case isDNS:
		e.Reason = ReasonDNS
	case isOp && op.Op == "dial":
		e.Reason = ReasonConnect
	case isTLS(err):
		e.Reason = ReasonTLS
	}
	return e
}

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	// Before 1.3 alerts come in a net.OpError with their name as its op.
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "remote error" || op.Op == "local error")
}
