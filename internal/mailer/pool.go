package mailer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// setDefaults fills in what New may derive and checks the rest.
func (p *Provider) setDefaults(maxConns int) error {
	if p.TLS == "" {
		p.TLS = TLSMandatory
	}
	if p.Port == 0 {
		p.Port = 587
		if p.TLS == TLSImplicit {
			p.Port = 465
		}
	}
	if p.MaxConns == 0 {
		p.MaxConns = maxConns
	}
	p.Auth = strings.ToUpper(p.Auth)
	switch {
	case !validHost(p.Host):
		return problem("host is missing or invalid")
	case p.Port < 1 || p.Port > 65535:
		return problem("port is out of range; want 1 to 65535")
	case p.MaxConns < 1 || p.MaxConns > maxConnsLimit:
		return problem(fmt.Sprintf("MaxConns is out of range; want 1 to %d", maxConnsLimit))
	case p.Name != "" && !validLabel(p.Name):
		return problem("name is invalid; want 1 to 64 of a-z A-Z 0-9 . _ : -")
	case p.Auth != "" && !slices.Contains(authMechanisms[:], p.Auth):
		return problem("AUTH mechanism is unknown; want one of " + strings.ToLower(strings.Join(authMechanisms[:], ", ")))
	case p.TLS != TLSMandatory && p.TLS != TLSOpportunistic && p.TLS != TLSNone && p.TLS != TLSImplicit:
		return problem("TLS mode is unknown; want mandatory, opportunistic, none or implicit")
	case (p.Username == "") != (p.Password == ""):
		return problem("has a user without a password or a password without a user")
	case p.TLS == TLSNone && p.Username != "" && !isLoopbackHost(p.Host):
		return problem("would send its password in clear; use tls=mandatory or smtps://")
	}
	return nil
}

// pool holds the connections to one provider.
type pool struct {
	name    string
	prov    Provider
	cfg     *Config
	tls     *tls.Config
	breaker *breaker
	slots   chan struct{} // one per send under way; connections never outnumber it

	mu      sync.Mutex          // owns the fields below
	idle    []*conn             // the one used last on top
	live    map[cutter]struct{} // every dial and connection
	sweep   *time.Timer         // closes idle connections; nil if none is armed
	closed  bool
	severed bool // Close ran out of time

	wg sync.WaitGroup // goroutines that close connections
}

// cutter is something under way that can be made to fail at once.
type cutter interface{ cut() }

// dialing is a connection in the making.
type dialing struct {
	mu     sync.Mutex
	cancel context.CancelFunc
	cutFn  func()
	done   bool
}

func (d *dialing) setCut(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutFn = fn
	if d.done {
		fn()
	}
}

func (d *dialing) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = true
	d.cancel()
	if d.cutFn != nil {
		d.cutFn()
	}
}

func newPool(p Provider, cfg *Config) (*pool, error) {
	conf := &tls.Config{
		ServerName: p.Host,
		MinVersion: tls.VersionTLS12,
		// A message then goes out in one record and one system call; Go would
		// otherwise start with small records.
		DynamicRecordSizingDisabled: true,
		ClientSessionCache:          tls.NewLRUClientSessionCache(p.MaxConns),
	}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA file of provider %s: %w", p.Name, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA file of provider %s: %w", p.Name, problem("it holds no PEM certificate"))
		}
	} else if p.TLS == TLSOpportunistic {
		// Encryption without proof is better than none (RFC 7435); credentials
		// still demand proof, see trusted.
		conf.InsecureSkipVerify = true
	}
	return &pool{
		name:    p.Name,
		prov:    p,
		cfg:     cfg,
		tls:     conf,
		breaker: &breaker{threshold: cfg.BreakerThreshold, base: cfg.BreakerPause, most: cfg.BreakerMaxPause},
		slots:   make(chan struct{}, max(p.MaxConns, 1)),
		live:    make(map[cutter]struct{}),
	}, nil
}

// send delivers one message through this provider and tells its breaker.
func (p *pool) send(ctx context.Context, m *prepared, commit func(context.Context, string) error) (Receipt, *Error) {
	ok, probe := p.breaker.allow()
	if !ok {
		return Receipt{}, &Error{Phase: PhaseConnect, Provider: p.name, Reason: ReasonProvider, Err: errBreakerOpen}
	}
	id, err := p.deliver(ctx, m, commit)
	o, pause := verdictOn(err)
	p.breaker.report(probe, o, pause)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{Provider: p.name, QueueID: id}, nil
}

// verdictOn says what a result means for the provider's breaker.
func verdictOn(err *Error) (outcome, time.Duration) {
	switch {
	case err == nil:
		return outcomeAlive, 0
	case err.Reason == ReasonAuth:
		return outcomeTrip, time.Minute // repeating a wrong password locks accounts
	case err.Reason == ReasonThrottled && err.retryAfter > 0:
		return outcomeTrip, err.retryAfter
	case err.ProviderFault():
		return outcomeFault, err.retryAfter
	case err.Code >= 400:
		return outcomeAlive, 0
	case err.Reason == ReasonConnect, err.Reason == ReasonTimeout && !errors.Is(err.Err, errNoSlot),
		err.Unknown() && !errors.Is(err.Err, context.Canceled) && !errors.Is(err.Err, ErrClosed):
		// Lost in the body or after the dot. The job pays for it, but a provider
		// that does so again and again must not be fed more messages.
		return outcomeFault, 0
	}
	return outcomeNeutral, 0
}

// deliver runs the exchange on a connection, idle or new. If one that was used
// before turns out to be gone, it tries once more on a new one: servers drop
// idle clients without asking, and nothing of the message was sent yet.
func (p *pool) deliver(ctx context.Context, m *prepared, commit func(context.Context, string) error) (string, *Error) {
	if err := p.acquire(ctx); err != nil {
		return "", err
	}
	c := p.pop()
	if c != nil {
		id, err := p.exchange(ctx, c, m, commit)
		if err == nil || !stale(c, err) || ctx.Err() != nil {
			p.release(c)
			return id, err
		}
		p.drop(c)
	}
	c, err := p.dial(ctx)
	if err != nil {
		<-p.slots
		return "", err
	}
	id, err := p.exchange(ctx, c, m, commit)
	p.release(c)
	return id, err
}

// stale reports whether a failure only says that the connection had ended.
func stale(c *conn, err *Error) bool {
	return c.dead && err.Phase.beforeBody() && (err.Code == 421 || (err.Code == 0 && err.Reason == ReasonConnect))
}

// exchange runs one exchange with ctx able to cut it.
func (p *pool) exchange(ctx context.Context, c *conn, m *prepared, commit func(context.Context, string) error) (string, *Error) {
	if ctx.Done() == nil {
		return c.exchange(ctx, m, commit)
	}
	stop := context.AfterFunc(ctx, c.cut)
	id, err := c.exchange(ctx, m, commit)
	if !stop() {
		c.dead = true // cut, or about to be
	}
	return id, err
}

func (p *pool) acquire(ctx context.Context) *Error {
	select {
	case p.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		e := contextError(ctx, PhaseConnect, p.name)
		e.Err = fmt.Errorf("%w: %w", errNoSlot, e.Err)
		return e
	}
}

// pop takes the idle connection that was used last, or nil. Those too old, or
// silent when asked, are closed on the way.
func (p *pool) pop() *conn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()

		now := time.Now()
		idle := now.Sub(c.used)
		switch {
		case idle > p.cfg.IdleTimeout || now.Sub(c.born) > p.cfg.MaxAge:
			c.quit(false)
			p.unregister(c.wire)
		case idle > p.cfg.ProbeAfter && !c.probe():
			p.drop(c)
		default:
			return c
		}
	}
}

// drop closes a connection hard.
func (p *pool) drop(c *conn) {
	c.abort()
	p.unregister(c.wire)
}

// release gives the slot back, and the connection if it can be used again.
func (p *pool) release(c *conn) {
	now := time.Now()
	c.used = now
	if c.dead {
		p.drop(c)
		<-p.slots
		return
	}
	worn := c.messages >= p.cfg.MaxMessages || now.Sub(c.born) > p.cfg.MaxAge
	p.mu.Lock()
	if !worn && !p.closed {
		p.idle = append(p.idle, c)
		if p.sweep == nil {
			p.sweep = time.AfterFunc(p.cfg.IdleTimeout, p.sweepIdle)
		}
		p.mu.Unlock()
		<-p.slots
		return
	}
	p.mu.Unlock()
	// The caller has its answer; it need not wait for the QUIT's. The slot
	// stays taken until the socket is closed, or the provider would see more
	// connections than allowed.
	p.wg.Go(func() {
		c.quit(true)
		p.unregister(c.wire)
		<-p.slots
	})
}

// sweepIdle closes the connections that idled for too long.
func (p *pool) sweepIdle() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.wg.Add(1)
	defer p.wg.Done()
	now := time.Now()
	n := 0 // the longest unused are at the bottom
	for n < len(p.idle) && now.Sub(p.idle[n].used) >= p.cfg.IdleTimeout {
		n++
	}
	expired := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.sweep = nil
	if len(p.idle) > 0 {
		p.sweep = time.AfterFunc(p.cfg.IdleTimeout-now.Sub(p.idle[0].used), p.sweepIdle)
	}
	p.mu.Unlock()
	for _, c := range expired {
		c.quit(false)
		p.unregister(c.wire)
	}
}

// register notes something that Close may have to cut; false if it is too late.
func (p *pool) register(c cutter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.severed {
		return false
	}
	p.live[c] = struct{}{}
	return true
}

func (p *pool) unregister(c cutter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, c)
}

func (p *pool) wasCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.severed
}

// drain says QUIT on idle connections; busy ones follow when they are released.
func (p *pool) drain() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	if p.sweep != nil {
		p.sweep.Stop()
		p.sweep = nil
	}
	p.mu.Unlock()
	for _, c := range idle {
		p.wg.Go(func() {
			c.quit(true)
			p.unregister(c.wire)
		})
	}
}

// cut makes everything under way fail.
func (p *pool) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.severed = true
	for c := range p.live {
		c.cut()
	}
}

// check opens and ends a session of its own.
func (p *pool) check(ctx context.Context) CheckResult {
	start := time.Now()
	r := CheckResult{Provider: p.name}
	c, err := p.dial(ctx)
	if err != nil {
		r.Err, r.Latency = err, time.Since(start)
		return r
	}
	c.quit(true)
	p.unregister(c.wire)
	r.OK, r.TLS, r.Auth, r.Latency = true, c.tlsVersion, c.mechanism, time.Since(start)
	return r
}
